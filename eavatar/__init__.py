"""EAvatar: expression-aware 3D Gaussian head avatars from raw multi-view video.

    import eavatar

    avatar = eavatar.load_avatar("results/demo")
    tracking = eavatar.read_tracking("results/demo/face/tracking/FREE.npz")
    cameras = eavatar.read_cameras("results/demo/capture/cameras.json")
    image = avatar.render(tracking[0], cameras["222200037"])

docs/api.md has more. Each name is imported when it is first used: importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eavatar.threads import provide_kernel_folder

if TYPE_CHECKING:
    from eavatar.avatar.files import load_avatar
    from eavatar.avatar.model import Avatar
    from eavatar.cameras import Camera
    from eavatar.errors import UserError
    from eavatar.io import Timestep, Tracking, read_cameras, read_tracking

__version__ = "0.2.0"
__all__ = [
    "Avatar",
    "Camera",
    "Timestep",
    "Tracking",
    "UserError",
    "__version__",
    "load_avatar",
    "read_cameras",
    "read_tracking",
]

_MODULES = {
    "Avatar": "eavatar.avatar.model",
    "Camera": "eavatar.cameras",
    "Timestep": "eavatar.io",
    "Tracking": "eavatar.io",
    "UserError": "eavatar.errors",
    "load_avatar": "eavatar.avatar.files",
    "read_cameras": "eavatar.io",
    "read_tracking": "eavatar.io",
}

provide_kernel_folder()  # before a module compiles


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
