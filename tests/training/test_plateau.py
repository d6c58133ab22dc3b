"""When a training is over whose held-back frames no longer improve."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eavatar.data.frames import FrameSet
from eavatar.settings import PlateauSettings
from eavatar.training.optimiser import AveragingAdam, FallingRates
from eavatar.training.plateau import Plateau, hold_back, mean_squared_error
from tests.scenes.splat_scene import write_subject

SETTINGS = PlateauSettings(enabled=True, images=3, every=10, gain=0.1)


def look(plateau: Plateau, made: int, psnr: float) -> None:
    plateau.look(made, [torch.tensor(10 ** (-psnr / 10))] * 2)


def run(gains: float, steps: int, fall: float = 0.25) -> tuple[Plateau, int]:
    """Looks at what rises by so many dB when the steps double; the steps made."""
    plateau, made = Plateau(SETTINGS, steps, fall), 0
    while made < plateau.end:
        made += 1
        if plateau.is_due(made):
            look(plateau, made, 20 + gains * math.log2(made) if made < 200 else 20.0)
    return plateau, made


def test_goes_on_while_it_improves() -> None:
    plateau, made = run(1.0, steps=150)  # 0.42 dB in each last quarter
    assert plateau.found is None and made == 150


def test_ends_a_fall_after_the_last_quarter_brought_too_little() -> None:
    plateau, made = run(0.2, steps=1000)  # 0.08 dB in each last quarter
    assert plateau.found == 40  # four looks are the fewest
    assert made == plateau.end == 50


def test_makes_all_steps_where_nothing_could_be_held_back(tmp_path: Path) -> None:
    write_subject(tmp_path, views=1)
    frames = FrameSet.read(tmp_path / "capture", tmp_path / "face", "train", 32)
    kept, pairs = hold_back(frames, 3)
    assert pairs == [] and kept.usable.all()
    plateau = Plateau(SETTINGS, 100, 0.25)
    for made in range(10, 100, 10):
        plateau.look(made, [])
    assert plateau.found is None and (plateau.begin, plateau.end) == (80, 100)


def test_an_end_without_a_fall_is_at_once() -> None:
    assert run(0.2, steps=1000, fall=0)[1] == 40


def test_the_rates_fall_in_the_last_steps_where_no_plateau_is_found() -> None:
    plateau = Plateau(SETTINGS, 1000, 0.25)
    assert (plateau.begin, plateau.end) == (800, 1000)


def test_a_late_plateau_does_not_lengthen_the_training() -> None:
    plateau = Plateau(SETTINGS, 100, 0.25)
    for made in range(60, 100, 10):
        look(plateau, made, 20)
    assert plateau.found == 90 and (plateau.begin, plateau.end) == (80, 100)


def test_without_it_the_rates_fall_over_all_steps() -> None:
    plateau = Plateau(SETTINGS.model_copy(update={"enabled": False}), 100, 0.25)
    assert (plateau.begin, plateau.end) == (0, 100) and not plateau.is_due(10)


def test_goes_on_from_its_state() -> None:
    first, again = Plateau(SETTINGS, 1000, 0.25), Plateau(SETTINGS, 1000, 0.25)
    for made in (10, 20, 30):
        look(first, made, 20)
    again.restore(first.state())
    assert again.looks == first.looks and again.found is None
    look(again, 40, 20)
    assert again.found == 40
    first.restore(again.state())
    assert first.end == again.end == 50


def test_rates_stay_and_then_fall_to_their_end() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = AveragingAdam([{"params": [parameter], "lr": 0.1}], 0, capturable=False)
    rates = FallingRates(optimiser, 0.01, 100)
    rates.begin, rates.end = 80, 100
    found = []
    for step in (0, 80, 90, 100):
        rates.set_step(step)
        found.append(optimiser.param_groups[0]["lr"])
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_held_back_frames_are_not_trained_on(tmp_path: Path) -> None:
    subject = write_subject(tmp_path)
    frames = FrameSet.read(subject / "capture", subject / "face", "train", 64)
    kept, pairs = hold_back(frames, 3)
    assert len({timestep for timestep, _ in pairs}) == len(pairs) == 3
    assert all(frames.usable[pair] and not kept.usable[pair] for pair in pairs)
    assert kept.usable.sum() == frames.usable.sum() - 3
    assert kept.usable.any(axis=1).all()


def test_the_error_counts_visible_pixels_only() -> None:
    images = torch.zeros(1, 2, 2, 3)
    truth = images.clone()
    truth[0, 0, 0], truth[0, 1, 1] = 0.5, 1.0
    weight = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert mean_squared_error(images, truth, weight).item() == pytest.approx(0.125)
