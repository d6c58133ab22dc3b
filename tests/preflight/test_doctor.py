"""`doctor`: every planted fault in one run, and nothing on a healthy set-up."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from eavatar.__main__ import main
from eavatar.backends import WeightFile
from eavatar.preflight.doctor import examine
from eavatar.preflight.findings import Examination, Finding
from eavatar.preflight.machine import bytes_to_write, describe_days, examine_disk
from eavatar.preflight.weights import examine_weights
from eavatar.settings import merge, read_config
from tests.scenes import CONFIG
from tests.scenes.capture_faults import (
    with_a_damaged_last_frame,
    with_a_truncated_video,
    without_a_plate,
)
from tests.scenes.small_capture import SERIALS, grey_frames, write_video
from tests.scenes.small_setup import write_subject

HEADER = "subject,capture,morphable_model,landmarks,mattes,prior,settings"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject") / "a")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working folder with empty places for weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("REMBG_HOME", str(tmp_path / "rembg"))
    monkeypatch.delenv("U2NET_HOME", raising=False)
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    return tmp_path


def copy(healthy: Path, folder: Path) -> Path:
    return Path(shutil.copytree(healthy, folder))


def row(root: Path, **cells: str) -> str:
    given = {
        "subject": root.name,
        "capture": f"{root}/capture",
        "morphable_model": f"{root}/model.h5",
        "landmarks": f"{root}/landmarks",
        "settings": str(CONFIG / "demo.yaml"),
    } | cells
    return ",".join(given.get(column, "") for column in HEADER.split(","))


def overlay(path: Path, **blocks: object) -> str:
    """The demo's sizes and some more settings; JSON is YAML."""
    content = merge(yaml.safe_load((CONFIG / "demo.yaml").read_text()), blocks)
    path.write_text(json.dumps(content))
    return str(path)


def write_sheet(folder: Path, *rows: str) -> Path:
    path = folder / "sheet.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def run(sheet: Path, *subjects: str) -> Examination:
    return examine(str(CONFIG / "config.yaml"), sheet, subjects)


def find(found: Examination, *fragments: str) -> Finding:
    """The one fault that says all of it."""
    matching = [
        fault for fault in found.faults if all(fragment in fault.text for fragment in fragments)
    ]
    assert len(matching) == 1, f"{fragments}: {[fault.text for fault in found.faults]}"
    return matching[0]


