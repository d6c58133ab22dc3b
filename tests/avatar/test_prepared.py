"""A prepared avatar draws what it drew before, until it changes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.gaussians import Generated
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.avatar.shading import Shading
from tests.scenes.carrier import carrier, face_landmarks
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import make_camera

POSE = torch.tensor([0.1, -0.3, 0.05, 0.01, 0.02, -0.03])
EXPRESSION_SETS = torch.tensor([[0.0, 0, 0], [0.5, -1.0, 2.0], [-1.5, 0.3, 0.7]])
VARIANTS = {
    "as trained by default": {},
    "without base motion": {"base": False},
    "without controls": {"control": {"enabled": False}},
    "controls from the neutral expression": {"control": {"from_neutral": True}},
    "without shading": {"shading": False},
    "with appearance": {"appearances": 2},
    "without base motion, from the neutral expression": {
        "base": False,
        "control": {"from_neutral": True},
    },
}


def variant(
    base: bool = True,
    shading: bool = True,
    appearances: int = 0,
    control: dict[str, Any] | None = None,
) -> Avatar:
    avatar = make_avatar(appearances=appearances)
    changes = avatar.settings.control.model_copy(update=control or {})
    update = {"control": changes, "shading": shading}
    avatar.settings = avatar.settings.model_copy(update=update)
    mesh, basis = carrier()
    avatar.generator.base = BaseMotion.of(mesh, basis, face_landmarks()) if base else None
    avatar.generator.shading = Shading() if shading else None
    if shading:
        torch.nn.init.normal_(avatar.generator.shading.light, std=0.1)
    avatar.appearance_by_expression.normal_()
    avatar.generator.torso.step.data = torch.tensor([-0.2, 0.3])
    avatar.sort_by_expression_weight()  # has the arrangement made anew
    return avatar


def draw(avatar: Avatar, expression: Tensor) -> tuple[Tensor, Generated]:
    cameras = CameraBatch.of([make_camera(10).resize(SIZE, SIZE)], avatar.device)
    with torch.no_grad():
        drawn = avatar(expression, POSE, cameras)
    return drawn.fine, drawn.generated


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_prepared_avatar_draws_the_same_at_any_expression(changes: dict[str, Any]) -> None:
    avatar = variant(**changes)
    plain = [draw(avatar, expression) for expression in EXPRESSION_SETS]
    assert (plain[0][0] - plain[1][0]).abs().max() > 0.01  # the expression is seen at all
    if avatar.settings.control.enabled:
        assert any(generated.controls.any() for _, generated in plain)
    avatar.prepare()
    for expression, (image, generated) in zip(EXPRESSION_SETS, plain, strict=True):
        prepared, again = draw(avatar, expression)
        # Sums of some dozens of float32 products in another order.
        torch.testing.assert_close(prepared, image, rtol=0, atol=1e-5)
        for field in fields(generated.gaussians):
            values = (getattr(each.gaussians, field.name) for each in (again, generated))
            torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5, msg=field.name)
        assert torch.equal(again.controls, generated.controls)


def test_the_canonical_gaussians_are_the_same() -> None:
    avatar = variant()
    with torch.no_grad():
        plain = avatar.deform(EXPRESSION_SETS[1], POSE)
        prepared = avatar.prepare().deform(EXPRESSION_SETS[1], POSE)
    torch.testing.assert_close(prepared.points, plain.points, rtol=0, atol=1e-5)


def test_nothing_moves_from_neutral_at_the_neutral_expression() -> None:
    """What is subtracted is rounded as what it is subtracted from."""
    avatar = variant(base=False, control={"from_neutral": True}).prepare()
    with torch.no_grad():
        assert not avatar.generate(torch.zeros(EXPRESSIONS), POSE).displacements.any()


def test_gradients_reach_the_networks_of_a_prepared_avatar() -> None:
    avatar = variant().prepare()
    avatar.generate(EXPRESSION_SETS[1], POSE).gaussians.means.sum().backward()
    assert avatar.generator.drivers.expression_deformation.layers[0].weight.grad is not None
    assert avatar.neutral.positions.grad is not None


def test_what_was_prepared_is_forgotten_when_the_gaussians_change() -> None:
    for change in (
        lambda avatar: avatar.sort_by_expression_weight(),
        lambda avatar: avatar.double().float(),
        lambda avatar: avatar.resize(100),
    ):
        avatar = variant().prepare()
        torch.nn.init.normal_(avatar.neutral.features)
        seen, _ = draw(avatar, EXPRESSION_SETS[1])
        change(avatar)
        torch.nn.init.normal_(avatar.neutral.positions, std=0.3)
        torch.nn.init.normal_(avatar.neutral.features)
        image, generated = draw(avatar, EXPRESSION_SETS[1])
        assert len(generated.controls) == len(avatar.neutral)
        assert not torch.equal(image, seen)
        prepared, _ = draw(avatar.prepare(), EXPRESSION_SETS[1])
        torch.testing.assert_close(prepared, image, rtol=0, atol=1e-5)
