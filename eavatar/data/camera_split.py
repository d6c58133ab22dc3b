"""Which cameras a training sees, and which are measured: novel views (Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.settings import ALTERNATE, select


def split_cameras(
    cameras: Mapping[str, Camera], held_out: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Serial numbers of the cameras to train on, and of those to measure.

    Args:
        cameras: by serial number.
        held_out: wildcards of serial numbers, or the word `ALTERNATE` alone: every second camera
            by azimuth, where the first and, of an odd number, the last are trained on. If empty,
            all cameras are trained on and measured.
    Raises:
        UserError: a wildcard matches no camera, or no camera is left to train on.
    """
    if not held_out:
        return list(cameras), list(cameras)
    for pattern in held_out:
        if pattern != ALTERNATE and not select(cameras, [pattern]):
            raise UserError(
                f"held_out_cameras: no camera matches '{pattern}'; there are {', '.join(cameras)}."
            )
    alternate = list(held_out) == [ALTERNATE]
    chosen = order_by_azimuth(cameras)[1::2] if alternate else select(cameras, held_out)
    kept = [serial for serial in cameras if serial not in chosen]
    if not kept or not chosen:
        raise UserError(
            f"held_out_cameras {list(held_out)} leaves {len(kept)} cameras to train on and "
            f"{len(chosen)} to measure of {len(cameras)}; both need one."
        )
    return kept, [serial for serial in cameras if serial in chosen]


def order_by_azimuth(cameras: Mapping[str, Camera]) -> list[str]:
    """Serial numbers around the vertical axis through the point that all cameras look at.

    That point is nearest to all optical axes, the vertical the mean of what is up in the images.
    The angle counts from the middle of the cameras, so that an arc is not cut anywhere within.
    """
    rotations = np.stack([camera.world_to_camera[:3, :3] for camera in cameras.values()])
    centres = np.stack([camera.centre for camera in cameras.values()])
    across = np.eye(3) - rotations[:, 2, :, None] * rotations[:, 2, None, :]
    target = np.linalg.lstsq(
        across.sum(axis=0), (across @ centres[..., None]).sum(axis=0)[:, 0], rcond=None
    )[0]
    up = -rotations[:, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    towards = centres - target
    level = towards - (towards @ up)[:, None] * up
    middle = level.mean(axis=0)
    angles = np.arctan2(level @ np.cross(up, middle), level @ middle)
    return [list(cameras)[index] for index in np.argsort(angles, kind="stable")]
