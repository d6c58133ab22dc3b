"""MediaPipe's networks and one real photograph: scikit-image's, in the public domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eavatar.mediapipe_weights import FOLDER, SHA256
from tests.scenes import ROOT


def networks_folder() -> Path:
    """Where `make weights` puts the networks; skips the test if they are not there."""
    folder = ROOT / FOLDER
    if not all((folder / name).is_file() for name in SHA256):
        pytest.skip(f"MediaPipe's networks are not in {FOLDER}: make weights")
    return folder


def photograph() -> np.ndarray:
    """(512, 512, 3) RGB: an astronaut who looks into the camera."""
    data = pytest.importorskip("skimage.data")
    image: np.ndarray = data.astronaut()
    return image
