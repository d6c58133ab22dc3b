"""A training whose views are split over processes: the same as in one."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from eavatar.__main__ import main
from eavatar.training.parallel import sum_over_processes
from tests.scenes.splat_scene import write_subject
from tests.splat.test_splat_train import ALL_IN_BETWEEN, folders, small_settings, training


def train(subject: Path, output: Path, gpus: int) -> int:
    """Exit status of `train-splat`, with splits by displacement and by error."""
    settings = small_settings(**ALL_IN_BETWEEN, run={"gpus": gpus}).model_dump_json()
    names = ("--capture", "--face", "--sdf")
    places = [str(word) for pair in zip(names, folders(subject), strict=True) for word in pair]
    words = ["--settings", settings, "--seed", "0", *places, "--output", str(output)]
    return main(["train-splat", *words])


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject"))


def test_two_processes_learn_what_one_does(subject: Path, tmp_path: Path) -> None:
    """A view each, by gloo. Sums are in another order, which Adam amplifies where gradients are
    next to nothing: on some processors a few parameters differ by more than the rest. Eight steps
    move a parameter by up to 0.04."""
    for gpus in (1, 2):
        assert train(subject, tmp_path / str(gpus), gpus) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    assert len(one["neutral.positions"]) > 1600  # of 1550
    differences = {name: (values - two[name]).abs() for name, values in one.items()}
    for name, values in one.items():
        assert (differences[name] <= 0.01 + 1e-4 * values.abs()).all(), name
    every = torch.cat([difference.flatten() for difference in differences.values()])
    assert (every > 1e-3).float().mean() < 1e-3
    logs = [pd.read_csv(tmp_path / name / "log.csv") for name in ("1", "2")]
    assert (logs[0]["loss"] - logs[1]["loss"]).abs().max() < 1e-5
    record = json.loads((tmp_path / "2" / "provenance.json").read_text())
    assert record["settings"]["settings"]["run"]["gpus"] == 2


def test_the_shares_of_all_processes_add_up_to_one(
    subject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the padding of the crop is wider in some cameras than in others."""
    task = training(subject, small_settings())
    task.areas[:] = [1.0, 0.75, 0.25]
    whole = task._shares(3)
    assert whole.tolist() == [1, 1, 1]
    parts = []
    for rank in range(2):
        monkeypatch.setenv("EAVATAR_PROCESS", f"{rank}/2 nowhere")
        parts.append(task._shares(3))
    task.close()
    assert (parts[0] + parts[1]).tolist() == pytest.approx([1, 1, 1])
    assert parts[0][0] != parts[1][0]


def test_a_process_by_itself_has_the_sums_already() -> None:
    values = torch.arange(3.0)
    sum_over_processes([values])
    assert values.tolist() == [0, 1, 2]
