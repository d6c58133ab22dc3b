"""Time of the CPU splatting kernel beside the dense reference: ``python -m benchmarks.splat``,
some minutes on two idle cores, nearly all of it the reference's.

The scene is a sphere of head size that fills most of the image, covered with Gaussians about as
large as their spacing, seen from an arc of cameras: what stage II draws. Medians over repetitions
that alternate between the two, after a warm-up on a small scene, so that other load on the machine
meets both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from eavatar.rendering.splatting import Gaussians, Rendering, splat
from tests.scenes.dense_splat import dense_splat

RADIUS = 0.12  # metres
DISTANCE = 1.0  # metres
PIXELS_AT_ONCE = 256  # of the dense reference, which checkpoints: about 0.2 GB at a time


@dataclass(frozen=True)
class Scene:
    """What `splatting.splat` takes: Gaussians, background (D,), C cameras, image size."""

    gaussians: Gaussians
    background: torch.Tensor
    world_to_camera: torch.Tensor
    intrinsics: torch.Tensor
    size: int


def make_scene(count: int, channels: int, views: int, size: int) -> Scene:
    """A sphere of Gaussians before an arc of cameras; every tensor that can wants its gradient."""
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    spacing = RADIUS * (4 * torch.pi / count) ** 0.5
    gaussians = Gaussians(
        means=(RADIUS * normals).requires_grad_(),
        quaternions=torch.randn(count, 4, generator=generator).requires_grad_(),
        scales=(spacing * (0.5 + torch.rand(count, 3, generator=generator))).requires_grad_(),
        opacities=(0.1 + 0.8 * torch.rand(count, generator=generator)).requires_grad_(),
        features=torch.rand(count, channels, generator=generator).requires_grad_(),
    )
    angles = torch.linspace(-0.6, 0.6, views) if views > 1 else torch.zeros(1)
    world_to_camera = torch.eye(4).repeat(views, 1, 1)
    world_to_camera[:, 0, 0] = world_to_camera[:, 2, 2] = angles.cos()
    world_to_camera[:, 0, 2], world_to_camera[:, 2, 0] = angles.sin(), -angles.sin()
    world_to_camera[:, 2, 3] = DISTANCE
    focal = 0.4 * size * DISTANCE / RADIUS  # the sphere spans 80 % of the image
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    background = torch.ones(channels, requires_grad=True)
    return Scene(gaussians, background, world_to_camera, intrinsics.repeat(views, 1, 1), size)


def draw_with_kernel(scene: Scene) -> Rendering:
    """The kernel that is measured, all views at once."""
    return splat(
        scene.gaussians,
        scene.world_to_camera,
        scene.intrinsics,
        scene.size,
        scene.size,
        scene.background,
    )


def draw_densely(scene: Scene) -> Rendering:
    """The reference in float32, its faster precision, in chunks of pixels."""
    return dense_splat(
        scene.gaussians,
        scene.world_to_camera,
        scene.intrinsics,
        scene.size,
        scene.size,
        scene.background,
        PIXELS_AT_ONCE,
    )


def time_once(draw: Callable[[Scene], Rendering], scene: Scene) -> tuple[float, float]:
    """Milliseconds of one forward and one backward pass."""
    start = time.perf_counter()
    rendering = draw(scene)
    drawn = time.perf_counter()
    torch.autograd.backward(
        [rendering.features, rendering.alpha],
        [torch.ones_like(rendering.features), rendering.alpha],
    )
    return 1e3 * (drawn - start), 1e3 * (time.perf_counter() - drawn)


def measure(
    draws: list[Callable[[Scene], Rendering]], scene: Scene, repetitions: int
) -> list[tuple[float, float]]:
    """Median milliseconds of forward and backward for each way of drawing, taken in turns."""
    small = make_scene(100, 16, 1, 32)
    for draw in draws:
        time_once(draw, small)
    rounds = [[time_once(draw, scene) for draw in draws] for _ in range(repetitions)]
    return [
        (
            statistics.median(times[0] for times in passes),
            statistics.median(times[1] for times in passes),
        )
        for passes in zip(*rounds, strict=True)
    ]


def compare(views: int) -> None:
    """The kernel beside the reference at the demo's size."""
    scene = make_scene(10_000, 16, views, 128)
    kernel, dense = measure([draw_with_kernel, draw_densely], scene, 3)
    print(f"10000 Gaussians, 16 channels, 128×128, {views} views")
    for name, (forward, backward) in (("kernel", kernel), ("dense float32", dense)):
        print(f"  {name:14}forward {forward:9.1f} ms   backward {backward:9.1f} ms")
    print(f"  ratio         {sum(dense) / sum(kernel):.0f} × (forward + backward)")


def scale() -> None:
    """The kernel over the number of Gaussians, channels and pixels, 4 views."""
    print("Gaussians  channels  size   forward ms  backward ms")
    for count, channels, size in (
        (5_000, 16, 128), (10_000, 16, 128), (20_000, 16, 128), (10_000, 3, 128),
        (10_000, 32, 128), (10_000, 16, 64), (10_000, 16, 256),
    ):  # fmt: skip
        scene = make_scene(count, channels, 4, size)
        ((forward, backward),) = measure([draw_with_kernel], scene, 7)
        print(f"{count:9}  {channels:8}  {size:4}   {forward:10.1f}  {backward:11.1f}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[0]).parse_args()
    print(f"{torch.get_num_threads()} threads")
    compare(views=1)
    compare(views=4)
    scale()
