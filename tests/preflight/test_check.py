"""`check`: green on a healthy capture, all faults in one line and status 2 on a broken one."""

import shutil
from itertools import product
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import trimesh
import yaml

from eavatar.__main__ import main
from eavatar.capture.video import CameraFrames
from eavatar.preflight.subjects import COLUMNS
from eavatar.settings import GenerateSettings, merge, read_config
from tests.scenes import CONFIG
from tests.scenes.capture_faults import (
    FAULTS,
    with_a_damaged_last_frame,
    with_a_truncated_video,
    with_landmarks_of_too_few_frames,
    with_landmarks_of_too_many_frames,
    without_a_model,
    without_a_plate,
    without_a_video,
)
from tests.scenes.small_capture import (
    HEIGHT,
    SERIALS,
    WIDTH,
    grey_frames,
    matte_settings,
    world_to_camera,
    write_timed,
    write_video,
)
from tests.scenes.small_setup import SEQUENCES, write_subject
from tests.scenes.workflow import run as run_workflow


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject") / "074")


@pytest.fixture
def root(healthy, tmp_path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "074"))


def check(
    root: Path,
    mattes: Path | None = None,
    matting: str = "provided",
    prior: Path | None = None,
    **changes: object,
) -> int:
    config = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml")
    places = {
        "capture": root / "capture",
        "morphable-model": root / "model.h5",
        "landmarks": root / "landmarks",
        "output": root / "check.txt",
        **({} if mattes is None else {"mattes": mattes}),
        **({} if prior is None else {"mesh": prior}),
    }
    blocks = {
        "settings": config.capture.ingest.model_copy(update=changes),
        "matte-settings": config.capture.matte if mattes is None else matte_settings(matting),
        "landmark-settings": config.face.landmarks,
        "prior-settings": GenerateSettings(source="template" if prior is None else "provided"),
        "prior-run-settings": config.prior.run,
    }
    words = [f"--{name}={block.model_dump_json()}" for name, block in blocks.items()]
    words.append(f"--head-scale={list(config.face.fit.head_scale)}")
    words.append("--backbones={}")
    return main(["check", *words, *(f"--{name}={path}" for name, path in places.items())])


def test_a_healthy_capture_is_listed(root):
    assert check(root) == 0
    lines = (root / "check.txt").read_text().splitlines()
    assert any("FREE" in line and "3 cameras × 4 frames" in line for line in lines)
    assert not any("wrong" in line or "missing" in line for line in lines)


def test_inputs_that_the_chosen_backends_leave_out_are_told(root):
    assert check(root, mattes=root / "landmarks", matting="plate") == 0  # not even looked at
    told = " ".join((root / "check.txt").read_text().split())
    assert "landmarks is not used, as capture.matte.backend is 'plate'" in told


def test_videos_of_high_dynamic_range_are_told(root):
    path = root / "capture" / "sequences" / "FREE" / "images" / f"cam_{SERIALS[1]}.mp4"
    write_timed(path, grey_frames(4), range(4), transfer=18)
    assert check(root) == 0
    told = " ".join((root / "check.txt").read_text().split())
    assert f"1 of 9 videos have a high dynamic range, the first {path} (HLG)" in told  # 3 × 3


def head(name: str, root: Path, part: slice = slice(None)) -> Path:
    shape = trimesh.creation.icosphere(2)
    shape.update_faces(np.arange(len(shape.faces))[part])
    shape.export(root / name)
    return root / name


def test_a_head_mesh_that_is_provided_is_listed(root):
    assert check(root, prior=head("head.glb", root)) == 0
    assert "head.glb: 162 vertices" in " ".join((root / "check.txt").read_text().split())


@pytest.mark.parametrize(
    ("name", "part", "sentence"),
    [
        ("head.stl", slice(None), "its name must end in .ply, .obj, .glb"),
        ("head.ply", slice(1), "its vertices must be finite and not in a plane"),
    ],
)
def test_a_mesh_that_is_no_head_is_told_before_anything_runs(root, capsys, name, part, sentence):
    assert check(root, prior=head(name, root, part)) == 2
    assert sentence in message(capsys.readouterr().err)


