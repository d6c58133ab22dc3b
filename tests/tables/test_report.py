from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from eavatar.data.video import shrink_video, write_video
from eavatar.errors import UserError
from eavatar.io import Landmarks, read_arrays, write_arrays
from eavatar.tables.drawing import draw_contour, draw_points
from eavatar.tables.page import COLUMN_WIDTH, GRAPH_LETTERS, curve, stage_graph, table
from eavatar.tables.report import STAGES, report
from tests.scenes import ROOT
from tests.scenes.ball import Subject

RULES = ROOT / "workflow" / "rules"
BESIDE = {"demo_capture", "doctor"}  # rules that no subject of one's own needs
BESIDE |= {"measure_speed", "paper_table", "paper_figure", "reenact", "overview", "figures"}
BESIDE |= {"tables"}  # of all


class Balanced(HTMLParser):
    """Checks that elements close in order."""

    VOID = frozenset({"meta", "img", "rect", "path", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report("ball", "full", subject.results, path)
    return path.read_text()


def test_page_is_whole_and_self_contained(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert len(page) < 6e6


def test_page_holds_the_videos_of_others_moving_the_avatar(
    subject: Subject, tmp_path: Path
) -> None:
    video = tmp_path / "ball_other_FREE.mp4"
    write_video(video, [np.zeros((64, 128, 3), np.uint8)] * 2, 24, "yuv420p", "30")
    sheet = video.with_suffix(".jpg")
    with pytest.raises(UserError, match="contact sheet is missing"):
        report("ball", "full", subject.results, tmp_path / "report.html", reenactments=[video])
    cv2.imwrite(str(sheet), np.zeros((64, 128, 3), np.uint8))
    path = report("ball", "full", subject.results, tmp_path / "report.html", reenactments=[video])
    part = path.read_text().split("<h2>Reenactment</h2>")[1].split("<h2>")[0]
    assert "moved by other_FREE" in part
    embedded = re.findall(r'<video [^>]*src="data:video/mp4;base64,([^"]*)"', part)
    assert [base64.b64decode(text) for text in embedded] == [video.read_bytes()]
    assert part.count("<img ") == 1


def test_a_large_video_becomes_small_on_the_page(tmp_path: Path) -> None:
    """As wide as it was for its height, as long, and with the same colours."""
    colour, video = (200, 120, 40), tmp_path / "large.mp4"
    frames = [np.full((600, 1200, 3), colour, np.uint8)] * 3
    write_video(video, frames, 24, "yuv420p", "14")
    (tmp_path / "small.mp4").write_bytes(shrink_video(video, 320))
    with av.open(str(tmp_path / "small.mp4")) as container:
        assert container.streams.video[0].average_rate == 24
        small = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in small] == [(320, 640, 3)] * 3
    assert np.abs(small[1].astype(int) - colour).max() <= 4  # encoded twice, half the colours


def test_page_counts_failed_masks(page: str) -> None:
    text = re.sub(r"<[^>]*>", " ", page)
    assert re.search(r"sequence\s+timesteps\s+views\s+failed masks", text)
    assert re.search(r"EXP-1-head\s+2\s+8\s+1\s", text)
    assert re.search(r"FREE\s+3\s+12\s+1\s", text)


def test_page_shows_how_far_the_detections_bear_out_the_fit(page: str) -> None:
    text = re.sub(r"<[^>]*>", " ", page.split("Quality of the fit")[1].split("Prior and")[0])
    flags = r"ok\s+few cameras\s+interpolated\s+large residual\s+ok \(%\)"
    assert re.search(rf"sequence\s+timesteps\s+{flags}", text)
    assert re.search(r"EXP-1-head\s+2\s+2\s+0\s+0\s+0\s+100\s", text)
    assert re.search(r"FREE\s+3\s+1\s+1\s+1\s+0\s+33\s", text)
    assert re.search(r"222200030\s+5\s+0\.50", text)


def test_a_sequence_whose_name_is_a_number_keeps_its_zeros(
    subject: Subject, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(subject.results, results)
    quality = results / "face" / "fit" / "quality.csv"
    quality.write_text("sequence,timestep,flag\n001,0,ok\n")
    path = report("ball", "full", results, tmp_path / "report.html")
    part = path.read_text().split("Quality of the fit")[1]
    assert re.search(r"001\s+1\s+1\s+0\s+0\s+0\s+100\s", re.sub(r"<[^>]*>", " ", part))


def test_page_shows_every_stage(page: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Truth, render, error",
        "Regions",
        "Pipeline",
        "Capture",
        "Face",
        "Quality of the fit",
        "Prior and stage I",
        "Stage I: training",
        "Stage II: training",
        "Run",
    ]
    # strips, regions, sheets, sequences, reprojections, shapes
    assert page.count("<img") == 4 + 1 + 2 + 2 + 1 + 5
    assert "Confidence 0.90, accepted; prior and face are 2.0 mm apart" in page
    assert "gaussians: 12 at the end" in page
    assert "dB</b>gain from expression" in page


def test_a_generated_prior_is_shown_with_its_image_and_numbers(
    subject: Subject, tmp_path: Path
) -> None:
    """The image lies beside the record: green, but for a hole, through which grey is seen."""
    image = np.full((40, 40, 4), (0, 200, 0, 255), np.uint8)
    image[10:30, 10:30, 3] = 0
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/front.png"), image)
    view = {"name": "front", "image": "images/front.png", "sequence": "EXP-1-head", "timestep": 7}
    record = {
        "asked": {
            "source": "trellis",
            "settings": {"seed": 3},
            "views": [{**view, "camera": "222200037", "degrees_off": 4.2, "size": 40}],
        },
        "mesh": {"vertices": 126368, "faces": 250708, "watertight": False},
        "run": {"seconds": 12.5, "device": "a GPU", "peak_gpu_memory_gib": 9.5},
    }
    (tmp_path / "generation.json").write_text(json.dumps(record))
    path = tmp_path / "report.html"
    report("ball", "full", subject.results, path, tmp_path / "generation.json")
    part = path.read_text().split("Generated prior")[1].split("Prior and stage I")[0]
    assert "EXP-1-head, timestep 7, camera 222200037, 4° off; 40 pixels" in part
    assert re.search(r"trellis</td><td>3</td><td>126368</td><td>250708</td><td>no</td>", part)
    data = base64.b64decode(re.findall(r"base64,([^\"]*)", part)[0])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(shown[20, 20], [128, 128, 128], atol=6)  # JPEG
    np.testing.assert_allclose(shown[3, 3], [0, 200, 0], atol=6)


def test_a_camera_out_of_place_is_seen(page: str, subject: Subject, tmp_path: Path) -> None:
    """Its detections lie 8 pixels beside the landmarks of the fit: red lines join them."""

    def count_red(text: str) -> int:
        part = text.split("Quality of the fit")[1].split("Prior and stage I")[0]
        data = base64.b64decode(re.findall(r"base64,([^\"]*)", part)[0])
        sheet = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
        return int((sheet[..., 2] > sheet[..., :2].max(axis=-1) + 50).sum())

    results = tmp_path / "results"
    shutil.copytree(subject.results, results)
    path = results / "face" / "landmarks" / "FREE.npz"
    found = read_arrays(Landmarks, path)
    found.points[:, 0, :, 0] += 8
    write_arrays(path, found)
    report("ball", "full", results, tmp_path / "report.html")
    assert count_red((tmp_path / "report.html").read_text()) > count_red(page) + 50


def test_the_pipeline_shown_is_the_workflow() -> None:
    for stage, rules in STAGES:
        written = re.findall(r"^rule (\w+):", (RULES / f"{stage}.smk").read_text(), re.MULTILINE)
        assert [name for name in written if name not in BESIDE] == list(rules), stage
    beside = {"common", "baselines"}  # the latter for variants of such a method
    assert {path.stem for path in RULES.glob("*.smk")} - beside == set(dict(STAGES))


def test_all_variants_are_in_the_table(subject: Subject, tmp_path: Path) -> None:
    shutil.copytree(subject.results, tmp_path / "results")
    table = tmp_path / "results" / "metrics.csv"
    with table.open("a") as file:
        file.write("ball,015,self_reenactment,4,11,inf,1.000000,\n")  # no avatar: one protocol
    report("ball", "full", tmp_path / "results", tmp_path / "report.html")
    text = re.sub(r"<[^>]*>", " ", (tmp_path / "report.html").read_text())
    assert re.search(r"015\s+self_reenactment\s+4\s+11\s+∞\s+1\.0000\s+–", text)
    assert "nan" not in text.split("Truth, render, error")[0]


def test_a_camera_may_have_underscores(subject: Subject, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(subject.results, results)
    for path in (results / "tables" / "full" / "pictures").glob("*.png"):
        path.rename(path.with_stem(f"{path.stem}_left"))
    page = report("ball", "full", results, tmp_path / "report.html").read_text()
    assert re.search(r"FREE, timestep \d, camera \d{9}_left", page)


def test_leftovers_of_earlier_choices_are_not_shown(subject: Subject, tmp_path: Path) -> None:
    """Of a sequence that was taken out of the sheet, and of a variant that was removed."""
    results = tmp_path / "results"
    shutil.copytree(subject.results, results)
    for folder in ("capture", "capture/masks"):
        shutil.copyfile(results / folder / "FREE.csv", results / folder / "GONE.csv")
    shutil.copyfile(results / "face/tracking/FREE.npz", results / "face/tracking/GONE.npz")
    for job in ("ingest/GONE", "ingest/FREE", "train_splat/gone", "train_splat/full"):
        path = results / "benchmarks" / f"{job}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tmax_rss\n{1000 if 'one' in job.lower() else 1}\t5\n")
    report("ball", "full", results, tmp_path / "report.html")
    text = re.sub(r"<[^>]*>", " ", (tmp_path / "report.html").read_text())
    assert "GONE" not in text
    assert re.search(r"ingest\s+1\s+1\s+5", text)
    assert re.search(r"train_splat\s+1\s+1\s+5", text)


def test_missing_input_is_one_sentence(subject: Subject, tmp_path) -> None:
    with pytest.raises(UserError, match="has no variant 'none'"):
        report("ball", "none", subject.results, tmp_path / "report.html")


def test_overlays() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    outlined = draw_contour(image, mask, (0, 255, 0))
    assert outlined[10, 20, 1] > 100
    assert outlined[20, 20].tolist() == [0, 0, 0]
    dotted = draw_points(image, np.array([[20.5, 5.5]]), (255, 0, 0))
    assert dotted[5, 20, 0] == 255
    assert image.max() == 0


def test_the_name_of_each_rule_fits_into_its_box() -> None:
    """Letters of DejaVu Sans, wider than most, are 0.6 of their size on average."""
    longest = max(len(rule) for _, rules in STAGES for rule in rules)
    assert 0.6 * GRAPH_LETTERS * longest < COLUMN_WIDTH - 6


def test_curve_of_a_constant_and_graph() -> None:
    steps = np.arange(1000.0)
    assert "nan" not in curve("rgb", steps, np.ones(1000))
    assert "nan" not in curve("rgb", np.zeros(1), np.ones(1))
    graph = stage_graph([("a", ["x", "y"]), ("b", ["z"]), ("c", [])], [("a", "c")])
    assert graph.count("marker-end") == 1 + 2 + 1


def test_the_arrow_of_a_column_head_stays_on_the_line_of_its_word() -> None:
    rows = pd.DataFrame({"variant": ["full"], "LPIPS of all ↓": ["0.1"], "PSNR ↑": ["30"]})
    heads = re.findall("<th>(.*?)</th>", table(rows))
    assert heads == ["variant", "LPIPS of all\N{NO-BREAK SPACE}↓", "PSNR\N{NO-BREAK SPACE}↑"]
