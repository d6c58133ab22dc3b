"""What defines a training, by name: a checkpoint is resumed only where all of it is the same.

Left out are the sub-block ``run`` of the settings, as it changes nothing that is learned, and
``steps``, see `eavatar.training.checkpoints.Run`. Of images it is the files' sizes, which other
pixels change; all else counts byte by byte. Nothing computed enters, so that another machine goes
on where one stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eavatar.data.frames import FrameSet
from eavatar.settings import Settings

TRACKED = (
    "expression", "appearance", "gaze", "rotation", "translation", "landmarks",
    "neutral_landmarks", "intrinsics", "world_to_camera",
)  # fmt: skip


def define(
    name: str, settings: Settings, seed: int, frames: FrameSet, **files: Path
) -> dict[str, str]:
    """The definition of a training.

    Args:
        name: of the stage and of its block of settings.
        settings: the block.
        seed: of all random draws.
        frames: what is trained on.
        files: further inputs, by name.
    """
    block = settings.model_dump(mode="json", exclude={"run", "steps"})
    return {
        **_flatten(name, block),
        "seed": str(seed),
        "device": frames.device.type,
        "tracking": _digest_tracking(frames),
        "frames": _digest_images(frames),
        **{name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }


def _flatten(name: str, block: Mapping[str, Any]) -> dict[str, str]:
    """Values as JSON by their dotted names."""
    flat: dict[str, str] = {}
    for key, value in block.items():
        inner = _flatten(f"{name}.{key}", value) if isinstance(value, dict) else None
        flat |= inner if inner is not None else {f"{name}.{key}": json.dumps(value)}
    return flat


def _digest_tracking(frames: FrameSet) -> str:
    """Of tracking and cameras."""
    digest = hashlib.sha256(repr((frames.serials, frames.scale)).encode())
    for name in TRACKED:
        tensor: Tensor = getattr(frames, name)
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _digest_images(frames: FrameSet) -> str:
    """Of which frames are usable, their files' sizes, and what is taken out of their edges."""
    digest = hashlib.sha256(repr((frames.sequences, frames.timesteps)).encode())
    digest.update(frames.usable.tobytes())
    for timestep, camera in np.argwhere(frames.usable).tolist():
        sizes = [_size(path) for path in frames.store.paths(timestep, camera)]
        digest.update(repr(sizes).encode())
    for background in frames.store.backgrounds:
        digest.update(b"" if background is None else background.tobytes())
    return digest.hexdigest()


def _size(path: Path) -> int:
    """In bytes; none of a missing file, which is told when it is read."""
    return path.stat().st_size if path.exists() else 0
