from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenes.splat_scene import write_subject


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy head in contract files: two cameras, four timesteps, images of 32²."""
    return write_subject(tmp_path_factory.mktemp("toy"), timesteps=4, views=2, size=32)
