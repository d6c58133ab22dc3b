"""A disk of any size, a tmpfs, which only root can mount."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLENTY = 2**29  # bytes


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A tmpfs mounted in a folder.

    Raises:
        subprocess.CalledProcessError: this user may not mount one.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def leave_free(place: Path, free: int) -> None:
    """Have so many bytes free on the disk."""
    size = shutil.disk_usage(place).used + free
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
