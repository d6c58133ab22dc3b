"""A page that shows an avatar in any browser: one file with sliders, orbit and a played sequence.

It holds the linear avatar of `eavatar.view.blendshapes` and a script for WebGL 2, and asks for
nothing outside: it can be mailed, and opened from disk. A splat library for the web that lets
shaders move splats (Spark, with three.js) is 3 MB of script, as much as an avatar, and the shader
that moves, colours and poses the Gaussians would remain.

Arrays are quantised column by column (16 bits) or, the blendshapes, component by component (8 bits,
where zero is exact and nothing moves that should stay), joined, compressed (gzip) and written as
base64. For 100,000 Gaussians and 20 blendshapes that is 20 MB without the compression.

Letters: N Gaussians, K components, T timesteps.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float32
from eavatar.avatar.files import load_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.io import Timestep, Tracking, atomic, read_cameras, read_sequences
from eavatar.results import Results
from eavatar.view.blendshapes import LinearAvatar, distil, follow, measure_psnr
from eavatar.view.player import RATE, check_rate, read_drive

COMPONENTS = 20
EXPRESSIONS = 6  # buttons
MAX_TIMESTEPS = 200  # of the fit, evenly chosen: 1.5 GB while it runs, for 100,000 Gaussians
MARGIN = 1.25  # of the view around the head


@dataclass(frozen=True)
class PageOptions:
    """What `export_page` does if nothing else is asked for.

    Attributes:
        variant: of the avatar; None as of `eavatar.results.Results.model`.
        sequence: that the page plays; None for the first held-out one.
        components: K, blendshapes; None for 20, or as many as there are timesteps.
        rate: of the sequence, timesteps per second.
        output: the page; None for ``avatar.html`` beside the avatar.
    """

    variant: str | None = None
    sequence: str | None = None
    components: int | None = None
    rate: float = RATE
    output: Path | None = None


@dataclass(frozen=True)
class Packed:
    """An array in few bits: the values are ``low + step · codes``.

    Attributes:
        codes: of 8 or 16 bits.
        low: of any shape that goes with ``codes``.
        step: likewise.
    """

    codes: NDArray[Any]
    low: Float32
    step: Float32

    @property
    def values(self) -> Float32:
        values: Float32 = (self.low + self.step * self.codes).astype(np.float32)
        return values


def pack_columns(values: Float32) -> Packed:
    """(R, C) in 16 bits, each column between its least and its largest value."""
    low, high = values.min(axis=0), values.max(axis=0)
    step = np.where(high > low, (high - low) / 65535, 1).astype(np.float32)
    return Packed(np.rint((values - low) / step).astype("<u2"), low, step)


def pack_blocks(values: Float32) -> Packed:
    """(K, B, …) in 8 bits, each of the K×B blocks by its largest absolute value; zero is exact."""
    largest = np.abs(values).max(axis=tuple(range(2, values.ndim)), keepdims=True)
    step = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return Packed(np.rint(values / step).astype(np.int8), np.zeros_like(step), step)


def pack_avatar(linear: LinearAvatar) -> dict[str, Packed]:
    """What the page's shader reads: ``neutral`` (N, 15) and ``components`` (K, 2, N, 3)."""
    columns = [
        linear.neutral[:, :3],
        linear.opacities[:, None],
        linear.neutral[:, 3:],
        linear.head_weights[:, None],
        linear.quaternions,
        linear.scales,
    ]
    halves = torch.stack([linear.components[..., :3], linear.components[..., 3:]], dim=1)
    return {
        "neutral": pack_columns(torch.cat(columns, dim=1).cpu().numpy()),
        "components": pack_blocks(halves.cpu().numpy()),
    }


def unpack_avatar(packed: Mapping[str, Packed], device: torch.device) -> LinearAvatar:
    """The linear avatar as the page shows it."""
    neutral, components = (
        torch.from_numpy(packed[name].values).to(device) for name in ("neutral", "components")
    )
    position, opacity, colour, weight, quaternion, scales = neutral.split([3, 1, 3, 1, 4, 3], dim=1)
    return LinearAvatar(
        torch.cat([position, colour], dim=1),
        quaternion,
        scales,
        opacity[:, 0],
        weight[:, 0],
        torch.cat(components.unbind(dim=1), dim=-1),
    )


@dataclass(frozen=True)
class Framing:
    """Where the page's camera looks at, in canonical space at the mean pose.

    Attributes:
        centre: (3,) of the head.
        radius: of what is to be seen around it.
        distance: of the capture's cameras from it, their mean.
        pixel: of their coarse images, how much it covers there.
    """

    centre: list[float]
    radius: float
    distance: float
    pixel: float

    @classmethod
    def of(cls, linear: LinearAvatar, avatar: Avatar, cameras: Sequence[Camera]) -> Framing:
        """Of the head's Gaussians, and cameras of the final images."""
        head = linear.neutral[linear.head_weights > 0.5, :3].cpu().double().numpy()
        low, high = np.percentile(head, [1, 99], axis=0)
        centre = (low + high) / 2
        rest = avatar.generator.torso.rest_pose.cpu().double().numpy()
        scale = avatar.settings.scale
        world = scale * Rotation.from_rotvec(rest[:3]).apply(centre) + rest[3:]
        distances = [np.linalg.norm(camera.centre - world) / scale for camera in cameras]
        focals = [camera.intrinsics[0, 0] / avatar.settings.upsampling for camera in cameras]
        return cls(
            centre.tolist(),
            MARGIN * float((high - low).max()) / 2,
            float(np.mean(distances)),
            float(np.mean(np.divide(distances, focals))),
        )


