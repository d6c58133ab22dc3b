"""Fixtures of several stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

# No deadline: how long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded subject's ``raw`` and ``truth``, 88×128 pixels, seed 5."""
    from eavatar.demo.capture import demo_capture
    from eavatar.settings import DemoSettings

    folder = tmp_path_factory.mktemp("demo")
    settings = DemoSettings(timesteps=2, held_out_timesteps=2, image_scale=0.04)
    demo_capture(settings, 5, folder / "raw", folder / "truth")
    return folder


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    """Makes all new tensors fake ones on CUDA: with shapes and types but no values, so that an
    operation that would need a host-device synchronisation raises."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
