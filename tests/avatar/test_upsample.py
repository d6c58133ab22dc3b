"""The upsamplers: interpolation and its adjoint, starting points, locality, cost, compilation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import instance_norm, interpolate

from eavatar.avatar.upsample import (
    PublishedUpsampler,
    SubPixelUpsampler,
    make_upsampler,
    stretch_by_gathering,
    stretch_by_shifts,
)
from eavatar.settings import SplatSettings, read_config

STRETCHES = [stretch_by_shifts, stretch_by_gathering]
MODES = [(1, False), (2, False), (3, False), (4, False), (2, True)]


def reference(images: torch.Tensor, factor: int, align_corners: bool) -> torch.Tensor:
    """PyTorch's bilinear interpolation of (C, H, W, D)."""
    size = [factor * images.shape[1], factor * images.shape[2]]
    planes = images.permute(0, 3, 1, 2)
    large = interpolate(planes, size, mode="bilinear", align_corners=align_corners)
    return large.permute(0, 2, 3, 1)


@pytest.mark.parametrize(("factor", "align_corners"), MODES)
@pytest.mark.parametrize("size", [(1, 2), (5, 8), (16, 3)])
def test_stretching_and_its_gradient_are_those_of_interpolate(factor, align_corners, size):
    torch.manual_seed(0)
    images = torch.rand(2, *size, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = (f(images, factor, align_corners) for f in (stretch_by_shifts, reference))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    gathered = stretch_by_gathering(images, factor, align_corners)
    torch.testing.assert_close(gathered, theirs, rtol=0, atol=1e-13)
    weights = torch.rand_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), images)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("factor", "align_corners"), [(4, False), (2, True)])
def test_stretching_passes_gradcheck(factor, align_corners):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stretch_by_shifts(x, factor, align_corners), images)


@pytest.mark.parametrize("ours", STRETCHES)
def test_stretching_is_exact_at_full_size(ours):
    """float32 positions would be off by 1e-4 pixels here, which a step of 1 a pixel shows."""
    ramp = torch.arange(1024.0)[None, :, None, None]
    places = torch.arange(2048, dtype=torch.float64) * 1023 / 2047
    large = ours(ramp, 2, align_corners=True)[0, :, 0, 0]
    torch.testing.assert_close(large.double(), places, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("ours", STRETCHES)
def test_stretching_keeps_half_precision_and_refuses_what_it_cannot(ours):
    assert ours(torch.ones(1, 2, 2, 3, dtype=torch.bfloat16), 4, False).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="factor of 2"):
        ours(torch.ones(1, 2, 2, 3), 4, align_corners=True)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_starts_as_bilinear_interpolation(factor):
    torch.manual_seed(0)
    features = torch.rand(2, 10, 12, 5)
    fine = SubPixelUpsampler(5, 8, factor)(features)
    assert torch.equal(fine, reference(features[..., :3], factor, False))
    assert fine.shape == (2, 10 * factor, 12 * factor, 3)


def test_residual_lands_on_its_pixel():
    """Of the last bias, entry (row, column, colour) is added to that pixel of every block."""
    upsampler = SubPixelUpsampler(3, 4, 2)
    bias = torch.arange(12.0)
    upsampler.residual[-1].bias.data.copy_(bias)
    fine = upsampler(torch.zeros(1, 2, 3, 3))
    assert torch.equal(fine, bias.view(2, 2, 3).repeat(2, 3, 1)[None])


@pytest.mark.parametrize("kind", ["gha", "subpixel"])
def test_all_weights_learn(kind):
    """A zero last layer gets a gradient at once, the others as soon as it is not zero."""
    torch.manual_seed(0)
    upsampler, features = make_upsampler(kind, 5, 8, 4), torch.rand(1, 8, 6, 5, requires_grad=True)
    optimiser = torch.optim.SGD(upsampler.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        upsampler(features).square().mean().backward()
        optimiser.step()
    assert all(bool((p.grad != 0).any()) for p in upsampler.parameters())
    assert bool((features.grad != 0).all())


def test_far_pixels_do_not_matter_to_ours():
    """No image-wide normalisation: three 3×3 layers see three pixels in each direction."""
    torch.manual_seed(0)
    upsampler = SubPixelUpsampler(4, 8, 2)
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.3)
    features = torch.rand(1, 16, 16, 4)
    changed = features.clone()
    changed[0, 0, 0] += 1
    difference = (upsampler(changed) - upsampler(features)).abs().sum(dim=-1)[0]
    assert difference[:8, :8].sum() > 0 and difference[8:].sum() == 0
    assert difference[:, 8:].sum() == 0


