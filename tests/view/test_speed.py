"""How fast an avatar is drawn and how long it trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eavatar.__main__ import main
from eavatar.avatar.files import write_model
from eavatar.baselines.nerface import NeRFace, NerfaceModelSettings
from eavatar.settings import read_config
from eavatar.view.speed import measure_speed, read_rate
from tests.scenes import CONFIG, ROOT
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import write_results

BENCHMARK = "s\th:m:s\n{}\t0:00:00\n"
# Half a minute to compile, a checkpoint before step 30; ten steps a second otherwise.
LOG = "step,seconds,loss\n0,30,1\n10,31,1\n20,32,1\n30,38,1\n40,39,1\n45,39.5,1\n"


def measure(results: Path, *benchmarks: Path) -> dict[str, object]:
    output = results / "tables/full/speed.json"
    log = results / "splat/full/log.csv"
    log.write_text(LOG)
    words = [
        "--method",
        "avatar",
        "--source",
        results / "splat/full",
        "--log",
        log,
        "--cameras",
        results / "capture/cameras.json",
    ]
    words += ["--tracking", results / "face/tracking/FREE.npz"]
    words += ["--benchmarks", *benchmarks, "--output", output]
    assert main(["measure-speed", *map(str, words)]) == 0
    content: dict[str, object] = json.loads(output.read_text())
    return content


def test_speed_and_training_time_are_written_with_the_hardware(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    benchmarks = [tmp_path / "sdf.tsv", tmp_path / "splat.tsv"]
    for path, seconds in zip(benchmarks, (1800, 5400), strict=True):
        path.write_text(BENCHMARK.format(seconds))
    content = measure(results, *benchmarks)
    assert content["training_hours"] == pytest.approx(2)
    assert content["steps_per_second"] == pytest.approx(10)
    assert content["image_size"] == SIZE
    assert content["gaussians"] == len(make_avatar().neutral)
    assert 1 < content["frames_per_second"] < 1e5  # type: ignore[operator]
    assert content["hardware"]
    benchmarks[1].unlink()  # of one stage alone there is no time of a training
    assert measure(results, *benchmarks)["training_hours"] is None


@pytest.mark.parametrize("log", ["step,seconds\n0,1\n", "step,loss\n0,1\n10,1\n"])
def test_a_log_of_one_row_or_without_times_has_no_rate(tmp_path: Path, log: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(log)
    assert read_rate(path) is None


def test_a_baseline_is_timed_as_evaluate_asks_for_its_images(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    content = read_config(CONFIG / "config.yaml", ROOT / "tests/tiny.yaml").nerface.model_dump()
    kept = {name: content[name] for name in NerfaceModelSettings.model_fields if name in content}
    settings = NerfaceModelSettings(**kept, expression_size=EXPRESSIONS, scale=0.1)
    model = NeRFace(settings)
    folder = results / "nerface/nerface"
    write_model(folder, {"nerface": settings}, model.state_dict(), "nerface.learning_rate")
    (folder / "log.csv").write_text(LOG)
    output = tmp_path / "speed.json"
    measure_speed(
        "nerface",
        folder,
        folder / "log.csv",
        results / "face/tracking/FREE.npz",
        results / "capture/cameras.json",
        [],
        output,
    )
    content = json.loads(output.read_text())
    assert content["gaussians"] is None and content["image_size"] == settings.image_size
    assert content["frames_per_second"] > 0.5 and content["steps_per_second"] == pytest.approx(10)
