"""Readers on damaged files: a `UserError`, never another exception and never a wrong file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eavatar.capture.captures import open_capture
from eavatar.capture.recording import Capture, check_videos
from eavatar.capture.video import CameraFrames
from eavatar.errors import UserError
from tests.scenes.small_capture import (
    HEIGHT,
    SERIALS,
    WIDTH,
    grey_frames,
    write_capture,
    write_timed,
    write_video,
)

FEW = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
NOISE = np.random.default_rng(0).integers(0, 255, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("raw") / "901", grey_frames(2), ("FREE",))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "cam_1.mp4", list(NOISE))


def opens_or_complains(root: Path) -> Capture | None:
    try:
        return open_capture(root)
    except UserError as error:
        assert "\n" not in str(error)
        return None


def is_sound(raw: Capture) -> bool:
    """Whether all that was read is finite and rigid."""
    for camera in raw.cameras.values():
        rotation = camera.world_to_camera[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=2e-3):
            return False
        if not np.isfinite([*camera.intrinsics.ravel(), *camera.world_to_camera.ravel()]).all():
            return False
    return all(np.isfinite(colour.matrix).all() for colour in (raw.colours or {}).values())


def replaced(root: Path, name: str, content: str | bytes, tmp: Path) -> Path:
    """A copy of a capture with another calibration file."""
    shutil.rmtree(tmp, ignore_errors=True)
    shutil.copytree(root, tmp)
    path = tmp / "calibration" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp


NAMES = st.sampled_from(["camera_params.json", "color_calibration.json"])


@given(name=NAMES, share=st.floats(0, 0.99))
@FEW
def test_truncated_json(capture: Path, tmp_path: Path, name: str, share: float) -> None:
    content = (capture / "calibration" / name).read_bytes()
    root = replaced(capture, name, content[: int(share * len(content))], tmp_path / "c")
    assert opens_or_complains(root) is None


@given(name=NAMES, junk=JUNK)
@FEW
def test_json_of_another_kind(capture: Path, tmp_path: Path, name: str, junk: Any) -> None:
    root = replaced(capture, name, json.dumps(junk), tmp_path / "c")
    assert opens_or_complains(root) is None


@given(name=NAMES, junk=JUNK, row=st.integers(0, 2), data=st.data())
@FEW
def test_junk_somewhere_in_json(
    capture: Path, tmp_path: Path, name: str, junk: Any, row: int, data: st.DataObject
) -> None:
    content = json.loads((capture / "calibration" / name).read_text())
    table = content.get("world_2_cam", content)
    matrix = table[SERIALS[0]]
    place: Callable[[], None] = data.draw(
        st.sampled_from(
            [
                lambda: content.update(intrinsics=junk),
                lambda: table.update({SERIALS[0]: junk}),
                lambda: matrix.__setitem__(row, junk),
                lambda: matrix[row].__setitem__(0, junk),
                lambda: matrix.append(junk),
            ]
        )
    )
    place()
    raw = opens_or_complains(replaced(capture, name, json.dumps(content), tmp_path / "c"))
    assert raw is None or is_sound(raw)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 50_000, "9" * 10_000, b"\xff\xfe\x00"]
)
def test_json_that_parsers_choke_on(capture: Path, tmp_path: Path, content: str | bytes) -> None:
    assert (
        opens_or_complains(replaced(capture, "camera_params.json", content, tmp_path / "c")) is None
    )


@given(
    row=st.integers(0, 3),
    column=st.integers(0, 3),
    value=st.floats() | st.sampled_from([1e400, -1e308, 1e200, 0.5, 1.01]),
)
@FEW
def test_calibration_with_a_wrong_number(
    capture: Path, tmp_path: Path, row: int, column: int, value: float
) -> None:
    content = json.loads((capture / "calibration" / "camera_params.json").read_text())
    content["world_2_cam"][SERIALS[1]][row][column] = value
    root = replaced(capture, "camera_params.json", json.dumps(content), tmp_path / "c")
    raw = opens_or_complains(root)
    assert raw is None or is_sound(raw)


@given(matrix=st.lists(st.floats(-2, 2), min_size=9, max_size=9))
@FEW
def test_rotations_that_are_none(capture: Path, tmp_path: Path, matrix: list[float]) -> None:
    content = json.loads((capture / "calibration" / "camera_params.json").read_text())
    for index, value in enumerate(matrix):
        content["world_2_cam"][SERIALS[1]][index // 3][index % 3] = value
    root = replaced(capture, "camera_params.json", json.dumps(content), tmp_path / "c")
    raw = opens_or_complains(root)
    assert raw is None or is_sound(raw)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_intrinsics_of_another_image_size_are_refused(
    capture: Path, tmp_path: Path, factor: float
) -> None:
    content = json.loads((capture / "calibration" / "camera_params.json").read_text())
    content["intrinsics"] = (np.diag([factor, factor, 1]) @ content["intrinsics"]).tolist()
    root = replaced(capture, "camera_params.json", json.dumps(content), tmp_path / "c")
    with pytest.raises(UserError, match="principal point"):
        open_capture(root)


@given(content=st.binary(max_size=300))
@example(content=b"PK\x03\x04")
@FEW
def test_a_colour_array_of_junk(tmp_path: Path, content: bytes) -> None:
    from eavatar.capture.nersemble import _read_affine

    for prefix in (b"", b"\x93NUMPY\x01\x00"):
        (tmp_path / "1.npy").write_bytes(prefix + content)
        with pytest.raises(UserError):
            _read_affine(tmp_path / "1.npy")


# --- videos and images ------------------------------------------------------------------------


def decoded(path: Path) -> list[np.ndarray] | None:
    """All frames, as ingest takes them, or None where the file is refused."""
    recorded = CameraFrames((path,))
    try:
        frames = recorded.header().frames
        images = [image for _, image in recorded.decode()]
    except UserError as error:
        assert "\n" not in str(error)
        return None
    assert len(images) == frames
    return images


@given(content=st.binary(max_size=2000), headed=st.booleans())
@FEW
def test_a_video_of_garbage(tmp_path: Path, video: Path, content: bytes, headed: bool) -> None:
    path = tmp_path / "cam_1.mp4"
    path.write_bytes(video.read_bytes()[:64] + content if headed else content)
    assert decoded(path) is None


@given(share=st.floats(0, 0.999))  # what is after that describes no frame
@FEW
def test_a_truncated_video(tmp_path: Path, video: Path, share: float) -> None:
    path = tmp_path / "cam_1.mp4"
    content = video.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert decoded(path) is None


@pytest.mark.parametrize("frame", range(4))
@pytest.mark.parametrize("lost", [16, 64, 1024])
def test_a_frame_whose_head_is_lost(tmp_path: Path, video: Path, frame: int, lost: int) -> None:
    """The frames come out as they were or not at all.

    H.264 has no checksum: a loss further inside a frame may decode to other pixels, unseen.
    """
    path = tmp_path / "cam_1.mp4"
    with av.open(str(video)) as container:
        packet = container.streams.video[0].index_entries[frame]
    content = bytearray(video.read_bytes())
    content[packet.pos : packet.pos + lost] = bytes(lost)
    path.write_bytes(content)
    images = decoded(path)
    # The encoder's note before the first frame may be lost without harm.
    assert images is None or np.array_equal(images, decoded(video))


def test_a_frame_that_was_left_out_is_found_by_its_time(tmp_path: Path) -> None:
    """Two cameras of equally many frames, one of which skipped a frame and ran on longer."""
    root = write_capture(tmp_path / "901", grey_frames(6), ("FREE",))
    path = root / "sequences" / "FREE" / "images" / f"cam_{SERIALS[1]}.mp4"
    write_timed(path, grey_frames(6), (0, 1, 2, 4, 5, 6))
    with pytest.raises(UserError, match="do not skip the same frames"):
        check_videos(open_capture(root), ["FREE"])


@pytest.mark.parametrize(
    ("suffix", "rate", "refused"),
    [
        (".mp4", Fraction(7299, 100), False),
        (".mp4", Fraction(73_000, 1001), False),  # as NTSC's 29.97 of 30
        (".mkv", 73, False),  # whose times are milliseconds: of 13.7 ms steps of 13 and 14
        (".mp4", 70, True),  # as far off as 24 from 25
        (".mkv", 70, True),
        (".mp4", 36, True),
    ],
)
def test_cameras_of_one_length_and_several_frame_rates_are_refused(
    suffix: str, rate: Fraction | int, refused: bool, tmp_path: Path
) -> None:
    frames = [*grey_frames(4)] * 5
    root = write_capture(tmp_path / "901", frames, ("FREE",))
    path = root / "sequences" / "FREE" / "images" / f"cam_{SERIALS[1]}.mp4"
    path.unlink()
    path = write_video(path.with_suffix(suffix), frames, rate=rate)
    if not refused:
        check_videos(open_capture(root), ["FREE"])
        return
    with pytest.raises(
        UserError, match=r" frames per second but other cameras .* have 73;"
    ) as told:
        check_videos(open_capture(root), ["FREE"])
    # Of 19 intervals of some 14 ms, each end rounded to a millisecond: 0.4 %.
    said = float(str(told.value).removeprefix(f"{path} has ").partition(" ")[0])
    assert said == pytest.approx(float(rate), rel=0.004)


def write_images(folder: Path, shapes: list[tuple[int, int]]) -> CameraFrames:
    paths = []
    for index, shape in enumerate(shapes):
        paths.append(folder / f"{index}.jpg")
        cv2.imwrite(str(paths[-1]), NOISE[0][: shape[0], : shape[1]])
    return CameraFrames(tuple(paths))


def test_an_image_of_another_size_stops_the_decoding(tmp_path: Path) -> None:
    recorded = write_images(tmp_path, [(64, 64), (64, 64), (64, 32)])
    with pytest.raises(UserError, match=r"2\.jpg has 32×64 pixels but .*0\.jpg has 64×64"):
        list(recorded.decode())


@given(share=st.floats(0, 0.995), junk=st.binary(max_size=100))
@FEW
def test_a_damaged_image(tmp_path: Path, share: float, junk: bytes) -> None:
    recorded = write_images(tmp_path, [(64, 64)] * 2)
    content = recorded.paths[1].read_bytes()
    for damaged in (content[: int(share * len(content))], junk):
        recorded.paths[1].write_bytes(damaged)
        with pytest.raises(UserError, match=r"1\.jpg"):
            list(recorded.decode())
