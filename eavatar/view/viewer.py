"""What the viewer shows: a state of it, and the image that belongs to a state.

Nothing here knows of a browser; `eavatar.view.browser` does. Letters: E expression coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from eavatar.arrays import Bool, Float64, Image
from eavatar.avatar.files import load_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.cameras import Camera
from eavatar.data.frames import read_backgrounds
from eavatar.data.images import Boxes, ImageStore, read_grey, resize_area
from eavatar.errors import UserError
from eavatar.io import (
    ExpressionBasis,
    Identity,
    Timestep,
    Tracking,
    read_arrays,
    read_cameras,
    read_sequences,
)
from eavatar.results import Results
from eavatar.tables.drawing import compare
from eavatar.view.modes import Mode
from eavatar.view.player import Player, most_frontal, read_drive
from eavatar.view.telling import Component, Telling, find_telling, strongest_components

SLIDERS = 10  # components that get one
LETTERS = 1 / 400  # size of OpenCV's letters / shorter side of the image
SLOW, FAST = 0.15, 0.03  # seconds of an image in motion; of twice the side it takes up to 4 times
NARROW, WIDE = 0.5, 2.5  # width / height of the narrowest and the widest render
STEP = 32  # pixels: what is drawn beyond the square comes in multiples of it
MIN_SIDE = 256  # in motion, pixels: smaller images save little, the networks take the time


@dataclass(frozen=True)
class ViewState:
    """All that decides what is seen.

    Attributes:
        sequence: that drives the avatars.
        timestep: of it.
        camera: of a square image, world space.
        serial: the capture camera that this is; None for any other place.
        expression: (E,) added to what was tracked, standard deviations; empty for nothing.
        turn: nod, turn and tilt of the head from the tracked pose, in its own axes, degrees.
        mode: what of an avatar is drawn.
        compare: show the frame, and the error, where a capture camera has recorded one.
        variants: of the subject, side by side.
    """

    sequence: str
    timestep: int
    camera: Camera
    serial: str | None
    expression: tuple[float, ...] = ()
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mode: Mode = Mode.FINE
    compare: bool = False
    variants: tuple[str, ...] = ()

    def move(self, tracked: Timestep) -> Timestep:
        """What drives the avatars: the tracked timestep, edited."""
        turned = Rotation.from_rotvec(tracked.rotation) * Rotation.from_euler(
            "xyz", self.turn, degrees=True
        )
        moved = replace(tracked, rotation=turned.as_rotvec().astype(np.float32))
        if any(self.expression):
            moved = moved.with_expression(tracked.expression + np.asarray(self.expression))
        return moved


@dataclass(frozen=True)
class Orbit:
    """A camera that goes around a place.

    Attributes:
        position: (3,) of the camera, world, metres.
        look_at: (3,) the place, on the camera's axis.
        up: (3,) upwards in the image, as near to the head's own direction as the camera's tilt
            allows.
    """

    position: Float64
    look_at: Float64
    up: Float64


@dataclass(frozen=True)
class Viewer:
    """A subject's results, and images of them; other avatars are read when they are first drawn.

    Attributes:
        results: of the subject.
        variants: names of the trained avatars.
        cameras: of the capture, by serial number.
        tracks: the tracking of each sequence.
        telling: rest, and the expressions that the training sequences have.
        components: the coefficients that move the face most there.
        start: the person at rest, seen from the front, as the first variant.
    """

    results: Results
    variants: tuple[str, ...]
    cameras: Mapping[str, Camera]
    tracks: Mapping[str, Tracking]
    telling: Sequence[Telling]
    components: Sequence[Component]
    start: ViewState
    _players: dict[str, Player]

    @classmethod
    def open(cls, folder: Path, variant: str | None = None) -> Viewer:
        """The viewer of ``results/<subject>``, which shows a variant first.

        Raises:
            UserError: a contract file is missing or malformed, nothing is trained yet, the variant
                is unknown, or tracking and avatar do not fit.
        """
        results = Results.open(folder)
        place = results.avatar(variant)
        player = Player(load_avatar(place))
        size = player.avatar.settings.head.expression_size
        cameras = read_cameras(results.cameras)
        sequences = read_sequences(results.capture / "sequences.json")
        tracks = {name: read_drive(results.tracking(name), size, False) for name in sequences.names}
        training = {name: tracks[name] for name in sequences.train}
        scale = float(read_arrays(Identity, results.face / "identity.npz").scale)
        basis = read_arrays(ExpressionBasis, results.face / "expression_basis.npz").basis
        telling = find_telling(training, scale)
        rest = telling[0]
        serial = most_frontal(cameras, tracks[rest.sequence][rest.timestep : rest.timestep + 1])
        return cls(
            results,
            tuple(sorted(path.parent.name for path in results.root.glob("splat/*/model.yaml"))),
            cameras,
            tracks,
            telling,
            strongest_components(training, basis, SLIDERS),
            ViewState(
                rest.sequence, rest.timestep, cameras[serial], serial, variants=(place.name,)
            ),
            {place.name: player},
        )

    @property
    def avatar(self) -> Avatar:
        """The first variant."""
        return self.player(self.start.variants[0]).avatar

    def player(self, variant: str) -> Player:
        """What draws a variant.

        Raises:
            UserError: its avatar cannot be read, or is driven by other coefficients.
        """
        if variant not in self._players:
            place = self.results.avatar(variant)
            avatar = load_avatar(place)
            sizes = avatar.settings.head.expression_size, self.avatar.settings.head.expression_size
            if len(set(sizes)) > 1:
                raise UserError(
                    f"{place} has {sizes[0]} expression coefficients and the tracking {sizes[1]}; "
                    "train it again with the present tracking."
                )
            self._players[variant] = Player(avatar)
        return self._players[variant]

    def draw(self, state: ViewState, side: int | None = None, aspect: float = 1.0) -> Image:
        """The image of a state, RGB uint8: tiles side by side.

        They are each variant's render, which fill an image of the aspect; or squares with the
        frame, then each variant's render and error. A render that is no square shows more to both
        sides of the state's camera, at the same scale.

        Args:
            state: what to show.
            side: the shorter one of a tile, pixels; what the first variant was trained at if not
                given.
            aspect: width / height of all renders together; each has `NARROW` to `WIDE`.

        Raises:
            UserError: an avatar or a frame cannot be read.
        """
        side = side or self.avatar.settings.image_size
        compares = state.compare and state.serial is not None
        tile = 1.0 if compares else min(max(aspect / len(state.variants), NARROW), WIDE)
        renders = {name: self._render(name, state, side, tile) for name in state.variants}
        if not compares:
            return _join(renders)
        frame, visible = read_frame(self.results.capture, state, side)
        tiles = {"frame": frame}
        for name, render in renders.items():
            tiles[name] = render
            if state.mode.is_image:
                seen = np.where(visible[..., None], render, frame)
                tiles[f"{name}: error"] = compare(frame / 255, seen / 255)[:, 2 * side :]
        return _join(tiles)

    @property
    def up(self) -> Float64:
        """(3,) where the top of the head is at the start, world."""
        head = self.tracks[self.start.sequence][self.start.timestep].rotation
        up: Float64 = Rotation.from_rotvec(head.astype(np.float64)).apply([0.0, 1.0, 0.0])
        return up

    def orbit(self, camera: Camera) -> Orbit:
        """How one stands where a camera does, to go around the head from there."""
        head = self.tracks[self.start.sequence][self.start.timestep].translation
        right, _, forward = camera.world_to_camera[:3, :3]
        return Orbit(
            camera.centre,
            camera.centre + forward * (forward @ (head - camera.centre)),
            self.up - right * (right @ self.up),
        )

    def count_gaussians(self, state: ViewState) -> int:
        """Of all avatars that a state shows."""
        return sum(len(self.player(name).avatar.neutral) for name in state.variants)

    def _render(self, variant: str, state: ViewState, side: int, aspect: float) -> Image:
        player = self.player(variant)
        height, width = round(max(side, side / aspect)), round(max(side, side * aspect))
        rows, columns = (size_to_draw(side, length) for length in (height, width))
        square = state.camera.resize(side, side)
        view = square.crop((side - columns) // 2, (side - rows) // 2, columns, rows)
        camera = CameraBatch.of([view], player.avatar.device)
        moved = state.move(self.tracks[state.sequence][state.timestep])
        expression = torch.from_numpy(moved.driving)
        pose = torch.from_numpy(np.concatenate([moved.rotation, moved.translation]))
        views = (camera.intrinsics, camera.world_to_camera)
        drawn = player(expression, pose, *views, state.mode, (rows, columns))
        top, left = (rows - height) // 2, (columns - width) // 2
        image: Image = drawn[top : top + height, left : left + width].cpu().numpy()
        return image


def read_frame(capture: Path, state: ViewState, side: int) -> tuple[Image, Bool]:
    """What a state's capture camera has recorded.

    Returns:
        (side, side, 3) RGB uint8, on white as metrics have it; (side, side) inside the sensor.

    Raises:
        UserError: frame or mask is missing or damaged.
    """
    serial = str(state.serial)
    keys, boxes = [(state.sequence, state.timestep)], Boxes(((0, 0),), side, side)
    sets = read_backgrounds(capture, [state.sequence], [serial])
    store = ImageStore(capture, keys, [serial], state.camera.width, side, boxes, 0, sets)
    visible = read_grey(capture / "visible" / f"{serial}.png", "calibrate")
    return store.read(0, [0])[0, ..., :3], resize_area(visible, side) == 255


def place_camera(like: Camera, rotation: Float64, position: Float64) -> Camera:
    """A camera somewhere else.

    Args:
        like: what its images are like.
        rotation: (3, 3) from its axes to world space.
        position: (3,) world, metres.
    """
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3], world_to_camera[:3, 3] = rotation.T, -rotation.T @ position
    return replace(like, world_to_camera=world_to_camera)


def size_to_draw(side: int, length: int) -> int:
    """Pixels to draw for a length of at least the square's side, which stays in the middle.

    They are few numbers, as each costs a CUDA graph: steps are about an eighth of the side. A step
    adds `STEP` pixels, or a multiple, to both ends, so that the square is sampled where it would be
    without them.
    """
    step = 2 * max(side // 16 // STEP, 1) * STEP
    return side + step * math.ceil((length - side) / step)


def pad_to_aspect(image: Image, aspect: float) -> Image:
    """The image (H, W, 3) in the middle of a white one that has an aspect, width / height."""
    height, width = image.shape[:2]
    down = max(round(width / aspect) - height, 0)
    across = max(round(height * aspect) - width, 0)
    sides = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return np.pad(image, sides, constant_values=255)


def _join(tiles: Mapping[str, Image]) -> Image:
    """Tiles (H, W, 3) side by side, named if there are several."""
    if len(tiles) == 1:
        return next(iter(tiles.values()))
    return np.concatenate([_name(image, text) for text, image in tiles.items()], axis=1)


def _name(image: Image, text: str) -> Image:
    size = LETTERS * min(image.shape[:2])
    corner = (round(10 * size), round(30 * size))
    return cv2.putText(
        np.ascontiguousarray(image), text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, (90, 90, 90), 1,
        cv2.LINE_AA,
    )  # fmt: skip


class Pace:
    """The size of images while something moves: as large as is drawn in time.

    Args:
        full: side of an image at rest, pixels.
    """

    def __init__(self, full: int):
        self.full, self._halvings = full, 0

    @property
    def side(self) -> int:
        """Of the next image in motion, pixels."""
        return self.full >> self._halvings

    def learn(self, seconds: float) -> None:
        """From the time that an image in motion took, choose the size of the next."""
        if seconds > SLOW and self.side >= 2 * MIN_SIDE:
            self._halvings += 1
        elif seconds < FAST and self._halvings > 0:
            self._halvings -= 1
