"""Time of the rasteriser on CUDA: ``python -m benchmarks.rasterise``, a minute or two on one GPU.

gsplat's own `rasterization` beside ours, eager and replayed from a CUDA graph, and the tile lists
alone beside gsplat's. Our forward pass alone is `eavatar.rendering.inference`; of it, each step and
its sorts follow as graphs of their own, and compositing in other sizes of programs. 512² pixels, 32
channels, the scene of `benchmarks.splat`. Median milliseconds between CUDA events around single
calls, the host's part included, after a warm-up; the best possible time of an eager call is
therefore that of its launches.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from benchmarks.device import longest_kernels
from benchmarks.splat import make_scene
from eavatar.rendering import inference
from eavatar.rendering.splatting import LOW_PASS, Gaussians, splat
from eavatar.rendering.tiles import TILE, bin_splats
from eavatar.training.graphs import Captured

COUNTS = (50_000, 100_000, 200_000)
SIZE, CHANNELS = 512, 32
WARM_UP, REPETITIONS = 10, 50
SPARE = 1.25  # room for pairs, relative to what is needed
# Of a compositing program: constants of `eavatar.rendering.inference`.
PROGRAMS = [
    {"RUN": 1},
    {"PIXELS": 256},
    {"WARPS": 2},
    {"PIXELS": 64, "WARPS": 2},
    {"PIXELS": 64, "WARPS": 1},
]

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


def graph_milliseconds(function: Callable[..., object], *arguments: Tensor) -> float:
    """Median over replays of its graph."""
    graph = Captured(function, *arguments)
    time = milliseconds(graph, *arguments)
    graph.release()
    return time


def measure_drawing(inputs: Inputs) -> None:
    """Print the times of gsplat's own path and of ours, eager and as a graph."""
    weight = torch.randn(len(inputs.cameras[0]), SIZE, SIZE, CHANNELS, device="cuda")

    def steps(draw: Draw) -> list[Callable[..., object]]:
        return [partial(forward, draw), partial(both, draw, inputs, weight)]

    theirs, ours = partial(draw_with_gsplat, inputs), partial(draw_ours, inputs)
    report("gsplat", *(milliseconds(step, *inputs.cameras) for step in steps(theirs)))
    report("ours, eager", *(milliseconds(step, *inputs.cameras) for step in steps(ours)))
    report("ours, graph", *(graph_milliseconds(step, *inputs.cameras) for step in steps(ours)))


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
    report("tile lists, graph", graph_milliseconds(ours, *splats))


@torch.no_grad()
def measure_steps(inputs: Inputs) -> None:
    """Print the times of the steps of our forward pass alone."""
    *shape, features = inputs.leaves
    views = len(inputs.cameras[0])

    def project(*cameras: Tensor) -> inference.Splats:
        return inference.project(*shape, *cameras, SIZE, SIZE, LOW_PASS)

    splats = project(*inputs.cameras)

    def list_tiles(_: Tensor) -> inference.Lists:
        return inference.list_tiles(splats, views, SIZE, SIZE, inputs.capacity)

    report("project", graph_milliseconds(project, *inputs.cameras))
    report("list tiles", graph_milliseconds(list_tiles, features))
    sort = partial(torch.sort, stable=True)
    report("  sort depths", graph_milliseconds(sort, splats.depths))
    tile = torch.randint(views * (SIZE // TILE) ** 2, (inputs.capacity,), device="cuda")
    for kind in (torch.int16, torch.int32):
        bits = torch.iinfo(kind).bits
        report(f"  sort tiles, {bits} bits", graph_milliseconds(sort, tile.to(kind)))
    lists = list_tiles(features)

    def composite(features: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        return inference.composite(splats, lists, features, background, views, SIZE, SIZE)

    report("composite", graph_milliseconds(composite, features, inputs.background))
    for program in PROGRAMS:
        with mock.patch.multiple(inference, **program):
            time = graph_milliseconds(composite, features, inputs.background)
        report("  " + ", ".join(f"{name} {value}" for name, value in program.items()), time)


def print_kernels(inputs: Inputs, number: int) -> None:
    """Print so many of the longest kernels of our forward pass, in a graph."""
    graph = Captured(partial(forward, partial(draw_ours, inputs)), *inputs.cameras)

    def steps() -> None:
        for _ in range(REPETITIONS):
            graph(*inputs.cameras)

    for line in longest_kernels(steps, REPETITIONS, number):
        print(f"  {line}")
    graph.release()


def report(name: str, *times: float) -> None:
    print(f"  {name:24}" + "".join(f"{time:10.3f}" for time in times), flush=True)


def main() -> None:
    """Print both rasterisers' times for some numbers of views and Gaussians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the longest")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of Gaussians")
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}, {SIZE}², {CHANNELS} channels")
    print(f"{'':26}   forward  with backward, ms")
    for views in (1, 4):
        for count in options.counts:
            inputs = make_inputs(count, views)
            print(f"{count} Gaussians, {views} views, room for {inputs.capacity} pairs")
            kernels = partial(print_kernels, number=options.kernels)
            measures = [measure_drawing, measure_binning, measure_steps]
            for measure in measures + ([kernels] if options.kernels else []):
                try:
                    measure(inputs)
                except RuntimeError as error:  # of CUDA; the other cases may still run
                    print(f"  failed: {error}")


if __name__ == "__main__":
    main()
