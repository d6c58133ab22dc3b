"""The real rembg and onnxruntime on ONNX files that the test writes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.capture.backends import rembg
from eavatar.capture.backends.rembg import MODELS, find_model, open_session, segment
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.matting import matte
from eavatar.data.images import read_grey
from eavatar.errors import UserError
from tests.scenes.onnx_network import sigmoid_network
from tests.scenes.small_capture import (
    SERIALS,
    grey_frames,
    ingest_settings,
    matte_settings,
    write_capture,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("rembg")

HOMES = ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty REMBG_HOME, no other home of the user's, and a network that must not be touched."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was attempted")

    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("REMBG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rembg._open_session.cache_clear()
    yield tmp_path / "home"
    rembg._open_session.cache_clear()


def write_model(path: Path, size: int = 320) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sigmoid_network(size))
    return path


# --- where the file is ------------------------------------------------------------------------


def test_a_model_is_found_in_its_folder(home: Path) -> None:
    path = write_model(home / "models" / "u2netp" / "u2netp.onnx")
    assert find_model("u2netp") == path


def test_u2net_home_wins(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(home / "models" / "u2netp" / "u2netp.onnx")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"other/models/u2netp/u2netp\.onnx"):
        find_model("u2netp")
    flat = write_model(tmp_path / "other" / "u2netp.onnx")
    assert find_model("u2netp") == flat
    nested = write_model(tmp_path / "other" / "models" / "u2netp" / "u2netp.onnx")
    assert find_model("u2netp") == nested


def test_the_flat_folder_of_earlier_versions_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "user" / ".u2net" / "u2netp.onnx")
    assert find_model("u2netp") == path
    monkeypatch.delenv("REMBG_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"data/rembg/models/u2netp/u2netp\.onnx"):
        find_model("u2netp")


@pytest.mark.parametrize("name", HOMES)
def test_an_empty_home_variable_makes_no_download(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "")
    with pytest.raises(UserError, match="is missing"):
        open_session("u2netp")


def test_a_missing_model_says_where_it_goes(home: Path) -> None:
    place = "home/models/birefnet-portrait/birefnet-portrait.onnx"
    with pytest.raises(UserError, match=f"{place}.*REMBG_HOME.*capture.matte.backend"):
        open_session("birefnet-portrait")
    assert not home.exists()


def test_a_folder_or_a_broken_file_is_no_model(home: Path) -> None:
    path = home / "models" / "silueta" / "silueta.onnx"
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="'silueta' is missing"):
        open_session("silueta")
    path.rmdir()
    path.write_bytes(sigmoid_network(320)[:-20])
    with pytest.raises(UserError, match=r"silueta\.onnx is not a readable ONNX file"):
        open_session("silueta")


@pytest.mark.parametrize("name", ["withoutbg", "atlascloud"])
def test_services_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' sends every image to a service"):
        open_session(name)


@pytest.mark.parametrize("name", ["sam", "u2net_cloth_seg", "u2net_custom", "", "../u2net"])
def test_what_is_no_matting_model_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"capture\.matte\.rembg\.model is .*must be one of u2net,"):
        open_session(name)


def test_all_models_are_sessions_of_rembg_that_run_here() -> None:
    from rembg.sessions import sessions_class

    local = {session.name() for session in sessions_class if session.is_local()}
    assert set(MODELS) <= local


# --- what it answers --------------------------------------------------------------------------


def segmented(home: Path, image: np.ndarray) -> np.ndarray:
    """The answer of a stand-in network that finds what is red."""
    write_model(home / "models" / "u2netp" / "u2netp.onnx")
    return segment(open_session("u2netp"), image)


def test_alpha_is_what_the_network_finds(home: Path) -> None:
    image = np.full((96, 96, 3), 20, np.uint8)
    cv2.circle(image, (48, 40), 25, (10, 40, 230), -1)
    alpha = segmented(home, image)
    assert alpha.shape == (96, 96) and alpha.dtype == np.uint8
    assert alpha[40, 48] > 230 and alpha[90, 90] < 25  # rembg's Lanczos filter overshoots at edges
    overlap = (alpha > 127) & (image[..., 2] > 127)
    assert overlap.sum() / ((alpha > 127) | (image[..., 2] > 127)).sum() > 0.95


@pytest.mark.parametrize("deviation", [0, 6])
def test_an_empty_image_gives_an_empty_mask(home: Path, deviation: float) -> None:
    """Stretched to the full range, the answer to noise would cover half of the image."""
    random = np.random.default_rng(0)
    image = (120 + deviation * random.standard_normal((96, 96, 3))).astype(np.uint8)
    assert segmented(home, image).max() == 0


def test_a_network_of_another_input_size(home: Path) -> None:
    write_model(home / "models" / "birefnet-portrait" / "birefnet-portrait.onnx", size=1024)
    image = np.full((64, 64, 3), 20, np.uint8)
    image[16:48, 16:48, 2] = 230
    alpha = segment(open_session("birefnet-portrait"), image)
    assert alpha[32, 32] > 230 and alpha[4, 4] < 25


def test_matte_by_rembg(home: Path, tmp_path: Path) -> None:
    """The network answers with the red channel, so the mask is bright where frames are."""
    raw = write_capture(tmp_path / "raw", grey_frames(4), sequences=("FREE",))
    capture = tmp_path / "capture"
    calibrate(ingest_settings(), raw, capture)
    ingest(ingest_settings(), raw, "FREE", capture)
    write_model(home / "models" / "u2netp" / "u2netp.onnx")
    settings = matte_settings("rembg", "u2netp")
    matte(settings, ingest_settings(), capture, "FREE", None, capture / "masks")
    mask = read_grey(capture / "masks/FREE" / SERIALS[0] / "00000.png")
    assert mask[32, 32] > 200
    assert mask[:, 0].max() == 0
