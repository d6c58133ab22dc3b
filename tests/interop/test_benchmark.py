"""`export-benchmark`: the ball as a participant of the benchmark, with a sequence of its length."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from eavatar.__main__ import main
from eavatar.avatar.files import load_avatar
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.interop.benchmark import KEPT_BACK, PARTICIPANTS, Wanted, draw_frame, export_benchmark
from eavatar.io import read_cameras, read_tracking
from tests.scenes.ball import SIZE, Subject, full_cameras, make_subject

WIDTH, HEIGHT = 1100, 1604


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("ball"))


@pytest.fixture
def results(ball: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ball named as a participant, of whom FREE is wanted, as long as the ball's."""
    monkeypatch.setitem(PARTICIPANTS, 475, Wanted("FREE", 3))
    shutil.copytree(ball.results, tmp_path / "475")
    return tmp_path / "475"


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """The participant's calibration: the ball's cameras, and those kept back in their places."""
    cameras = {serial: camera.resize(WIDTH, HEIGHT) for serial, camera in full_cameras().items()}
    kept_back = dict(zip(KEPT_BACK, cameras.values(), strict=False))
    write_calibration(tmp_path, cameras | kept_back)
    return tmp_path


def write_calibration(download: Path, cameras: dict[str, Camera]) -> None:
    path = download / "nvs" / "475" / "calibration" / "camera_params.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "world_2_cam": {name: c.world_to_camera.tolist() for name, c in cameras.items()},
        "intrinsics": {name: c.intrinsics.tolist() for name, c in cameras.items()},
    }
    path.write_text(json.dumps(content))


def test_the_submission_is_as_the_benchmark_wants_it(results, download, tmp_path, caplog):
    path = tmp_path / "submission.zip"
    words = ["export-benchmark", str(results), "--download", str(download)]
    assert main([*words, "--output", str(path)]) == 0
    assert "lacks participants 388, 422, 443, 445." in caplog.text
    archive = zipfile.ZipFile(path)
    assert archive.namelist() == [f"475/FREE/cam_{serial}.mp4" for serial in KEPT_BACK]
    archive.extractall(tmp_path)
    for name in archive.namelist():
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].average_rate == 73
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * 3
        assert frames[0][:20].min() > 250  # white, but for the codec


def test_a_frame_shows_in_the_crop_what_the_avatar_was_trained_on(results):
    """The ingested image is a window of the frame: drawn with pixels of one size, they agree."""
    avatar = load_avatar(results, device="cpu")
    step = read_tracking(results / "face/tracking/FREE.npz")[1]
    serial, ingested = next(iter(read_cameras(results / "capture/cameras.json").items()))
    frame = full_cameras()[serial].resize(WIDTH, HEIGHT)
    magnification = ingested.intrinsics[0, 0] / frame.intrinsics[0, 0]
    image = draw_frame(avatar, step, frame, magnification)
    window = frame.crop(-100, 152, 1300, 1300).resize(SIZE, SIZE)
    np.testing.assert_allclose(window.intrinsics, ingested.intrinsics)
    expected = 255 * avatar.render(step, ingested).numpy()
    padded = np.pad(image, ((0, 0), (100, 100), (0, 0)), constant_values=255)[152 : 152 + 1300]
    assert expected.min() < 128  # something is to be seen
    # Twenty pixels of the frame for one of the avatar's: resampled there and back.
    shrunk = cv2.resize(padded, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    aligned = np.abs(shrunk - expected).mean()
    for axis in (0, 1):
        for shift in (-1, 1):
            assert aligned < np.abs(np.roll(shrunk, shift, axis) - expected).mean() / 2
    assert np.abs(shrunk - expected).max() < 64  # at edges, blurred by the resampling


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("name", "is named after no participant"),
        ("twice", "name each once"),
        ("length", "tracked at 3 timesteps, of which the benchmark wants 259"),
        ("camera", f"lacks camera {KEPT_BACK[2]}"),
        ("moved", "elsewhere than"),
        ("none", "no results are named"),
    ],
)
def test_a_fault_is_one_sentence_before_anything_is_drawn(
    results, download, monkeypatch, fault, sentence
):
    folders = [results]
    cameras = {serial: camera.resize(WIDTH, HEIGHT) for serial, camera in full_cameras().items()}
    if fault == "name":
        folders = [results.rename(results.with_name("901"))]
    if fault == "twice":
        folders = [results, results]
    if fault == "length":
        monkeypatch.setitem(PARTICIPANTS, 475, Wanted("FREE", 259))
    if fault == "camera":
        first = next(iter(cameras.values()))
        write_calibration(download, cameras | dict.fromkeys(KEPT_BACK[:2], first))
    if fault == "moved":
        names = [*cameras, *KEPT_BACK]
        views = list(cameras.values())
        write_calibration(
            download, {name: views[(place + 1) % 4] for place, name in enumerate(names)}
        )
    if fault == "none":
        folders = []
    with pytest.raises(UserError, match=sentence):
        export_benchmark(folders, download)
    assert not (results.parent / "nvs_submission.zip").exists()
