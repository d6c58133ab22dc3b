"""Drive an avatar with a tracked sequence, seen from calibrated cameras: a film or pictures.

On CUDA a frame is one captured graph: expression networks, rasteriser, upsampler and the conversion
to 8 bits. Letters: T timesteps, E expression coefficients, C cameras.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from tqdm import tqdm

from eavatar.avatar.files import read_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.cameras import Camera
from eavatar.data.video import write_video
from eavatar.device import choose_device
from eavatar.errors import UserError
from eavatar.io import Tracking, atomic, read_arrays, read_cameras
from eavatar.settings import select
from eavatar.training.graphs import Captured

logger = logging.getLogger(__name__)

Image = NDArray[Any]
MARGIN = 1.5  # room for (Gaussian, tile) pairs / the number that the frame at the capture needed
WARM_UP = 5  # first frames, which the times leave out
QUALITY = "14"  # x264's constant rate factor: no loss that one sees
RATE = 24.0  # frames per second: NeRSemble's 73 with every third frame


class Player:
    """Draws an avatar frame by frame, on CUDA as one graph.

    The graph has room for so many pairs of a Gaussian and a tile. Where a frame needs more, the
    graph is captured anew and the frame drawn again. The networks are compiled before the first
    frame.

    Args:
        avatar: on the device that is to draw; it must not change any more. It is its own networks
            that are compiled.
        compile_networks: on CUDA; it takes up to a minute once.
    """

    def __init__(self, avatar: Avatar, compile_networks: bool = True):
        self.avatar = avatar
        if compile_networks and avatar.landmarks.is_cuda:
            logger.info("compiling the networks; that takes up to a minute and is kept on disk")
            avatar.generator.compile(dynamic=False)
            avatar.upsampler.compile(dynamic=False)
        self._frame: Captured[tuple[Tensor, Tensor]] | None = None
        self._capacity = 0

    def __call__(
        self, expression: Tensor, pose: Tensor, intrinsics: Tensor, world_to_camera: Tensor
    ) -> Tensor:
        """The image (H, W, 3) uint8, on white, on the avatar's device; the next call overwrites it.

        It is finished when the call returns.

        Args:
            expression: (E,). pose: (6,) axis-angle in radians, translation in metres.
            intrinsics: (1, 3, 3) of the final image, pixels. world_to_camera: (1, 4, 4).
        """
        device = self.avatar.landmarks.device
        given = (expression, pose, intrinsics, world_to_camera)
        inputs = [tensor.to(device) for tensor in given]
        if self._frame is None:
            self._frame = self._capture(inputs, int(draw_frame(self.avatar, None, *inputs)[1]))
        while True:
            image, pairs = self._frame(*inputs)
            needed = int(pairs)  # the host waits for the frame
            if needed <= self._capacity:
                return image
            self._frame.release()
            self._frame = self._capture(inputs, needed)

    def _capture(self, inputs: Sequence[Tensor], needed: int) -> Captured[tuple[Tensor, Tensor]]:
        self._capacity = 1 + int(MARGIN * needed)
        return Captured(partial(draw_frame, self.avatar, self._capacity), *inputs)


@torch.no_grad()
def draw_frame(
    avatar: Avatar,
    capacity: int | None,
    expression: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    world_to_camera: Tensor,
) -> tuple[Tensor, Tensor]:
    """One frame without a graph: the image as of `Player`, and () the pairs that it needed.

    Args:
        capacity: room for pairs; None counts them, which makes the host wait.
        expression, pose, intrinsics, world_to_camera: as of `Player`, on the avatar's device.
    """
    side = avatar.settings.image_size
    camera = CameraBatch(intrinsics, world_to_camera, side, side)
    drawn = avatar(expression, pose, camera, capacity)
    return (255 * drawn.fine[0].clamp(0, 1) + 0.5).to(torch.uint8), drawn.pairs


@dataclass(frozen=True)
class Drive:
    """What moves the avatar.

    Attributes:
        expression: (T, E). pose: (T, 6) axis-angle in radians, translation in metres.
    """

    expression: Tensor
    pose: Tensor

    def __len__(self) -> int:
        return len(self.pose)


@dataclass(frozen=True)
class Frame:
    """One finished image (H, W, 3) RGB uint8, and where it belongs."""

    camera: str
    timestep: int
    image: Image


def render(
    avatar: Path,
    capture: Path,
    face: Path,
    sequence: str,
    patterns: Sequence[str],
    neutral: bool,
    rate: float,
    output: Path,
) -> Path:
    """Draw a tracked sequence with an avatar, on white, at the size it was trained at.

    Writes an H.264 film if the output ends in ``.mp4``, else the pictures
    ``output/<camera>/<timestep:05d>.png``, and prints how long drawing a frame takes, from numbers
    on the device to the finished image there, without copying it to the host and encoding.

    Args:
        avatar: ``results/<subject>/splat/<variant>``.
        capture, face: ``results/<subject>/capture`` and ``…/face``.
        patterns: serial numbers of cameras, with wildcards; none for the one that sees most of the
            face.
        neutral: freeze the expression at neutral. rate: frames per second of the film.

    Raises:
        UserError: a file is missing, sequence or camera are unknown, the output cannot be written.
    """
    _check_output(output, rate)
    device = choose_device()
    model = read_avatar(avatar).to(device)
    drive = read_drive(face / "tracking", sequence, model.settings.head.expression_size, neutral)
    cameras = choose_cameras(capture / "cameras.json", patterns, drive)
    if output.suffix and len(cameras) > 1:
        raise UserError(
            f"{output} can show one camera, not {len(cameras)}; choose one with --camera, or name "
            "a folder without a suffix to get pictures of all."
        )
    times: list[float] = []
    frames = _draw(Player(model), drive, cameras, times)
    progress = tqdm(frames, desc="render", unit="frame", total=len(drive) * len(cameras))
    if output.suffix:
        images = (_even(frame.image) for frame in progress)
        write_video(output, images, rate, "yuv420p", QUALITY)
    else:
        for frame in progress:
            _write_picture(output / frame.camera / f"{frame.timestep:05d}.png", frame.image)
    print(describe(times, model.settings.image_size, device))
    return output


def read_drive(folder: Path, sequence: str, expressions: int, neutral: bool) -> Drive:
    """A tracked sequence of ``face/tracking``, for an avatar with so many expression coefficients.

    Raises:
        UserError: there is no such sequence, or it was tracked with another model.
    """
    path = folder / f"{sequence}.npz"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.npz"))) or "none"
        raise UserError(f"{folder} holds no sequence '{sequence}'; tracked are: {known}.")
    tracking = read_arrays(Tracking, path)
    if tracking.expression.shape[1] != expressions:
        raise UserError(
            f"{path} has {tracking.expression.shape[1]} expression coefficients and the avatar "
            f"{expressions}; use the face folder that the avatar was trained with."
        )
    if len(tracking.expression) == 0:
        raise UserError(f"{path} holds no timestep; track the sequence again.")
    expression = torch.from_numpy(tracking.expression)
    pose = torch.from_numpy(tracking.poses)
    return Drive(0 * expression if neutral else expression, pose)


def choose_cameras(path: Path, patterns: Sequence[str], drive: Drive) -> dict[str, Camera]:
    """The cameras of ``cameras.json`` that match, or without patterns the most frontal one.

    Raises:
        UserError: the file is missing or malformed, or a pattern matches no camera.
    """
    cameras = read_cameras(path)
    for pattern in patterns:
        if not select(cameras, [pattern]):
            raise UserError(f"{path} holds no camera '{pattern}'; it has {', '.join(cameras)}.")
    names = select(cameras, patterns) if patterns else [most_frontal(cameras, drive)]
    return {name: cameras[name] for name in names}


def most_frontal(cameras: Mapping[str, Camera], drive: Drive) -> str:
    """The camera whose direction from the head is on average nearest to where the face looks."""
    pose = drive.pose.double().numpy()
    forward = Rotation.from_rotvec(pose[:, :3]).as_matrix()[:, :, 2]

    def frontal(serial: str) -> float:
        towards = cameras[serial].centre - pose[:, 3:]
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        return float((forward * towards).sum(axis=1).mean())

    return max(cameras, key=frontal)


def describe(times: Sequence[float], side: int, device: torch.device) -> str:
    """One line on the seconds that each frame took; the first ones, if there are more, left out."""
    milliseconds = 1e3 * statistics.median(times[WARM_UP:] or times)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return (
        f"{len(times)} frames of {side}×{side}: {milliseconds:.2f} ms a frame (median), "
        f"{1e3 / milliseconds:.1f} frames per second, on {name}"
    )


def _draw(
    player: Player, drive: Drive, cameras: Mapping[str, Camera], times: list[float]
) -> Iterator[Frame]:
    """Camera by camera, all timesteps; adds the seconds of each frame to the times."""
    side, device = player.avatar.settings.image_size, player.avatar.landmarks.device
    expression, pose = drive.expression.to(device), drive.pose.to(device)
    for serial, camera in cameras.items():
        matrices = (camera.resize(side, side).intrinsics, camera.world_to_camera)
        views = [torch.from_numpy(matrix)[None].float().to(device) for matrix in matrices]
        for timestep in range(len(drive)):
            start = time.perf_counter()
            image = player(expression[timestep], pose[timestep], *views)
            times.append(time.perf_counter() - start)
            yield Frame(serial, timestep, image.cpu().numpy())


def _even(image: Image) -> Image:
    """Without the last row or column where their number is odd: films have half the colours."""
    height, width = image.shape[:2]
    return image[: height // 2 * 2, : width // 2 * 2]


def _write_picture(path: Path, image: Image) -> None:
    with atomic(path) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def _check_output(output: Path, rate: float) -> None:
    if output.suffix not in ("", ".mp4"):
        raise UserError(
            f"{output} cannot be written; name a film that ends in .mp4, or a folder without a "
            "suffix."
        )
    if output.exists() and output.is_dir() == bool(output.suffix):
        kind = "folder" if output.is_dir() else "file"
        raise UserError(f"{output} is a {kind} already; choose another name.")
    if rate <= 0:
        raise UserError(f"--rate {rate} is no number of frames per second; give one above 0.")