def message(printed: str) -> str:
    """The message alone, without the progress bar before it."""
    return printed[printed.index("eavatar check:") :].strip()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_status_2(root, capsys, fault):
    sentence = fault(root)
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert sentence in printed
    assert "\n" not in printed
    assert "inputs are faulty" not in printed  # it alone
    assert not (root / "check.txt").exists()


def test_one_camera_is_told_before_anything_runs(root, capsys):
    assert check(root, cameras=SERIALS[:1]) == 2
    assert f"only camera {SERIALS[0]} is used" in message(capsys.readouterr().err)
    assert check(root, cameras=SERIALS[:2]) == 0
    assert "a third is needed" in (root / "check.txt").read_text().replace("\n", " ")


def test_all_faults_are_told_at_once(root, capsys):
    sentences = [
        without_a_video(root), with_a_truncated_video(root), with_a_damaged_last_frame(root),
        with_landmarks_of_too_few_frames(root), without_a_plate(root), without_a_model(root),
    ]  # fmt: skip
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert f"{len(sentences)} inputs are faulty" in printed
    assert all(sentence in printed for sentence in sentences)


def test_the_videos_that_differ_from_most_are_named(root, capsys):
    videos = root / "capture" / "sequences"
    small = [frame[::2, ::2] for frame in grey_frames(4)]
    first = write_video(videos / "FREE" / "images" / f"cam_{SERIALS[0]}.mp4", small)
    second = write_video(videos / "EXP-1-head" / "images" / f"cam_{SERIALS[1]}.mp4", grey_frames(5))
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert "2 inputs are faulty" in printed
    assert f"{first} has 110×160 pixels but most videos have 220×320" in printed
    assert f"{second} has 5 frames (skipped before: []) but most cameras of EXP-1-head" in printed


def test_the_video_whose_frame_rate_differs_from_most_is_named(root, capsys):
    folder = root / "capture" / "sequences" / "FREE" / "images"
    first = write_video(folder / f"cam_{SERIALS[0]}.mp4", grey_frames(4), rate=36)
    assert check(root) == 2
    printed = message(capsys.readouterr().err)
    assert "inputs are faulty" not in printed  # it alone
    assert f"{first} has 36 frames per second but other cameras of FREE have 73" in printed


@pytest.mark.parametrize(("factor", "status"), [(256, 0), (16, 2)])
def test_images_that_use_12_of_16_bits_are_told(root, capsys, factor, status):
    """OpenCV keeps the upper eight, which would be black."""
    for video in sorted((root / "capture" / "sequences" / "FREE" / "images").iterdir()):
        folder = video.with_suffix("")
        folder.mkdir()
        for number, (_, image) in enumerate(CameraFrames((video,)).decode()):
            cv2.imwrite(str(folder / f"{number}.png"), image.astype(np.uint16) * factor)
        video.unlink()
    assert check(root) == status
    told = f"{SERIALS[0]}/0.png has 16 bits but no value above 9"  # of 60 levels, as they came out
    assert (told in capsys.readouterr().err) == (status == 2)


# --- provided masks -----------------------------------------------------------------------------


