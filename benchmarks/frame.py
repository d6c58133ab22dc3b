"""Time of a frame of an avatar: ``python -m benchmarks.frame [--avatar results/<s>/splat/full]``.

Without an avatar, one with random networks of the sizes of ``config/config.yaml`` and Gaussians on
a head-sized ellipsoid that fills about half of the image, each about as large as their spacing, for
some numbers of Gaussians and both upsamplers (GHA's as in ``config/paper.yaml``). A frame goes from
expression, pose and camera on the device to the finished 8-bit image there. All times are medians
that end in a synchronisation, after a warm-up; the parts alone are graphs of their own. On the CPU
everything is small and nothing is captured: there it shows only that the script runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.device import longest_kernels, synchronise
from benchmarks.profiles import read_profile
from eavatar.avatar.files import read_avatar
from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.avatar.model import Avatar, AvatarSettings, CameraBatch, HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.rendering.splatting import splat
from eavatar.settings import SdfSettings, SplatSettings, merge, validate
from eavatar.training.graphs import Captured, PairCapacity
from eavatar.view.player import HEADROOM, Player, draw_frame
from tests.scenes.splat_scene import AXES, SCALE, landmarks, sphere

PROFILES = ("fast", "paper")
COUNTS, SIZE = (50_000, 100_000, 200_000), 2048
SMALL_COUNTS, SMALL_SIZE = (2_000,), 128  # on the CPU
OPACITY = 0.7
FOCAL = 4.8  # / side of the image: the ellipsoid, 1 m away, fills 54 % of the image
WARM_UP, FRAMES = 10, 100
SMALL_FRAMES = 3


@dataclass(frozen=True)
class View:
    """Inputs of a frame, as `eavatar.view.player.Player` takes them, and how often to draw it."""

    inputs: list[Tensor]
    frames: int


def random_avatar(profile: str, count: int, size: int, expressions: int | None = None) -> Avatar:
    """An avatar that has learned nothing, of the sizes that training would give it.

    Args:
        profile: see `read_profile`.
        count: of Gaussians.
        size: side of its images, pixels.
        expressions: coefficients; those of the profile if not given.
    """
    torch.manual_seed(0)
    content = read_profile(profile)
    settings = validate(SplatSettings, merge(content["splat"], {"image_size": size}), profile)
    sdf = validate(SdfSettings, content["sdf"], profile)
    expressions = expressions or content["face"]["fit"]["expression_components"]
    head = HeadSettings.of(sdf, expressions)
    points = AXES * sphere(count)
    features = torch.rand(count, head.feature_size) - 0.5
    neutral = NeutralGaussians.from_surface(points, features, torch.zeros(0, 3), OPACITY)
    drawn = AvatarSettings.of(settings, head, SCALE)
    avatar = Avatar(drawn, head.make_drivers(), Torso(), neutral, landmarks())
    avatar.sort_by_expression_weight()
    return avatar.eval()


def make_view(avatar: Avatar, frames: int) -> View:
    """The head at rest with some expression, from 1 m in front."""
    side, device = avatar.settings.image_size, avatar.landmarks.device
    generator = torch.Generator().manual_seed(0)
    expression = torch.randn(avatar.settings.head.expression_size, generator=generator)
    focal = FOCAL * side
    intrinsics = torch.tensor([[[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]]])
    camera = torch.diag(torch.tensor([1.0, -1, -1, 1]))[None]
    camera[:, 2, 3] = 1
    return View([x.to(device) for x in (expression, torch.zeros(6), intrinsics, camera)], frames)


def median_ms(frame: Callable[[], object], frames: int) -> float:
    """Median milliseconds of a call and the work that it started."""
    for _ in range(min(WARM_UP, frames)):
        frame()
    times = []
    for _ in range(frames):
        synchronise()
        start = time.perf_counter()
        frame()
        synchronise()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def alone_ms(part: Callable[..., object], inputs: list[Tensor], frames: int) -> float:
    """Milliseconds of a part of a frame, captured in a graph of its own."""
    captured = Captured(part, *inputs)
    result = median_ms(lambda: captured(*inputs), frames)
    captured.release()
    return result


@torch.no_grad()
def measure_parts(player: Player, view: View) -> list[float]:
    """Milliseconds of generating, rasterising, and upsampling to 8 bits alone."""
    avatar = player.avatar
    settings = avatar.settings
    expression, pose, intrinsics, camera = view.inputs
    cameras = CameraBatch(intrinsics, camera, settings.image_size, settings.image_size)
    coarse = avatar.draw(expression, pose, cameras)  # also sets the precision
    capacity = PairCapacity(int(HEADROOM * int(coarse.pairs))).with_spare().pairs
    shrunk = torch.cat([intrinsics[:, :2] / settings.upsampling, intrinsics[:, 2:]], dim=1)
    side = settings.image_size // settings.upsampling
    white = intrinsics.new_ones(settings.head.colour_size)

    def rasterise(camera: Tensor, shrunk: Tensor) -> object:
        gaussians = coarse.generated.gaussians
        return splat(gaussians, camera, shrunk, side, side, white, capacity)

    def finish(features: Tensor) -> object:
        return player.finish(avatar, features, settings.image_size, settings.image_size)

    return [
        alone_ms(avatar.generate, [expression, pose], view.frames),
        alone_ms(rasterise, [camera, shrunk], view.frames),
        alone_ms(finish, [coarse.features], view.frames),
    ]


def print_kernels(player: Player, view: View, number: int) -> None:
    """Print so many of the longest kernels of a frame, and what each fused network takes alone."""
    from eavatar.avatar.fused import FusedDriver  # needs Triton

    def draw() -> None:
        for _ in range(view.frames):
            player(*view.inputs)

    for line in longest_kernels(draw, view.frames, number):
        print(f"  {line}")
    prepared = player.avatar._prepared
    for driver in (prepared.by_expression, prepared.by_pose) if prepared else ():
        if isinstance(driver, FusedDriver):
            for network in driver.networks:
                time = alone_ms(network, [network.biases], view.frames)
                shape = tuple(network.inputs.shape)
                depth = f"{network.layers + 2} layers to {network.channels} channels"
                print(f"  {time:7.3f} ms  a network of {shape} inputs, {depth}")


def measure(avatar: Avatar, frames: int, kernels: int) -> None:
    """Print a row on an avatar, and so many of a frame's longest kernels."""
    view = make_view(avatar, frames)
    eager = median_ms(lambda: draw_frame(avatar, None, *view.inputs), frames)
    player = Player(avatar, compile_networks=True)
    graph = median_ms(lambda: player(*view.inputs), frames)
    pairs = int(draw_frame(avatar, None, *view.inputs)[1])
    generate, rasterise, upsample = measure_parts(player, view)
    settings = avatar.settings
    print(
        f"{len(avatar.neutral):9,}  {settings.upsampler:9} {settings.image_size:5}² {pairs:10,}  "
        f"{eager:9.2f} {graph:9.2f} {1e3 / graph:7.1f}   "
        f"{generate:9.2f} {rasterise:9.2f} {upsample:9.2f}",
        flush=True,
    )
    if kernels and avatar.device.type == "cuda":
        print_kernels(player, view, kernels)


def main() -> None:
    """Measure one avatar, or random ones of several sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--avatar", type=Path, help="a trained avatar instead of random ones")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of Gaussians")
    parser.add_argument("--kernels", type=int, default=0, help="print so many, on CUDA")
    options = parser.parse_args()
    folder = options.avatar
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    counts, size = (COUNTS, SIZE) if cuda else (SMALL_COUNTS, SMALL_SIZE)
    counts = options.counts or counts
    frames = FRAMES if cuda else SMALL_FRAMES
    print(f"{torch.cuda.get_device_name() if cuda else 'CPU'}, torch {torch.__version__}")
    print(
        "Gaussians  upsampler  image      pairs   eager ms  graph ms     FPS    "
        "generate rasterise  upsample"
    )
    if folder:
        measure(read_avatar(folder).to(device), frames, options.kernels)
        return
    for count in counts:
        for profile in PROFILES:
            measure(random_avatar(profile, count, size).to(device), frames, options.kernels)


if __name__ == "__main__":
    main()
