"""Open3D is found, or its absence is one sentence."""

import sys

import pytest

from eavatar.errors import UserError
from eavatar.prior.open3d_loader import import_open3d


def test_open3d_is_imported_with_or_without_the_system_library():
    assert import_open3d().geometry.TriangleMesh


@pytest.mark.parametrize("package", ["open3d", "libusb_package"])
def test_what_cannot_be_imported_is_one_sentence(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "open3d", None)  # Python's own way to forbid an import
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="install the Debian package"):
        import_open3d()