def published(upsampler: PublishedUpsampler, features: torch.Tensor) -> torch.Tensor:
    """Gaussian Head Avatar's network with PyTorch's own layers."""

    def double(block: nn.Module, images: torch.Tensor) -> torch.Tensor:
        for layer in (block.first, block.second):
            images = instance_norm(layer(images)).relu()
        return images

    images = double(upsampler.coarse, features.permute(0, 3, 1, 2))
    for block in (upsampler.middle, upsampler.fine):
        larger = interpolate(images, scale_factor=2, mode="bilinear", align_corners=True)
        images = double(block, larger)
    return upsampler.colour(images).sigmoid().permute(0, 2, 3, 1)


def test_published_network_is_that_of_its_layers():
    torch.manual_seed(0)
    upsampler, features = PublishedUpsampler(6, 4, 4), torch.rand(2, 7, 9, 6, requires_grad=True)
    ours, theirs = upsampler(features), published(upsampler, features)
    assert ours.shape == (2, 28, 36, 3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weights = torch.rand_like(ours)
    inputs = [features, *upsampler.parameters()]
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, theirs)),
                    strict=True):  # fmt: skip
        # sums over all pixels, taken in another order
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_published_network_normalises_over_the_image():
    """Before the ReLU every channel of every image has mean 0 and variance 1, so that a brighter
    and stronger image gives the same."""
    torch.manual_seed(0)
    block = PublishedUpsampler(5, 4, 4).coarse
    images = torch.rand(2, 5, 12, 10)
    hidden = block(images)
    assert bool((hidden >= 0).all())
    # a variance of 1 around 0: the half above 0 has a second moment between 0 and 1
    moments = hidden.square().mean(dim=(2, 3))
    assert bool(((moments > 0) & (moments < 1)).all())
    stronger = block(3 * images)
    # but for the epsilon beside variances of about 0.03
    torch.testing.assert_close(stronger, hidden, rtol=0, atol=5e-3)


def multiplications(upsampler: nn.Module, sizes: dict[nn.Conv2d, int]) -> int:
    """Of all convolutions, given the pixels that each makes."""
    layers = [layer for layer in upsampler.modules() if isinstance(layer, nn.Conv2d)]
    assert set(layers) == set(sizes)
    return sum(layer.weight.numel() * sizes[layer] for layer in layers)


def test_costs_are_those_that_the_documentation_tells():
    theirs, pixels = PublishedUpsampler(32, 32, 4), 512**2
    sizes = {theirs.colour: 16 * pixels}
    for block, scale in ((theirs.coarse, 1), (theirs.middle, 4), (theirs.fine, 16)):
        sizes |= {block.first: scale * pixels, block.second: scale * pixels}
    assert round(multiplications(theirs, sizes) / 1e9, 1) == 280.6
    ours = SubPixelUpsampler(32, 64, 4)
    layers = {layer: pixels for layer in ours.residual if isinstance(layer, nn.Conv2d)}
    assert round(multiplications(ours, layers) / 1e9, 1) == 21.7


@pytest.mark.parametrize("kind", ["gha", "subpixel"])
def test_mixed_precision_returns_float32_near_full_precision(kind):
    torch.manual_seed(0)
    upsampler, features = make_upsampler(kind, 5, 8, 4), torch.rand(1, 8, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = upsampler(features)
    assert mixed.dtype == torch.float32
    # bfloat16 rounds by 0.4 %, six layers deep; our start has no residual and is exact
    tolerance = 0 if kind == "subpixel" else 0.05
    torch.testing.assert_close(mixed, upsampler(features), rtol=0, atol=tolerance)


def compiled_and_eager(
    backend: str, device: torch.device, kind: str, mixed: bool, shape: tuple[int, ...]
) -> list[list[torch.Tensor]]:
    """Colours and all gradients, of one compiled graph and without the compiler."""
    torch.manual_seed(0)
    upsampler = make_upsampler(kind, shape[-1], 8, 4).to(device)
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.2)
    features = torch.rand(shape, device=device, requires_grad=True)
    results = []
    for call in (torch.compile(upsampler, backend=backend, fullgraph=True), upsampler):
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            colours = call(features)
            with torch.no_grad():  # which interpolates otherwise
                shown = call(features)
        gradients = torch.autograd.grad(colours.square().sum(), [features, *upsampler.parameters()])
        results.append([colours.detach(), shown, *gradients])
    return results


