"""The one place that imports Open3D, which needs a system library that many machines lack."""

from __future__ import annotations

import ctypes
from types import ModuleType

from eavatar.errors import UserError


def import_open3d() -> ModuleType:
    """Open3D; where libusb is not installed on the system, with the copy from `libusb-package`.

    Open3D links against libusb-1.0 for depth cameras that we never use. A library that is
    already loaded satisfies the link, so no root is needed.

    Raises:
        UserError: neither the plain import nor the packaged library works.
    """
    try:
        import open3d
    except (ImportError, OSError):
        open3d = _import_with_packaged_libusb()
    return open3d


def _import_with_packaged_libusb() -> ModuleType:
    """Open3D after loading the copy of libusb that `libusb-package` brings."""
    try:
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
        import open3d
    except (ImportError, OSError) as error:
        raise UserError(
            f"Open3D cannot be imported ({error}); install the Debian package libusb-1.0-0, "
            "or run `pip install open3d libusb-package`."
        ) from error
    return open3d