def test_a_healthy_set_up_is_green(healthy, place, capsys):
    sheet = write_sheet(place, row(healthy), "demo,generated,,,,,")
    words = ["doctor", "--config", str(CONFIG / "config.yaml"), "--subjects", str(sheet), "a"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "3 cameras × 4 frames" in printed.out
    assert "vgg16-397923af.pth" in printed.out  # a warning: the demo does without
    assert "Everything that a run needs is there." in printed.err


def test_all_planted_faults_are_found_in_one_run(healthy, place):
    pytest.importorskip("rembg")
    a, b, c, d = (copy(healthy, place / name) for name in "abcd")
    # the capture of a, and its model
    truncated, damaged = with_a_truncated_video(a), with_a_damaged_last_frame(a)
    plate = without_a_plate(a)
    videos = a / "capture/sequences/FREE/images"
    write_video(videos / f"cam_{SERIALS[1]}.mp4", grey_frames(3))
    (a / f"capture/sequences/EXP-2-eyes/images/cam_{SERIALS[2]}.mp4").unlink()
    (a / "model.h5").write_bytes(b"\x80\x04 a pickle, as FLAME comes in")
    # the settings of b, its landmarks, its calibration
    settings_b = overlay(place / "b.yaml", splat={"setps": 3, "steps": 0})
    _shorten(b / "landmarks/FREE.npz")
    calibration = b / "capture/calibration/camera_params.json"
    content = json.loads(calibration.read_text())
    del content["world_2_cam"][SERIALS[0]]
    calibration.write_text(json.dumps(content))
    # what the backends of c need, and its prior
    settings_c = overlay(
        place / "c.yaml",
        capture={"matte": {"backend": "background_matting_v2",
                           "background_matting_v2": {"weights": f"{place}/bgm.pth"}}},
        face={"landmarks": {"backend": "face_alignment"}},
        prior={"generate": {"source": "provided"}},
        sdf={"renderer": "dibr"},
        splat={"lpips_required": True},
    )  # fmt: skip
    checkpoints = place / "torch/hub/checkpoints"
    (checkpoints / "vgg16-397923af.pth").write_bytes(b"cut off")
    (checkpoints / "3DFAN4-7835d9f11d.pth.tar").write_bytes(b"cut off")
    (c / "head.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    (c / "capture/calibration/color_calibration.json").write_text("{not JSON")
    # rembg's model, images for no disk, and provided landmarks that are not there
    settings_d = overlay(
        place / "d.yaml",
        capture={"matte": {"backend": "rembg", "rembg": {"model": "u2net_human_seg"}},
                 "ingest": {"image_size": 1_000_000}},
    )  # fmt: skip
    # the sheet
    sheet = write_sheet(
        place,
        row(a),
        row(b, settings=settings_b),
        row(c, settings=settings_c, prior=f"{c}/head.ply"),
        row(d, settings=settings_d, landmarks="", mattes="/nowhere"),
        row(a),
    )
    found = run(sheet)
    find(found, truncated)
    find(found, damaged)
    find(found, plate, "restore it or choose capture.matte.backend")
    find(found, f"{videos}/cam_{SERIALS[1]}.mp4 has 3 frames", "copy it again")
    find(found, f"camera {SERIALS[2]} is missing from EXP-2-eyes", "restore it")
    find(found, f"{a}/model.h5 is a Python pickle", "faces.dmi.unibas.ch")
    find(found, "b.yaml: unknown setting 'splat.setps'", "spelling")
    find(found, "b.yaml: setting 'splat.steps'", "not 0")
    find(found, f"{b}/landmarks/FREE.npz covers 1 video frames", "have 4; give landmarks")
    find(found, f"the calibration lacks camera {SERIALS[0]}", "restore it")
    find(found, f"{place}/bgm.pth does not exist", "MIT", "PeterL1n/BackgroundMattingV2")
    find(found, f"{checkpoints}/s3fd-619a316812.pth does not exist", "download https://")
    find(found, f"{checkpoints}/vgg16-397923af.pth cannot be opened", "download https://", "BSD")
    find(found, f"{checkpoints}/3DFAN4-7835d9f11d.pth.tar cannot be opened", "https://", "BSD")
    find(found, f"{c}/head.ply")
    find(found, f"{c}/capture/calibration/color_calibration.json")
    find(found, "u2net_human_seg", "put it there", "or set capture.matte.backend", "Apache")
    find(found, "the run writes about", "lower capture.ingest.image_size")
    find(found, "face.landmarks.backend is 'provided'", "column 'landmarks' is empty")
    find(found, "subject 'd': mattes /nowhere does not exist", "correct the sheet")
    find(found, "lists the subject 'a' twice", "remove one row")
    find(found, "kaolin.render.mesh cannot be imported", "set sdf.renderer to splats")
    # Nothing else, but for what depends on whether the machine has a GPU.
    assert len([fault for fault in found.faults if fault.item != "GPU"]) == 22


def _shorten(path: Path) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{n: a if n == "cameras" else a[:1] for n, a in arrays.items()})


def test_what_a_variant_needs_is_looked_for(healthy, place):
    settings = overlay(place / "a.yaml", variants={"soft": {"sdf": {"renderer": "dibr"}}})
    found = run(write_sheet(place, row(healthy, settings=settings)))
    find(found, "kaolin.render.mesh cannot be imported", "set sdf.renderer to splats")


def test_faulty_settings_or_sheet_do_not_hide_the_machine(place, capsys):
    faulty = place / "config.yaml"
    faulty.write_text((CONFIG / "config.yaml").read_text().replace("seeds: [0]", "seeds: [-1]"))
    found = examine(str(faulty), place / "none.csv", [])
    find(found, f"{faulty}: setting 'seeds.0'", "not -1")
    find(found, f"the sample sheet {place}/none.csv does not exist")
    find(found, "model2017-1_face12_nomouth.h5 does not exist", "faces.dmi.unibas.ch")
    assert any(finding.item == "memory" for finding in found.findings)
    assert main(["doctor", "--config", str(faulty), "--subjects", str(place / "none.csv")]) == 2
    assert "of the items above are missing or wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    "days, text",
    [(7.8, "7.8 days"), (1.5, "36 hours"), (1 / 24, "60 minutes"), (0.0021, "3 minutes")],
)
def test_a_duration_is_told_in_the_unit_that_one_would_choose(days, text):
    assert describe_days(days) == text


def test_a_subject_that_is_not_in_the_sheet_is_named(healthy, place):
    found = run(write_sheet(place, row(healthy)), "075")
    find(found, "subject '075' is not in", "which lists a")


def test_settings_as_json(healthy, place):
    config = read_config(CONFIG / "config.yaml")
    found = examine(config.model_dump_json(), write_sheet(place, row(healthy)), [])
    assert not found.faults


def test_a_faulty_variant_is_found(healthy, place):
    config = json.loads(read_config(CONFIG / "config.yaml").model_dump_json())
    config["variants"]["x"] = {"splat": {"control": {"radios": 1}}}
    found = examine(json.dumps(config), write_sheet(place, row(healthy)), [])
    sentence = "variant 'x': unknown setting 'splat.control.radios'; check its spelling."
    assert [fault.text for fault in found.faults if "radios" in fault.text] == [
        f"as given: {sentence}"
    ]


def test_published_weights_are_told_from_others(healthy, place):
    """A file is taken for the published one only if its digest is."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    found = Examination()
    good, bad = place / f"net-{digest[:8]}.pth", place / "net-00000000.pth"
    for path in (good, bad):
        path.write_bytes(content)
        weights = WeightFile(path, "https://somewhere", "MIT")
        examine_weights(found, weights, "do without", "missing", "wrong")
    assert [finding.status for finding in found.findings] == ["ok", "wrong"]


def test_the_estimate_of_the_disk():
    ingest = read_config(CONFIG / "config.yaml").capture.ingest
    # The whole subject of the docstring.
    assert bytes_to_write(ingest, 43_000) / 2**30 == pytest.approx(57, abs=1)
    found = Examination()
    examine_disk(found, Path("results"), 2**60)
    assert [finding.status for finding in found.findings] == ["wrong"]


def test_the_table_keeps_paths_whole():
    found = Examination()
    path = "/a/long/" + "x" * 120 + "/path.mp4"
    found.add("item", "wrong", f"{path} is broken; " + "do something about it " * 8)
    assert path in found.table()
    assert len(found.table().splitlines()) > 2


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="needs the rendered capture 901")
def test_the_rendered_capture_is_green_in_under_a_minute(place):
    shared = Path(os.environ["EAVATAR_SHARED"])
    sheet = write_sheet(
        place,
        f"901,{shared}/captures/901,{shared}/models/ict_bfm2017.h5,{shared}/landmarks/901,,,"
        f"{CONFIG / 'demo.yaml'}",
    )
    start = time.perf_counter()
    found = run(sheet)
    assert time.perf_counter() - start < 60
    assert [fault.text for fault in found.faults] == []
    assert sum("16 cameras ×" in finding.text for finding in found.findings) == 7


def test_weights_that_only_a_baseline_insists_on_are_looked_for(healthy, place):
    required = {"splat": {"lpips_required": False}, "havatar": {"lpips_required": True}}
    variants = {"havatar": {"method": "havatar"}}
    idle = overlay(place / "idle.yaml", **required)
    used = overlay(place / "used.yaml", **required, variants=variants)
    assert run(write_sheet(place, row(healthy, settings=idle)), "a").faults == []
    found = run(write_sheet(place, row(healthy, settings=used)), "a")
    find(found, "vgg16-397923af.pth does not exist")