# Tracing shows most faults in seconds; the compiler itself takes a minute, far more than a test.
slow = pytest.mark.skipif("EAVATAR_SLOW" not in os.environ, reason="EAVATAR_SLOW is not set")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=slow)])
@pytest.mark.parametrize("kind", ["gha", "subpixel"])
def test_one_graph_compiles_and_gives_the_same(kind, backend):
    device, shape = torch.device("cpu"), (1, 4, 6, 5)
    for ours, eager in zip(*compiled_and_eager(backend, device, kind, False, shape), strict=True):
        # sums over all pixels, taken in another order
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4 * eager.abs().max().item())


@pytest.mark.parametrize(("factor", "align_corners"), [(4, False), (2, True)])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=slow)])
def test_stretching_compiles_to_one_graph(backend, factor, align_corners):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 5, 4, requires_grad=True)
    traced = torch.compile(stretch_by_shifts, backend=backend, fullgraph=True)
    large = traced(images, factor, align_corners)
    expected = reference(images, factor, align_corners)
    # a few roundings of values below 1, and of sums of some ten of them
    torch.testing.assert_close(large, expected, rtol=0, atol=5e-7)
    weights = torch.rand_like(large)
    gradients = [torch.autograd.grad((x * weights).sum(), images)[0] for x in (large, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=5e-6)
    with torch.no_grad():
        traced = torch.compile(stretch_by_gathering, backend=backend, fullgraph=True)
        large = traced(images, factor, align_corners)
    torch.testing.assert_close(large, expected, rtol=0, atol=5e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gha", "subpixel"])
def test_gpu_and_cpu_agree(kind):
    """In float32 without TF32, interpolation by shifts there and PyTorch's here."""
    torch.manual_seed(0)
    upsampler = make_upsampler(kind, 16, 8, 4)
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.2)
    features = torch.rand(2, 24, 40, 16)
    results = []
    for device in ("cpu", "cuda"):
        inputs = features.to(device).requires_grad_()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            colours = upsampler.to(device)(inputs)
            gradient = torch.autograd.grad(colours.square().sum(), inputs)[0]
            with torch.no_grad():  # which interpolates otherwise
                shown = upsampler(inputs)
        results.append([values.detach().cpu() for values in (colours, shown, gradient)])
    for here, there in zip(*results, strict=True):
        # normalisation divides small differences by small deviations
        assert (there - here).norm() / here.norm() < 2e-3
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["gha", "subpixel"])
def test_compiles_on_the_gpu(kind, mixed):
    device = torch.device("cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        results = compiled_and_eager("inductor", device, kind, mixed, (2, 40, 56, 16))
    errors = [
        ((ours - eager).double().norm() / eager.double().norm()).item()
        for ours, eager in zip(*results, strict=True)
    ]
    print(f"{kind}, mixed {mixed}: " + " ".join(f"{error:.1e}" for error in errors))
    # The compiler rounds at other places. GHA's gradients magnify that: its normalised layers do
    # not feel the size of their weights, and what is left is a small difference of large numbers.
    assert max(errors) < (0.2 if mixed else 2e-3)


def test_a_factor_that_the_published_network_lacks_is_an_error():
    with pytest.raises(ValueError, match="4 times"):
        make_upsampler("gha", 32, 8, 2)
    with pytest.raises(ValueError, match="needs upsampling to be 4"):
        settings = read_config(Path("config/config.yaml")).splat.model_dump()
        SplatSettings.model_validate(settings | {"upsampling": 2, "upsampler": "gha"})
