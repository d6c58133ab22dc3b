"""Time of the rasteriser on CUDA: ``python -m benchmarks.rasterise``, a minute or two on one GPU.

gsplat's own `rasterization` beside ours, eager and replayed from a CUDA graph, and the tile lists
alone beside gsplat's. 512² pixels, 32 channels, the scene of `benchmarks.splat`. Median
milliseconds between CUDA events around single calls, the host's part included, after a warm-up; the
best possible time of an eager call is therefore that of its launches.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.splat import make_scene
from eavatar.rendering.splatting import Gaussians, splat
from eavatar.rendering.tiles import TILE, bin_splats
from eavatar.training.graphs import Captured

SIZE, CHANNELS = 512, 32
WARM_UP, REPETITIONS = 10, 50
SPARE = 1.25  # room for pairs, relative to what is needed

Draw = Callable[[Tensor, Tensor], Tensor]  # (C, 4, 4), (C, 3, 3) to (C, H, W, D)


@dataclass(frozen=True)
class Inputs:
    """Leaves and cameras on the GPU, and the room for pairs."""

    gaussians: Gaussians
    background: Tensor
    cameras: tuple[Tensor, Tensor]
    capacity: int

    @property
    def leaves(self) -> list[Tensor]:
        return list(vars(self.gaussians).values())


def make_inputs(count: int, views: int) -> Inputs:
    """The scene of `benchmarks.splat` on the GPU, with room for its pairs."""
    scene = make_scene(count, CHANNELS, views, SIZE)
    leaves = [tensor.detach().cuda() for tensor in vars(scene.gaussians).values()]
    gaussians = Gaussians(*(leaf.requires_grad_() for leaf in leaves))
    cameras = scene.world_to_camera.cuda(), scene.intrinsics.cuda()
    background = torch.ones(CHANNELS, device="cuda")
    with torch.no_grad():
        pairs = splat(gaussians, *cameras, SIZE, SIZE, background).pairs
    return Inputs(gaussians, background, cameras, int(SPARE * pairs))


def draw_ours(inputs: Inputs, world_to_camera: Tensor, intrinsics: Tensor) -> Tensor:
    """Images (C, H, W, D) by `eavatar.rendering.splatting.splat`."""
    return splat(
        inputs.gaussians,
        world_to_camera,
        intrinsics,
        SIZE,
        SIZE,
        inputs.background,
        inputs.capacity,
    ).features


def draw_with_gsplat(inputs: Inputs, world_to_camera: Tensor, intrinsics: Tensor) -> Tensor:
    from gsplat import rasterization

    drawn, alpha, _ = rasterization(
        *inputs.leaves, world_to_camera, intrinsics, SIZE, SIZE, packed=False
    )
    return drawn + (1 - alpha) * inputs.background


def forward(draw: Draw, world_to_camera: Tensor, intrinsics: Tensor) -> Tensor:
    with torch.no_grad():
        return draw(world_to_camera, intrinsics)


def both(
    draw: Draw, inputs: Inputs, weight: Tensor, world_to_camera: Tensor, intrinsics: Tensor
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(draw(world_to_camera, intrinsics), inputs.leaves, weight)


def milliseconds(function: Callable[..., object], *arguments: Tensor) -> float:
    """Median over single calls."""
    for _ in range(WARM_UP):
        function(*arguments)
    starts, ends = (
        [torch.cuda.Event(enable_timing=True) for _ in range(REPETITIONS)] for _ in range(2)
    )
    for start, end in zip(starts, ends, strict=True):
        start.record()
        function(*arguments)
        end.record()
    torch.cuda.synchronize()
    return statistics.median(map(torch.cuda.Event.elapsed_time, starts, ends))


def measure_drawing(inputs: Inputs) -> None:
    """Print the times of gsplat's own path and of ours, eager and as a graph."""
    weight = torch.randn(len(inputs.cameras[0]), SIZE, SIZE, CHANNELS, device="cuda")

    def steps(draw: Draw) -> list[Callable[..., object]]:
        return [partial(forward, draw), partial(both, draw, inputs, weight)]

    def captured(step: Callable[..., object]) -> float:
        graph = Captured(step, *inputs.cameras)
        time = milliseconds(graph, *inputs.cameras)
        graph.release()
        return time

    theirs, ours = partial(draw_with_gsplat, inputs), partial(draw_ours, inputs)
    report("gsplat", *(milliseconds(step, *inputs.cameras) for step in steps(theirs)))
    report("ours, eager", *(milliseconds(step, *inputs.cameras) for step in steps(ours)))
    report("ours, graph", *map(captured, steps(ours)))


def measure_binning(inputs: Inputs) -> None:
    """Print the time of our tile lists alone."""
    import gsplat

    means, quaternions, scales, opacities, _ = (leaf.detach() for leaf in inputs.leaves)
    radii, centres, depths, _, _ = gsplat.fully_fused_projection(
        means, None, quaternions, scales, *inputs.cameras, SIZE, SIZE, opacities=opacities
    )
    tiles = -(-SIZE // TILE)

    def theirs(centres: Tensor, radii: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        _, ids, order = gsplat.isect_tiles(centres, radii, depths, TILE, tiles, tiles)
        return gsplat.isect_offset_encode(ids, len(depths), tiles, tiles), order

    def ours(centres: Tensor, radii: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        binned = bin_splats(centres, radii, depths, SIZE, SIZE, inputs.capacity)
        return binned.offsets, binned.splats

    splats = centres, radii, depths
    report("tile lists, gsplat", milliseconds(theirs, *splats))
    report("tile lists, eager", milliseconds(ours, *splats))
    captured = Captured(ours, *splats)
    report("tile lists, graph", milliseconds(captured, *splats))
    captured.release()


def report(name: str, *times: float) -> None:
    print(f"  {name:20}" + "".join(f"{time:10.3f}" for time in times), flush=True)


def main() -> None:
    """Print both rasterisers' times for some numbers of views and Gaussians."""
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[0]).parse_args()
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}, {SIZE}², {CHANNELS} channels")
    print(f"{'':22}   forward  with backward, ms")
    for views in (1, 4):
        for count in (50_000, 100_000, 200_000):
            inputs = make_inputs(count, views)
            print(f"{count} Gaussians, {views} views, room for {inputs.capacity} pairs")
            for measure in (measure_drawing, measure_binning):
                try:
                    measure(inputs)
                except RuntimeError as error:  # of CUDA; the other cases may still run
                    print(f"  {measure.__name__} failed: {error}")


if __name__ == "__main__":
    main()
