"""The CPU splatting kernel against a dense float64 reference, closed forms and gsplat."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from eavatar.rendering import cpu
from eavatar.rendering.splatting import LOW_PASS, Gaussians, Rendering, splat
from eavatar.training.graphs import Captured
from tests.scenes.dense_splat import dense_splat

IMAGES = ("features", "alpha")
INPUTS = ("means", "quaternions", "scales", "opacities", "features", "background")


@dataclass(frozen=True)
class Scene:
    """Gaussians with a background (D,), C cameras and an image size."""

    gaussians: Gaussians
    background: Tensor
    world_to_camera: Tensor
    intrinsics: Tensor
    width: int
    height: int


def make_scene(count=200, channels=5, views=3, width=37, height=29, seed=0) -> Scene:
    """A cloud about the cameras' common axis; some of it is behind them, outside or transparent."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    gaussians = Gaussians(
        means=2.4 * random(count, 3) - 1.2,
        quaternions=torch.randn(count, 4, generator=generator),
        scales=0.02 + 0.1 * random(count, 3),
        opacities=random(count),
        features=torch.randn(count, channels, generator=generator),
    )
    angles = 0.4 * torch.arange(views) - 0.2
    world_to_camera = torch.eye(4).repeat(views, 1, 1)
    world_to_camera[:, 0, 0] = world_to_camera[:, 2, 2] = angles.cos()
    world_to_camera[:, 0, 2], world_to_camera[:, 2, 0] = angles.sin(), -angles.sin()
    world_to_camera[:, 2, 3] = 1.0
    intrinsics = torch.tensor([[width, 0, 0.45 * width], [0, 1.1 * width, 0.5 * height], [0, 0, 1]])
    return Scene(
        gaussians,
        random(channels),
        world_to_camera,
        intrinsics.repeat(views, 1, 1),
        width,
        height,
    )