def write_masks(
    folder: Path, count: int = 4, white: int | tuple[int, int, int] = 255, ground: int = 0
) -> Path:
    """Masks of all sequences, the person a block in the middle."""
    mask = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    mask[HEIGHT // 4 :, WIDTH // 4 : -WIDTH // 4] = white
    for sequence, serial in product(SEQUENCES, SERIALS):
        write_video(folder / sequence / f"cam_{serial}.mp4", [mask] * count)
    return folder


def faulty_masks(folder: Path, fault: str) -> Path:
    """Masks that all have one fault; the sentences stand beside the faults' names."""
    if fault == "longer":
        return write_masks(folder, 12)
    if fault == "shorter":
        return write_masks(folder, 3)
    if fault == "white where the person is not":
        return write_masks(folder, white=0, ground=255)
    if fault == "of values 0 and 1":
        return write_masks(folder, white=1)
    if fault == "in colour":
        return write_masks(folder, white=(220, 170, 140))
    write_masks(folder)
    for path in folder.glob("*/*.mp4"):  # the last packet, whose table of contents is whole
        with av.open(str(path)) as container:
            last = max(container.streams.video[0].index_entries, key=lambda entry: entry.pos)
            start, size = last.pos, last.size
        content = bytearray(path.read_bytes())
        content[start : start + size] = bytes(size)
        path.write_bytes(content)
    return folder


def test_fitting_masks_are_listed(root, tmp_path):
    assert check(root, write_masks(tmp_path / "masks")) == 0
    assert f"{tmp_path}/masks: 3 sequences" in (root / "check.txt").read_text()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("longer", "has 12 frames (skipped before: []) but the colour videos have 4"),
        ("shorter", "has 3 frames (skipped before: []) but the colour videos have 4"),
        ("white where the person is not", "0 of 255 in the middle and 255 in the upper corners"),
        ("of values 0 and 1", "give masks that are white, 255, where the person is"),
        ("in colour", "is in colour; give masks that are white, 255, where the person is"),
        ("with a damaged end", "the last frame of"),
    ],
)
def test_masks_that_do_not_fit_are_a_fault(root, tmp_path, capsys, fault, sentence):
    folder = faulty_masks(tmp_path / "masks", fault)
    assert check(root, folder) == 2
    printed = message(capsys.readouterr().err)
    assert "9 inputs are faulty" in printed  # three sequences of three cameras
    assert printed.count(sentence) == 9


@pytest.mark.parametrize(
    ("times", "status"), [(None, 0), (range(4), 0), ((0, 1, 3, 4), 0), ((0, 2, 3, 4), 2)]
)
def test_masks_of_videos_that_skip_a_frame_skip_the_same_or_none(root, tmp_path, times, status):
    """Masks as images have no times; of a video that was matted frame by frame they are even."""
    videos = root / "capture" / "sequences" / "FREE" / "images"
    for serial in SERIALS:
        write_timed(videos / f"cam_{serial}.mp4", grey_frames(4), (0, 1, 3, 4))
    masks = write_masks(tmp_path / "masks") / "FREE"
    for video in sorted(masks.iterdir()):
        images = [image for _, image in CameraFrames((video,)).decode()]
        if times:
            write_timed(video, images, times)
            continue
        video.with_suffix("").mkdir()
        for number, image in enumerate(images):
            cv2.imwrite(str(video.with_suffix("") / f"{number}.png"), image)
        video.unlink()
    assert check(root, tmp_path / "masks") == status


def test_masks_that_are_cropped_do_not_fit_raw_videos(root, tmp_path, capsys):
    for timestep, kind in product(range(4), ("image", "mask", "visible")):
        for serial in SERIALS:
            path = tmp_path / f"gha/images/{timestep:04d}/{kind}_{serial}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((64, 64, 3), 255, np.uint8))
            camera = tmp_path / f"gha/cameras/{timestep:04d}/camera_{serial}.npz"
            camera.parent.mkdir(parents=True, exist_ok=True)
            intrinsic = np.array([[200.0, 0, 32], [0, 200, 32], [0, 0, 1]])
            np.savez(camera, extrinsic=world_to_camera(0)[:3], intrinsic=intrinsic)
    assert check(root, tmp_path / "gha") == 2
    printed = message(capsys.readouterr().err)
    assert "gha is cropped and thinned out in time already, unlike the capture" in printed


def test_landmarks_and_masks_of_another_length_stop_the_workflow_before_anything_long(
    healthy, tmp_path
):
    """Nothing but the check has run, and both faults are told."""
    root = Path(shutil.copytree(healthy, tmp_path / "074"))
    sentences = [with_landmarks_of_too_many_frames(root), "has 12 frames"]
    write_masks(root / "masks", 12)
    settings = merge(
        yaml.safe_load((CONFIG / "demo.yaml").read_text()),
        {"capture": {"matte": {"backend": "provided"}}},
    )
    (root / "settings.yaml").write_text(yaml.safe_dump(settings))
    row = f"074,{root}/capture,{root}/model.h5,{root}/landmarks,{root}/masks,,{root}/settings.yaml"
    (tmp_path / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    (tmp_path / "config").symlink_to(CONFIG)
    status, printed = run_workflow(tmp_path, "results/074/metrics.csv")
    assert status != 0
    assert all(sentence in printed for sentence in sentences)
    assert not (tmp_path / "results/074/capture").exists()