def export_page(folder: Path, options: PageOptions) -> Path:
    """Write the page, and print how near its avatar is to the networks and how large the page is.

    Args:
        folder: ``results/<subject>``.
        options: which avatar, sequence and number of blendshapes, and where to.
    Raises:
        UserError: a file is missing, variant or sequence are unknown, or a number is out of range.
    """
    results = Results.open(folder)
    place = results.avatar(options.variant)
    output = options.output or place / "avatar.html"
    _check(output, options.rate)
    sequences = read_sequences(results.capture / "sequences.json")
    sequence = options.sequence or sequences.test[0]
    avatar = load_avatar(place).prepare()
    played = _read(results, avatar, sequence)
    names = dict.fromkeys((*sequences.train, sequence))
    steps = [step for name in names for step in _read(results, avatar, name)]
    steps = steps[:: math.ceil(len(steps) / MAX_TIMESTEPS)]
    side = avatar.settings.image_size // avatar.settings.upsampling * avatar.settings.upsampling
    cameras = [camera.resize(side, side) for camera in read_cameras(results.cameras).values()]

    components = options.components
    if components is None:
        components = min(COMPONENTS, len(steps))
    packed = pack_avatar(distil(avatar, steps, components))
    linear = unpack_avatar(packed, avatar.device)
    packed |= pack_motion(avatar, linear, steps, played)
    header = asdict(Framing.of(linear, avatar, cameras)) | {"rate": options.rate}
    header["low_pass"] = avatar.settings.low_pass
    count = f"{len(linear.neutral):,} Gaussians, {components} blendshapes"
    write_page(output, f"Avatar of {results.root.resolve().name}", count, header, packed)
    values = measure_psnr(avatar, linear, list(played), CameraBatch.of(cameras, avatar.device))
    print(
        f"{count}, {output.stat().st_size / 1e6:.1f} MB; PSNR of {sequence} against the networks' "
        f"coarse images: {np.mean(values):.1f} dB, lowest {min(values):.1f} dB"
    )
    print(output)
    return output


def _check(output: Path, rate: float) -> None:
    if output.suffix != ".html" or output.is_dir():
        raise UserError(f"{output} does not name a page; give a file that ends in .html.")
    check_rate(rate)


def _read(results: Results, avatar: Avatar, sequence: str) -> Tracking:
    size = avatar.settings.head.expression_size
    return read_drive(results.tracking(sequence), size, neutral=False)


def pack_motion(
    avatar: Avatar, linear: LinearAvatar, steps: Sequence[Timestep], played: Tracking
) -> dict[str, Packed]:
    """What moves the page's avatar.

    Args:
        avatar: of the networks.
        linear: that stands for it.
        steps: timesteps that say how far sliders go and which expressions have a button.
        played: the sequence.
    Returns:
        ``coefficients`` (T, K) and ``poses`` (T, 7) of the sequence, ``expressions`` (M, K), and
        ``ranges`` (2, K) of the sliders.
    """
    known = follow(avatar, linear, steps).cpu().numpy()
    moved = known * linear.strengths.cpu().numpy()
    ends = [known.min(axis=0, initial=0), known.max(axis=0, initial=0)]
    return {
        "coefficients": pack_columns(follow(avatar, linear, list(played)).cpu().numpy()),
        "poses": pack_columns(head_poses(avatar, played)),
        "expressions": pack_columns(known[pick_distinct(moved, EXPRESSIONS)]),
        "ranges": pack_columns(np.stack(ends)),
    }


def head_poses(avatar: Avatar, tracking: Tracking) -> Float32:
    """Poses (T, 7) from the mean pose: quaternion wxyz, translation in canonical units."""
    rest = avatar.generator.torso.rest_pose.cpu().double().numpy()
    back = Rotation.from_rotvec(rest[:3]).inv()
    turns = back * Rotation.from_rotvec(tracking.rotation.astype(np.float64))
    shifts = back.apply(tracking.translation - rest[3:]) / avatar.settings.scale
    quaternions = turns.as_quat(canonical=True, scalar_first=True)
    return np.concatenate([quaternions, shifts], axis=1).astype(np.float32)


def pick_distinct(rows: Float32, count: int) -> list[int]:
    """Which of the rows (T, K) differ most from zero and one another, one after another."""
    distances = np.linalg.norm(rows, axis=1)
    chosen: list[int] = []
    for _ in range(min(count, len(rows))):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    return chosen


def write_page(
    path: Path, title: str, summary: str, header: Mapping[str, Any], packed: Mapping[str, Packed]
) -> Path:
    """Write the page of packed arrays.

    Args:
        path: of the page.
        title: of the page.
        summary: what it shows, a line.
        header: what else its script reads, as JSON.
        packed: as of `export_page`.
    """
    arrays = [
        {
            "name": name,
            "type": str(array.codes.dtype),
            "shape": array.codes.shape,
            "low": array.low.flatten().tolist(),
            "step": array.step.flatten().tolist(),
        }
        for name, array in sorted(packed.items(), key=lambda item: -item[1].codes.itemsize)
    ]  # the wide ones first, so that each starts at a multiple of its width
    joined = b"".join(packed[str(array["name"])].codes.tobytes() for array in arrays)
    template, script = (files("eavatar.view") / name for name in ("page.html", "page.js"))
    text = Template(template.read_text()).substitute(
        title=escape(title),
        summary=escape(summary),
        # An element of a script ends at the first </script>, wherever that is.
        header=json.dumps({**header, "arrays": arrays}).replace("</", "<\\/"),
        data=base64.b64encode(gzip.compress(joined, mtime=0)).decode(),
        script=script.read_text(),
    )
    with atomic(path) as temporary:
        temporary.write_text(text)
    return path