def leaves(scene: Scene, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """The six differentiable inputs, as fresh leaves in another precision."""
    tensors = [getattr(scene.gaussians, field.name) for field in fields(Gaussians)]
    return tuple(
        tensor.to(device=device, dtype=dtype, copy=True).requires_grad_()
        for tensor in (*tensors, scene.background)
    )


def draw(renderer, scene: Scene, inputs: tuple[Tensor, ...]) -> Rendering:
    *gaussians, background = inputs
    return renderer(
        Gaussians(*gaussians),
        scene.world_to_camera.to(background),
        scene.intrinsics.to(background),
        scene.width,
        scene.height,
        background,
    )


def loss(rendering: Rendering) -> Tensor:
    """A fixed random projection of all outputs, so that every gradient path carries weight."""
    generator = torch.Generator().manual_seed(1)
    images = [getattr(rendering, name) for name in IMAGES]
    return sum(
        (image * torch.randn(image.shape, generator=generator).to(image)).sum() for image in images
    )


def gradients(renderer, scene: Scene, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    inputs = leaves(scene, dtype, device)
    return torch.autograd.grad(loss(draw(renderer, scene, inputs)), inputs)


def relative_error(value: Tensor, truth: Tensor) -> float:
    return ((value.cpu() - truth.cpu()).norm() / truth.norm()).item()


def assert_same_images(scene: Scene) -> None:
    """1e-5 of the largest value: float32 keeps 1e-7 of each of some tens of summands."""
    with torch.no_grad():
        drawn = draw(splat, scene, leaves(scene, torch.float32))
        truth = draw(dense_splat, scene, leaves(scene, torch.float64))
    for name in IMAGES:
        expected = getattr(truth, name)
        scale = max(1.0, expected.abs().max().item())
        error = (getattr(drawn, name) - expected).abs().max().item()
        assert error < 1e-5 * scale, name


@pytest.mark.parametrize(
    "size", [(37, 29), (8, 8), (1, 1), (16, 5), (64, 40)], ids="{0[0]}x{0[1]}".format
)
def test_images_equal_the_dense_reference(size):
    assert_same_images(make_scene(width=size[0], height=size[1]))


@pytest.mark.parametrize("channels", [1, 3, 16, 33])
def test_any_number_of_channels(channels):
    assert_same_images(make_scene(channels=channels, views=1))


def test_opaque_crowd_finishes_pixels_early():
    scene = make_scene(count=600, views=1)
    crowd = replace(scene.gaussians, opacities=torch.full((600,), 0.95))
    assert_same_images(replace(scene, gaussians=crowd))


@pytest.mark.parametrize("name", INPUTS)
def test_gradients_equal_the_dense_reference(name):
    scene = make_scene()
    index = INPUTS.index(name)
    ours = gradients(splat, scene, torch.float32)[index]
    truth = gradients(dense_splat, scene, torch.float64)[index]
    # float32 sums over hundreds of pixels and pairs; measured 1e-7 to 1e-6.
    assert relative_error(ours, truth) < 1e-5


@pytest.mark.parametrize("name", INPUTS)
def test_reference_gradients_equal_finite_differences(name):
    """The reference's own autograd, in random directions of every input.

    The derivative jumps where alpha crosses 1/255, 0.999 or a pixel finishes, so the step is small
    (1e-6 of inputs of order one; float64 leaves 1e-9) and the scene is small enough to have no
    crossing within it.
    """
    scene = make_scene(count=25, views=2, width=12, height=10)
    inputs = list(leaves(scene, torch.float64))
    index = INPUTS.index(name)
    (gradient,) = torch.autograd.grad(loss(draw(dense_splat, scene, inputs)), inputs[index])
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            moved = list(inputs)
            moved[index] = inputs[index] + step * direction
            values.append(loss(draw(dense_splat, scene, moved)).item())
        difference = (values[0] - values[1]) / 2e-6
        expected = (gradient * direction).sum().item()
        assert difference == pytest.approx(expected, rel=1e-5, abs=1e-6)


def single(mean: tuple[float, float, float], opacity: float = 0.8) -> Scene:
    """One round Gaussian of 0.05 m before one camera of 16×16 pixels and focal length 20."""
    gaussians = Gaussians(
        means=torch.tensor([mean]),
        quaternions=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        scales=torch.full((1, 3), 0.05),
        opacities=torch.tensor([opacity]),
        features=torch.tensor([[3.0]]),
    )
    intrinsics = torch.tensor([[[20.0, 0, 8.5], [0, 20, 8.5], [0, 0, 1]]])
    return Scene(gaussians, torch.tensor([1.0]), torch.eye(4)[None], intrinsics, 16, 16)


@pytest.mark.parametrize("low_pass", [LOW_PASS, 0.1])
def test_single_gaussian_has_its_closed_form(low_pass):
    """On the axis at 2 m: variance (20 · 0.05 / 2)² + low pass, pixels², at pixel (8, 8)."""
    scene = single((0, 0, 2.0))
    filtered = partial(splat, low_pass=low_pass)
    rendering = draw(filtered, scene, leaves(scene, torch.float32))
    for dx, dy in ((0, 0), (1, 0), (0, -1), (1, 1)):
        alpha = 0.8 * math.exp(-(dx * dx + dy * dy) / (2 * (0.25 + low_pass)))
        pixel = (0, 8 + dy, 8 + dx)
        assert rendering.alpha[pixel].item() == pytest.approx(alpha, rel=1e-5)
        assert rendering.features[pixel].item() == pytest.approx(3 * alpha + 1 - alpha, rel=1e-5)
    # 0.8 exp(-x² / 1.1) < 1/255 beyond x = 2.42, with less low pass before: nothing is drawn there.
    assert rendering.alpha[0, 8, 11] == 0


def test_opacity_one_is_held_at_0_999():
    scene = single((0, 0, 2.0), opacity=1.0)
    inputs = leaves(scene, torch.float32)
    alpha = draw(splat, scene, inputs).alpha[0, 8, 8]
    assert alpha.item() == pytest.approx(0.999, abs=1e-6)
    (gradient,) = torch.autograd.grad(alpha, inputs[3])
    assert gradient.item() == 0


@pytest.mark.parametrize(
    "mean",
    [
        (0, 0, -2.0),
        (0, 0, 0.009),
        (50, 0, 2.0),
        (0, -50, 2.0),
        (math.nan, 0, 2.0),
        (0, 0, math.inf),
    ],
)
def test_unseen_gaussians_leave_the_background_and_no_gradient(mean):
    scene = single(mean)
    inputs = leaves(scene, torch.float32)
    rendering = draw(splat, scene, inputs)
    assert torch.equal(rendering.features, torch.ones(1, 16, 16, 1))
    assert not rendering.alpha.any()
    *to_gaussians, to_background = torch.autograd.grad(rendering.features.sum(), inputs)
    assert all(not gradient.any() for gradient in to_gaussians)
    assert to_background.item() == 16 * 16


def test_no_gaussians_at_all():
    scene = make_scene(count=0)
    inputs = leaves(scene, torch.float32)
    rendering = draw(splat, scene, inputs)
    assert torch.equal(rendering.features, scene.background.expand(3, 29, 37, 5))
    rendering.features.sum().backward()
    assert inputs[0].grad.shape == (0, 3)


def test_without_a_background_features_lie_on_zero():
    scene = make_scene()
    black = replace(scene, background=torch.zeros(5))
    with_zero = draw(splat, black, leaves(black, torch.float32)).features
    without = splat(
        scene.gaussians, scene.world_to_camera, scene.intrinsics, scene.width, scene.height
    )
    assert torch.equal(without.features, with_zero)


def test_results_do_not_depend_on_the_number_of_threads():
    import numba

    scene = make_scene()
    several = gradients(splat, scene, torch.float32)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = gradients(splat, scene, torch.float32)
    finally:
        numba.set_num_threads(threads)
    assert all(torch.equal(first, second) for first, second in zip(several, one, strict=True))


COMPOSITE_GRADIENTS = """
import sys
import numpy as np
from eavatar.rendering.cpu import Splats, composite_gradients
inputs = list(np.load(sys.argv[1]).values())
np.savez(sys.argv[2], *composite_gradients(Splats(*inputs[:5]), *inputs[5:]))
"""


def test_a_process_that_compiles_gets_the_gradients_of_one_that_loads_the_cache(tmp_path):
    scene = make_scene()
    arrays = [tensor.detach().numpy() for tensor in leaves(scene, torch.float32)]
    *gaussians, features, background = arrays
    cameras = scene.world_to_camera.numpy(), scene.intrinsics.numpy()
    splats = cpu.prepare(*gaussians, *cameras, scene.width, scene.height, LOW_PASS)
    size = len(cameras[0]), scene.height, scene.width
    upstream = np.random.default_rng(1).standard_normal((*size, 6), np.float32)
    image, alpha = np.ascontiguousarray(upstream[..., :5]), np.ascontiguousarray(upstream[..., 5])
    columns = [getattr(splats, field.name) for field in fields(splats)]
    np.savez(tmp_path / "inputs.npz", *columns, features, background, image, alpha)
    for name in ("compiled", "loaded"):
        paths = tmp_path / "inputs.npz", tmp_path / f"{name}.npz"
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
        command = (sys.executable, "-c", COMPOSITE_GRADIENTS, *paths)
        subprocess.run(command, check=True, env=environment)
    compiled, loaded = (np.load(tmp_path / f"{name}.npz") for name in ("compiled", "loaded"))
    for name in compiled:
        np.testing.assert_array_equal(compiled[name], loaded[name])


def test_a_wrong_shape_is_named():
    scene = make_scene()
    with pytest.raises(ValueError, match="opacities"):
        replace(scene.gaussians, opacities=torch.rand(200, 1))


def stacked(scenes: list[Scene]) -> Scene:
    """The scenes as one, with the background and the size of the first."""
    names = [field.name for field in fields(Gaussians)]
    gaussians = Gaussians(
        *(torch.stack([getattr(scene.gaussians, name) for scene in scenes]) for name in names)
    )
    return replace(
        scenes[0],
        gaussians=gaussians,
        world_to_camera=torch.stack([scene.world_to_camera for scene in scenes]),
        intrinsics=torch.stack([scene.intrinsics for scene in scenes]),
    )


def test_scenes_in_one_call_equal_separate_calls():
    first, second = make_scene(seed=3), make_scene(seed=4)
    second = replace(second, background=first.background, intrinsics=0.9 * second.intrinsics)
    renderings, all_gradients = [], []
    for scene in (first, second, stacked([first, second])):
        inputs = leaves(scene, torch.float32)
        rendering = draw(splat, scene, inputs)
        squares = sum(getattr(rendering, name).square().sum() for name in IMAGES)
        renderings.append(rendering)
        all_gradients.append(torch.autograd.grad(squares, inputs))
    *separate, together = renderings
    for name in IMAGES:
        expected = torch.stack([getattr(rendering, name) for rendering in separate])
        assert torch.equal(getattr(together, name), expected), name
    *separate, together = all_gradients
    *expected, backgrounds = [torch.stack(parts) for parts in zip(*separate, strict=True)]
    assert all(map(torch.equal, together[:-1], expected))
    assert torch.equal(together[-1], backgrounds.sum(dim=0))


def test_scenes_of_gaussians_and_cameras_must_fit():
    scene = make_scene()
    with pytest.raises(ValueError, match="scenes"):
        splat(stacked([scene]).gaussians, scene.world_to_camera, scene.intrinsics, 37, 29)
    with pytest.raises(ValueError, match="features"):
        replace(stacked([scene]).gaussians, features=scene.gaussians.features)


def assert_parity(scene: Scene, **options) -> Rendering:
    """The CPU kernel and CUDA, images and gradients of all inputs; figures are printed.

    Tolerances: gsplat's fast exponential, and its gradients' atomic sums in any order. A pixel
    whose alpha is within rounding of 1/255 may go either way: one in ten thousand.
    """
    renderer = partial(splat, **options)
    inputs, on_cuda = leaves(scene, torch.float32), leaves(scene, torch.float32, "cuda")
    ours, theirs = draw(splat, scene, inputs), draw(renderer, scene, on_cuda)
    names = [name for name in IMAGES if getattr(theirs, name) is not None]
    for name in names:
        difference = (getattr(theirs, name).cpu() - getattr(ours, name)).abs().flatten()
        quantile = difference.quantile(0.9999).item()
        print(f"{name}: 99.99 % within {quantile:.1e}, all within {difference.max():.1e}")
        assert quantile < 1e-4, name
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(getattr(ours, name).shape, generator=generator) for name in names]
    losses = [
        sum(
            (getattr(rendering, name) * weight.to(leaf)).sum()
            for name, weight in zip(names, weights, strict=True)
        )
        for rendering, leaf in ((ours, inputs[0]), (theirs, on_cuda[0]))
    ]
    expected = torch.autograd.grad(losses[0], inputs)
    gradients_ = torch.autograd.grad(losses[1], on_cuda)
    for name, value, truth in zip(INPUTS, gradients_, expected, strict=True):
        error = relative_error(value, truth)
        print(f"gradient of {name}: relative error {error:.1e}")
        assert error < 1e-3, name
    return theirs


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 16, 32, 40, 70])
@pytest.mark.parametrize("capacity", [None, 100_000])
def test_kernel_and_gsplat_agree(channels, capacity):
    scene = make_scene(count=1000, channels=channels, views=2, width=64, height=48)
    assert 0 < assert_parity(scene, capacity=capacity).pairs < 100_000


