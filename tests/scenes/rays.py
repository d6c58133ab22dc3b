"""Viewing rays, for scenes that are drawn by closed forms."""

from __future__ import annotations

import numpy as np

from eavatar.cameras import Camera


def pixel_rays(camera: Camera) -> np.ndarray:
    """(H, W, 3) unit directions in the world from the camera's centre to the pixels' centres."""
    across, down = np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5
    pixels = np.stack([*np.meshgrid(across, down), np.ones((camera.height, camera.width))], axis=-1)
    rays = pixels @ np.linalg.inv(camera.intrinsics).T @ camera.world_to_camera[:3, :3]
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)
