"""Pixels at random: where they lie, and what is found there."""

from __future__ import annotations

import torch

from eavatar.baselines.pixels import choose_pixels, look_up, pixel_centres, squared_error


def person() -> torch.Tensor:
    """Two images of 20 × 30 pixels: somebody in columns 8 to 11 and rows 3 to 12, and nobody."""
    mask = torch.zeros(2, 20, 30, dtype=torch.bool)
    mask[0, 3, 11] = mask[0, 12, 8] = True
    return mask


def test_the_wanted_fraction_lies_in_the_box_around_the_person():
    torch.manual_seed(0)
    chosen = choose_pixels(person(), 1000, 0.75)
    assert chosen.shape == (2, 1000, 2) and chosen.dtype == torch.int64
    columns, rows = chosen[0, :750].unbind(dim=-1)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (8, 11, 3, 12)
    columns, rows = chosen[0, 750:].unbind(dim=-1)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (0, 29, 0, 19)


def test_where_nobody_is_seen_pixels_lie_anywhere():
    torch.manual_seed(0)
    columns, rows = choose_pixels(person(), 2000, 0.9)[1].unbind(dim=-1)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (0, 29, 0, 19)


def test_values_are_those_of_the_columns_and_rows():
    images = torch.arange(2 * 4 * 5 * 3).view(2, 4, 5, 3)
    pixels = torch.tensor([[[0, 0], [4, 1]], [[2, 3], [1, 0]]])
    found = look_up(images, pixels)
    assert torch.equal(found[0, 1], images[0, 1, 4]) and torch.equal(found[1, 0], images[1, 3, 2])


def test_centres_go_row_by_row():
    assert pixel_centres(2, torch.device("cpu")).tolist() == [
        [0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5],
    ]  # fmt: skip


def test_what_is_not_visible_does_not_count():
    truth = torch.zeros(1, 2, 3)
    prediction = torch.tensor([[[0.5, 0.5, 0.5], [9.0, 9, 9]]])
    visible = torch.tensor([[[1.0], [0.0]]])
    assert squared_error(prediction, truth, visible) == 0.25
    assert squared_error(prediction, truth, torch.zeros(1, 2, 1)) == 0