@pytest.mark.gpu
def test_kernel_and_gsplat_agree_in_a_size_of_no_whole_tiles():
    scene = make_scene(count=1000, channels=32, views=3, width=67, height=41)
    assert_parity(scene, capacity=50_000)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1000, 5])  # 5: gsplat would mix up the gradients of scenes
@pytest.mark.parametrize("capacity", [None, 100_000])
def test_kernel_and_gsplat_agree_in_scenes(count, capacity):
    scenes = [make_scene(count, 16, 2, 64, 48, seed) for seed in (5, 6)]
    assert_parity(stacked(scenes), capacity=capacity)


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [None, 100])
def test_gsplat_draws_no_gaussians_at_all(capacity):
    scene = make_scene(count=0)
    inputs = leaves(scene, torch.float32, "cuda")
    rendering = draw(partial(splat, capacity=capacity), scene, inputs)
    assert torch.equal(rendering.features, inputs[-1].expand(3, 29, 37, 5))
    rendering.features.sum().backward()
    assert inputs[0].grad.shape == (0, 3)
    assert torch.equal(inputs[-1].grad, torch.full_like(inputs[-1], 3 * 29 * 37))


@pytest.mark.gpu
def test_too_small_a_capacity_leaves_out_the_farthest():
    scene = make_scene(count=1000, views=2, width=64, height=48)
    inputs = leaves(scene, torch.float32, "cuda")
    complete = draw(splat, scene, inputs)
    part = draw(partial(splat, capacity=int(complete.pairs) // 2), scene, inputs)
    assert part.pairs == complete.pairs
    assert (part.alpha <= complete.alpha + 1e-6).all()
    assert 0 < part.alpha.mean() < complete.alpha.mean()
    for gradient in torch.autograd.grad(part.features.sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.gpu
def test_a_cuda_graph_replays_forward_and_backward():
    """Captured on one scene, replayed on another: images to the bit, gradients in any order."""
    scene, other = (
        stacked([make_scene(2000, 32, 2, 64, 48, seed) for seed in seeds])
        for seeds in ((7, 8), (9, 10))
    )
    inputs = leaves(scene, torch.float32, "cuda")
    weight = torch.randn(2, 2, 48, 64, 32, device="cuda")

    def step(world_to_camera: Tensor, intrinsics: Tensor) -> tuple[Tensor, ...]:
        *gaussians, background = inputs
        rendering = splat(
            Gaussians(*gaussians), world_to_camera, intrinsics, 64, 48, background, 200_000
        )
        total = (rendering.features * weight).sum() + rendering.alpha.square().sum()
        outputs = rendering.features.detach(), rendering.alpha.detach(), rendering.pairs
        return *outputs, *torch.autograd.grad(total, inputs)

    captured = Captured(step, scene.world_to_camera.cuda(), scene.intrinsics.cuda())
    with torch.no_grad():
        for target, source in zip(inputs, leaves(other, torch.float32), strict=True):
            target.copy_(source)
    cameras = other.world_to_camera.cuda(), 0.9 * other.intrinsics.cuda()
    replayed, eager = captured(*cameras), step(*cameras)
    assert 0 < eager[2] <= 200_000
    assert all(map(torch.equal, replayed[:3], eager[:3]))
    for name, ours, theirs in zip(INPUTS, replayed[3:], eager[3:], strict=True):
        error = relative_error(ours, theirs)
        print(f"gradient of {name}: relative difference {error:.1e}")
        assert error < 1e-4, name  # atomic sums of many float32, in another order each time
