"""The fused kernel against the layers that it takes the place of."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eavatar.avatar.drivers import POSE_SIZE, ConditionedMLP
from eavatar.avatar.networks import encoded_size
from eavatar.avatar.prepared import PreparedNetworks
from eavatar.rendering.splatting import Gaussians
from eavatar.training.graphs import Captured
from tests.scenes.small_avatar import EXPRESSIONS, make_avatar

FLOAT16 = 1e-3  # a relative error: of rounding to 11 bits in each of at most six layers
POSE = encoded_size(POSE_SIZE)
FIELDS = fields(Gaussians)
# As of config/config.yaml: inputs of a point, numbers of the condition, units.
NETWORKS = {
    "expression_colour": (128, 64, [256, 256, 32]),
    "expression_colour with more coefficients": (128, 110, [256, 256, 32]),
    "expression_deformation": (27, 64, [256, 256, 256, 256, 256, 3]),
    "expression_attributes": (128, 64, [256, 256, 256, 8]),
    "pose_colour": (128, POSE, [128, 32]),
    "pose_deformation": (27, POSE, [256, 256, 3]),
    "pose_attributes": (128, POSE, [128, 8]),
    "of the demo": (32, 16, [64, 64, 64, 8]),
    "no power of two": (20, 5, [100, 33, 3]),
}


def test_the_interpreted_kernel_gives_what_the_layers_give() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.scenes.fused_networks"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    wrong = {name: error for name, error in errors.items() if not error < FLOAT16}
    assert len(errors) == 8 and not wrong


@torch.no_grad()
def errors_of(network: ConditionedMLP, points: Tensor, condition: Tensor) -> tuple[float, float]:
    """Relative errors against float32 of the fused kernel and of layers in bfloat16."""
    from eavatar.avatar.fused import FusedDriver, FusedMLP, can_fuse

    assert can_fuse(network, points.shape[1])
    driver = FusedMLP.of(network, points)
    joined = FusedDriver.of([driver])
    fused = driver(torch.addmv(joined.biases, joined.of_condition, condition))
    with torch.autocast("cuda", torch.bfloat16):
        layers = network(points.bfloat16(), condition).float()
    expected = network(points, condition)
    assert fused.shape == expected.shape
    norm = expected.norm()
    return ((fused - expected).norm() / norm).item(), ((layers - expected).norm() / norm).item()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 1000, 100_037])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_as_precise_as_its_layers(name: str, count: int) -> None:
    inputs, conditions, units = NETWORKS[name]
    torch.manual_seed(0)
    network = ConditionedMLP([inputs + conditions, *units]).cuda()
    points = torch.randn(count, inputs, device="cuda")
    fused, layers = errors_of(network, points, torch.randn(conditions, device="cuda"))
    # One point alone may be rounded more favourably one way or the other.
    assert fused < (1.5 * layers if count > 1 else 0.05), f"{name}: {fused}, layers {layers}"


@pytest.mark.gpu
def test_a_driver_without_points_gives_nothing() -> None:
    from eavatar.avatar.fused import FusedMLP

    network = ConditionedMLP([8, 32, 32, 3]).cuda()
    driver = FusedMLP.of(network, torch.zeros(0, 5, device="cuda"))
    assert driver(driver.biases).shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_prepared_avatar_is_as_precise_as_one_with_layers(compiled: bool) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the kernel is for Hopper")
    avatar = make_avatar().cuda()
    # Without propagation: a control is one or not, and a rounding may decide.
    control = avatar.settings.control.model_copy(update={"enabled": False, "from_neutral": True})
    avatar.settings = avatar.settings.model_copy(update={"control": control})

    @torch.no_grad()
    def generate(expression: Tensor, pose: Tensor) -> dict[str, Tensor]:
        generated = avatar.generate(expression, pose)
        values = {each.name: getattr(generated.gaussians, each.name) for each in FIELDS}
        return values | {"displacements": generated.displacements}

    torch.manual_seed(0)
    pose = torch.tensor([0.1, -0.3, 0.05, 0.01, 0.02, -0.03], device="cuda")
    expressions = torch.randn(3, EXPRESSIONS, device="cuda")
    exact = [generate(expression, pose) for expression in expressions]
    avatar.mixed_precision = True
    layers = [generate(expression, pose) for expression in expressions]
    avatar.prepare()
    assert isinstance(avatar._prepared, PreparedNetworks)
    assert type(avatar._prepared.by_pose).__name__ == "FusedDriver"
    if compiled:
        avatar.generator.compile(dynamic=False)
    captured = Captured(generate, expressions[0], pose)
    for expression, values, rounded in zip(expressions, exact, layers, strict=True):
        found = captured(expression, pose)
        for name, value in values.items():
            error, allowed = ((each[name] - value).norm() for each in (found, rounded))
            assert error <= 1.5 * allowed + 1e-6 * value.norm(), f"{name}: {error}, {allowed}"
