"""The methods that can be compared, by name; each is imported when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from eavatar.data.methods import Method
from eavatar.errors import UserError

OpenMethod = Callable[[Path, Path, torch.device, Sequence[str]], Method]


def open_method(
    name: str, source: Path, capture: Path, device: torch.device, held_out: Sequence[str] = ()
) -> Method:
    """A method, ready to draw a subject's held-out timesteps.

    Args:
        name: a key of `METHODS`.
        source: what it draws from: the folder of its model, or of its images.
        capture: ``results/<subject>/capture``.
        device: where it draws.
        held_out: cameras that alone are measured, as of `eavatar.data.camera_split`.
    Raises:
        UserError: there is no such method, or the source does not hold what it needs.
    """
    if name not in METHODS:
        raise UserError(f"there is no method '{name}'; there are {', '.join(METHODS)}.")
    return METHODS[name](source, capture, device, held_out)


def _open_avatar(
    source: Path, capture: Path, device: torch.device, held_out: Sequence[str]
) -> Method:
    from eavatar.tables.avatar_method import AvatarMethod

    return AvatarMethod.open(source, device)


def _open_images(
    source: Path, capture: Path, device: torch.device, held_out: Sequence[str]
) -> Method:
    from eavatar.tables.image_folder import ImageFolder

    return ImageFolder.open(source, capture, held_out)


def _open_nerface(
    source: Path, capture: Path, device: torch.device, held_out: Sequence[str]
) -> Method:
    from eavatar.baselines.nerface import NeRFace

    return NeRFace.read(source).to(device)


def _open_havatar(
    source: Path, capture: Path, device: torch.device, held_out: Sequence[str]
) -> Method:
    from eavatar.baselines.havatar import HAvatar

    return HAvatar.read(source).to(device)


METHODS: dict[str, OpenMethod] = {
    "avatar": _open_avatar,
    "images": _open_images,
    "nerface": _open_nerface,
    "havatar": _open_havatar,
}
