"""Drive an avatar with a tracked sequence, seen from calibrated cameras: a video or images.

On CUDA a frame is one captured graph: expression networks, rasteriser, upsampler and the conversion
to 8 bits. Letters: T timesteps, E expression coefficients, C cameras.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from tqdm import tqdm

from eavatar.arrays import Image
from eavatar.avatar.files import load_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.cameras import Camera
from eavatar.data.video import write_video
from eavatar.errors import UserError
from eavatar.io import Tracking, read_cameras, read_tracking, write_image
from eavatar.results import Results
from eavatar.settings import select
from eavatar.training.graphs import GrowingGraph, PairCapacity
from eavatar.view.modes import Mode, draw_mode

logger = logging.getLogger(__name__)

HEADROOM = 1.25  # pairs of Gaussians and tiles of frames to come / of the present frame
GRAPHS = 4  # that are kept, the latest: each holds memory for its size of image
WARM_UP = 5  # first frames, which the times leave out
QUALITY = "14"  # x264's constant rate factor: no loss that one sees
RATE = 24.0  # frames per second: NeRSemble's 73 with every third frame
RATES = 1e-3, 1e3  # the least and the most: containers count in fractions

FrameGraph = GrowingGraph[PairCapacity, tuple[Tensor, Tensor]]


class Player:
    """Draws an avatar frame by frame, on CUDA as one graph.

    The first frames are drawn without the graph. Where a frame needs larger buffers than the graph
    has, it is drawn again by one with larger ones. Each mode and size of image has its own graph.

    Args:
        avatar: on the device that is to draw; it must not change any more, as `Avatar.prepare` is
            called. It is its own networks that are compiled.
        compile_networks: on CUDA, before the first frame. It takes a minute, which a film of less
            than thousands of frames does not win back.

    Attributes:
        finish: from splatted features to the image, see `finish`; compiled if the networks are.
    """

    def __init__(self, avatar: Avatar, compile_networks: bool = False):
        self.avatar = avatar.prepare()
        self.finish: Finish = finish
        on_cuda = avatar.device.type == "cuda"
        if compile_networks and on_cuda:
            logger.info("compiling the networks; that takes a minute or two")
            avatar.generator.compile(dynamic=False)
            self.finish = torch.compile(finish, dynamic=False)
        self._graphs: dict[tuple[Mode, tuple[int, int]], FrameGraph] = {}

    def __call__(
        self,
        expression: Tensor,
        pose: Tensor,
        intrinsics: Tensor,
        world_to_camera: Tensor,
        mode: Mode = Mode.FINE,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """The image (H, W, 3) uint8, on white, on the avatar's device; the next call overwrites it.

        It is finished when the call returns.

        Args:
            expression: as of `Avatar.draw`.
            pose: (6,) axis-angle in radians, translation in metres.
            intrinsics: (1, 3, 3) of the final image, pixels.
            world_to_camera: (1, 4, 4).
            mode: what is drawn.
            size: H and W of the image, pixels; the square that the avatar was trained at if not
                given.
        """
        graph = self._graph(mode, size or _trained_size(self.avatar))
        given = (expression, pose, intrinsics, world_to_camera)
        inputs = [tensor.to(self.avatar.device) for tensor in given]
        with torch.no_grad():  # before the graph, whose inputs keep their shapes
            inputs[0] = self.avatar.complete(inputs[0])
        while True:
            capacity = graph.capacity
            image, pairs = graph(*inputs)
            needed = int(pairs)  # a host-device synchronisation: the frame is finished
            whole = capacity is None or needed <= capacity.pairs
            if graph.captures and (capacity is None or not whole):
                graph.fit(PairCapacity(int(HEADROOM * needed)))
            if whole:
                return image

    def _graph(self, mode: Mode, size: tuple[int, int]) -> FrameGraph:
        graph = self._graphs.pop((mode, size), None)
        if graph is None:
            draw = partial(draw_frame, self.avatar, mode=mode, size=size, finish=self.finish)
            graph = GrowingGraph(draw, captures=self.avatar.device.type == "cuda")
            if len(self._graphs) == GRAPHS:
                self._graphs.pop(next(iter(self._graphs))).restart()  # gives its memory back
        self._graphs[mode, size] = graph  # the latest is last
        return graph


def finish(avatar: Avatar, features: Tensor, height: int, width: int) -> Tensor:
    """Splatted features (1, h, w, K) to the image (H, W, 3) uint8, in a function of its own so that
    a compiler writes no image of floats between."""
    return quantise(avatar.upsample(features)[0, :height, :width])


def quantise(image: Tensor) -> Tensor:
    """The nearest 8-bit levels of colours, any shape, from 0 to 1 or beyond."""
    return (255 * image.clamp(0, 1) + 0.5).to(torch.uint8)


Finish = Callable[[Avatar, Tensor, int, int], Tensor]


@torch.no_grad()
def draw_frame(
    avatar: Avatar,
    capacity: PairCapacity | None,
    expression: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    world_to_camera: Tensor,
    mode: Mode = Mode.FINE,
    size: tuple[int, int] | None = None,
    finish: Finish = finish,
) -> tuple[Tensor, Tensor]:
    """One frame without a graph: the image as of `Player`, and () the pairs that it needed.

    Args:
        avatar: as of `Player`.
        capacity: of the rasteriser; None counts the pairs, a host-device synchronisation.
        expression: as of `Player`, on the avatar's device, as are the next three.
        pose: likewise.
        intrinsics: likewise.
        world_to_camera: likewise.
        mode: as of `Player`.
        size: as of `Player`.
        finish: `finish`, or a compiled one.
    """
    camera = CameraBatch(intrinsics, world_to_camera, *(size or _trained_size(avatar)))
    limit = capacity.pairs if capacity else None
    if mode is Mode.FINE:
        drawn = avatar.draw(expression, pose, camera, limit)
        return finish(avatar, drawn.features, camera.height, camera.width), drawn.pairs
    image, pairs = draw_mode(avatar, mode, expression, pose, camera, limit)
    return quantise(image), pairs


def _trained_size(avatar: Avatar) -> tuple[int, int]:
    return (avatar.settings.image_size,) * 2


@dataclass(frozen=True)
class DrawnFrame:
    """A finished image, and where it belongs.

    Attributes:
        camera: serial number.
        timestep: of the sequence.
        image: (H, W, 3) RGB uint8.
    """

    camera: str
    timestep: int
    image: Image


@dataclass(frozen=True)
class RenderOptions:
    """What `render` does if nothing else is asked for.

    Attributes:
        variant: of the avatar; None as of `eavatar.results.Results.model`.
        cameras: serial numbers, with wildcards; none for the one that sees most of the face.
        neutral: freeze the expression at neutral.
        rate: frames per second of a video.
        output: a video, ``.mp4``, or a folder for images; None for a place beside the avatar.
    """

    variant: str | None = None
    cameras: Sequence[str] = ()
    neutral: bool = False
    rate: float = RATE
    output: Path | None = None


def render(folder: Path, sequence: str, options: RenderOptions) -> Path:
    """Draw a tracked sequence with an avatar, on white, at the size it was trained at.

    Writes an H.264 video if the output ends in ``.mp4``, else the images
    ``output/<camera>/<timestep:05d>.png``, and prints how long drawing a frame takes, from numbers
    on the device to the finished image there, without copying it to the host and encoding.

    Args:
        folder: ``results/<subject>``.
        sequence: one that was tracked.
        options: what to draw, and where to.

    Returns:
        The video or the folder of images.

    Raises:
        UserError: a file is missing, sequence, variant or camera are unknown, or the output cannot
            be written.
    """
    results = Results.open(folder)
    place = results.avatar(options.variant)
    avatar = load_avatar(place)
    expressions = avatar.settings.head.expression_size
    tracking = read_drive(results.tracking(sequence), expressions, options.neutral)
    cameras = choose_cameras(results.cameras, options.cameras, tracking)
    output = options.output
    if output is None:
        name = f"{sequence}_neutral" if options.neutral else sequence
        # A dot in the name of a sequence begins no suffix.
        output = place / (name.replace(".", "_") if len(cameras) > 1 else f"{name}.mp4")
    _check_output(output, options.rate, len(cameras))
    times: list[float] = []
    frames = draw_tracking(Player(avatar), tracking, cameras, times)
    progress = tqdm(frames, desc="render", unit="frame", total=len(tracking) * len(cameras))
    if output.suffix:
        images = (even(frame.image) for frame in progress)
        write_video(output, images, options.rate, "yuv420p", QUALITY)
    else:
        for frame in progress:
            path = output / frame.camera / f"{frame.timestep:05d}.png"
            write_image(path, cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
    print(describe(times, avatar))
    print(output)
    return output


def read_drive(path: Path, expressions: int, neutral: bool) -> Tracking:
    """The tracking that moves an avatar, with its expression or with none.

    Args:
        path: ``face/tracking/<sequence>.npz``.
        expressions: coefficients that the avatar has.
        neutral: freeze the expression at neutral, and the appearance at what goes with it.

    Raises:
        UserError: the file is missing or malformed, is of another model, or holds no timestep.
    """
    tracking = read_tracking(path)
    if tracking.expression.shape[1] != expressions:
        raise UserError(
            f"{path} has {tracking.expression.shape[1]} expression coefficients and the avatar "
            f"{expressions}; train the avatar again with the present tracking."
        )
    if len(tracking) == 0:
        raise UserError(f"{path} holds no timestep; track the sequence again.")
    return tracking.with_expression(0 * tracking.expression) if neutral else tracking


def choose_cameras(path: Path, patterns: Sequence[str], tracking: Tracking) -> dict[str, Camera]:
    """The cameras of ``cameras.json`` that match, or without patterns the most frontal one.

    Raises:
        UserError: the file is missing or malformed, or a pattern matches no camera.
    """
    cameras = read_cameras(path)
    for pattern in patterns:
        if not select(cameras, [pattern]):
            raise UserError(f"{path} holds no camera '{pattern}'; it has {', '.join(cameras)}.")
    names = select(cameras, patterns) if patterns else [most_frontal(cameras, tracking)]
    return {name: cameras[name] for name in names}


def most_frontal(cameras: Mapping[str, Camera], tracking: Tracking) -> str:
    """The camera whose direction from the head is on average nearest to where the face looks."""
    forward = Rotation.from_rotvec(tracking.rotation.astype(np.float64)).as_matrix()[:, :, 2]

    def frontal(serial: str) -> float:
        towards = cameras[serial].centre - tracking.translation
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        return float((forward * towards).sum(axis=1).mean())

    return max(cameras, key=frontal)


def describe(times: Sequence[float], avatar: Avatar) -> str:
    """One line on the seconds that each frame took; the first ones, if there are more, left out."""
    milliseconds = 1e3 * statistics.median(times[WARM_UP:] or times)
    side, device = avatar.settings.image_size, avatar.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return (
        f"{len(times)} frames of {side}×{side}: {milliseconds:.2f} ms a frame (median), "
        f"{1e3 / milliseconds:.1f} frames per second, on {name}"
    )


def draw_tracking(
    player: Player, tracking: Tracking, cameras: Mapping[str, Camera], times: list[float]
) -> Iterator[DrawnFrame]:
    """Camera by camera, all timesteps; adds the seconds of each frame to the times."""
    side, device = player.avatar.settings.image_size, player.avatar.device
    expressions, poses = (
        torch.from_numpy(values).to(device) for values in (tracking.driving, tracking.poses)
    )
    for serial, camera in cameras.items():
        batch = CameraBatch.of([camera.resize(side, side)], device)
        for timestep in range(len(tracking)):
            start = time.perf_counter()
            views = (batch.intrinsics, batch.world_to_camera)
            image = player(expressions[timestep], poses[timestep], *views)
            times.append(time.perf_counter() - start)
            yield DrawnFrame(serial, timestep, image.cpu().numpy())


def even(image: Image) -> Image:
    """Without the last row or column where their number is odd: videos have half the colours."""
    height, width = image.shape[:2]
    return image[: height // 2 * 2, : width // 2 * 2]


def _check_output(output: Path, rate: float, cameras: int) -> None:
    if output.suffix not in ("", ".mp4"):
        raise UserError(
            f"{output} cannot be written; name a video that ends in .mp4, or a folder without a "
            "suffix."
        )
    if output.exists() and output.is_dir() == bool(output.suffix):
        kind = "folder" if output.is_dir() else "file"
        raise UserError(f"{output} is a {kind} already; choose another name.")
    if output.suffix and cameras > 1:
        raise UserError(
            f"{output} can show one camera, not {cameras}; choose one with --camera, or name a "
            "folder without a suffix to get images of all."
        )
    check_rate(rate)


def check_rate(rate: float) -> None:
    """Raise `UserError` for timesteps per second that no video, and no page, can be played at."""
    low, high = RATES
    if not low <= rate <= high:
        raise UserError(
            f"--rate {rate} is no number of timesteps per second; give one from {low:g} to "
            f"{high:g}."
        )
