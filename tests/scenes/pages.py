"""What a page of an avatar draws, in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float32
from eavatar.avatar.model import Avatar
from eavatar.cameras import Camera
from tests.scenes.chromium import Page, decode_image

NEUTRAL = -1  # in place of a timestep of the page's sequence: neutral, at the mean pose


@dataclass(frozen=True)
class PageView:
    """What the page's renderer is asked for.

    Attributes:
        timestep: of its sequence, or `NEUTRAL`.
        camera: of the image.
    """

    timestep: int
    camera: Camera


def draw_page(page: Page, avatar: Avatar, views: Sequence[PageView]) -> list[Float32]:
    """The images (H, W, 3) in [0, 1] that the page draws of the views, all of one size."""
    asked = [{"timestep": view.timestep, "view": _view(avatar, view.camera)} for view in views]
    width, height = views[0].camera.width, views[0].camera.height
    urls = page.run(
        f"""
        const {{ renderer, controls }} = await started;
        const {{ width, height }} = canvas;
        Object.assign(canvas, {{ width: {width}, height: {height} }});
        const images = {json.dumps(asked)}.map(({{ timestep, view }}) => {{
          if (timestep < 0) controls.set(controls.coefficients.map(() => 0));
          else controls.show(timestep);
          renderer.draw(controls.coefficients, controls.pose, view);
          return canvas.toDataURL();
        }});
        controls.set(controls.coefficients.map(() => 0));
        Object.assign(canvas, {{ width, height }});
        return images;"""
    )
    return [decode_image(url.partition(",")[2]) for url in urls]


def _view(avatar: Avatar, camera: Camera) -> dict[str, Any]:
    """A camera in the page's space: canonical, of the head at its mean pose."""
    rest = avatar.generator.torso.rest_pose.double().numpy()
    rotation, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    return {
        "rotation": (rotation @ Rotation.from_rotvec(rest[:3]).as_matrix()).flatten().tolist(),
        "translation": ((rotation @ rest[3:] + translation) / avatar.settings.scale).tolist(),
        "focal": np.diag(camera.intrinsics)[:2].tolist(),
        "centre": camera.intrinsics[:2, 2].tolist(),
    }
