"""Recordings that are not one plain MP4 per camera: read rightly, or a sentence that fits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from eavatar.capture.captures import open_capture, open_masks
from eavatar.capture.recording import check_size, check_videos
from eavatar.capture.video import (
    CameraFrames,
    list_cameras,
    read_raw_image,
    read_video_header,
)
from eavatar.errors import UserError
from tests.scenes.small_capture import SERIALS, grey_frames, write_capture, write_timed

FRAMES = 9
EVERY = 4  # frames from one key frame, and so one fragment, to the next


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("raw") / "901", grey_frames(FRAMES), ("FREE",))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "plain.mp4")


def write(path: Path, reordered: int = 0, **options: str) -> Path:
    """Frames with a key frame every few, and how many B-frames between others."""
    with av.open(str(path), "w", options=options) as container:
        coding = {"crf": "6", "bf": str(reordered), "g": str(EVERY)}
        stream = container.add_stream("libx264", rate=73, options=coding)
        stream.height, stream.width = grey_frames(1)[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for time, image in enumerate(grey_frames(FRAMES)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 73)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, path: Path, hidden: int = 0, options: dict[str, str] | None = None) -> Path:
    """The same packets in another container, the first few at negative times: an edit list."""
    with av.open(str(source), options=options or {}) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        step = stream.index_entries[1].timestamp - stream.index_entries[0].timestamp
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - hidden * step, packet.dts - hidden * step
                packet.stream = copy
                new.mux(packet)
    return path


def levels(path: Path) -> list[int]:
    """The grey levels of the frames, after the check of the header."""
    frames = CameraFrames((path,))
    images = [image for _, image in frames.decode()]
    assert len(images) == frames.header().frames
    return [int(np.median(image)) for image in images]


@pytest.mark.parametrize("reordered", [0, 2])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", {"movflags": "frag_keyframe+empty_moov"}),
        (".mp4", {"movflags": "frag_keyframe"}),  # the first frames in a table, the rest not
        (".MP4", {"movflags": "frag_keyframe+empty_moov+default_base_moof+skip_trailer"}),
        (".mov", {}),
        (".MOV", {}),
        (".mkv", {}),
        (".avi", {}),
    ],
)
def test_a_whole_video_is_read_whatever_its_container(
    suffix: str, options: dict[str, str], reordered: int, plain: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / f"cam_1{suffix}", reordered, **options)
    assert list_cameras([tmp_path])["1"].header().gaps == ()
    # Quantised anew by each coding; frames are 20 levels apart.
    np.testing.assert_allclose(levels(path), levels(plain), atol=2)


@pytest.mark.parametrize("length", [16, 40])
@pytest.mark.parametrize("place", [1, 6, 9, -3, -2])
def test_a_skipped_frame_is_at_its_place_however_the_video_is_coded(
    place: int, length: int, tmp_path: Path
) -> None:
    skipped = place % length
    times = [time for time in range(length) if time != skipped]
    images = (grey_frames(9) * 5)[: len(times)]
    found = [
        read_video_header(write_timed(tmp_path / "cam.mp4", images, times, b)) for b in (0, 2, 7)
    ]
    assert [header.gaps for header in found] == [(skipped,)] * 3


@pytest.mark.parametrize("place", [1, 6, -2])
def test_a_frame_that_is_empty_in_an_avi_is_skipped(place: int, tmp_path: Path) -> None:
    times = [time for time in range(12) if time != place % 12]
    path = write_timed(tmp_path / "cam.avi", (grey_frames(9) * 2)[: len(times)], times)
    assert len(levels(path)) == len(times)
    assert read_video_header(path).gaps == (place % 12,)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.97])
def test_a_fragmented_video_cut_inside_a_frame_is_refused(part: float, tmp_path: Path) -> None:
    movflags = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
    path = write(tmp_path / "cam_1.mp4", movflags=movflags)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=r"truncated|not a complete video"):
        CameraFrames((path,)).header()


def test_a_video_trimmed_by_an_edit_list_is_found_before_it_is_decoded(
    plain: Path, tmp_path: Path
) -> None:
    path = remux(plain, tmp_path / "trimmed.mp4", hidden=3)
    with pytest.raises(UserError, match=r"trimmed without encoding.*-ignore_editlist.*encode"):
        CameraFrames((path,)).header()
    # What the sentence says to do.
    whole = remux(path, tmp_path / "whole.mp4", options={"ignore_editlist": "1"})
    assert levels(whole) == levels(plain)


def test_a_recording_on_its_side_is_told_from_a_cropped_one(tmp_path: Path) -> None:
    full = (1080, 1920)
    for name in ("cam_1.mp4", "00000.jpg"):
        with pytest.raises(UserError, match="not 1080×1920 scaled but on its side; what is read"):
            check_size(tmp_path / name, 960, 540, full)
    with pytest.raises(UserError, match="not 1080×1920 scaled; give the uncropped image"):
        check_size(tmp_path, 540, 540, full)
    check_size(tmp_path, 540, 960, full)


# --- in place of the videos ---------------------------------------------------------------------


def images_of(video: Path, suffix: str, start: int = 0, digits: int = 5) -> Path:
    """A folder of numbered images in place of a video."""
    folder = video.with_suffix("")
    folder.mkdir()
    for index, (_, image) in enumerate(CameraFrames((video,)).decode()):
        cv2.imwrite(str(folder / f"frame_{start + index:0{digits}d}{suffix}"), image)
    video.unlink()
    return folder


def copy(capture: Path, folder: Path) -> tuple[Path, Path]:
    """A capture of one's own, and one of its videos."""
    root = shutil.copytree(capture, folder / "901")
    return root, root / "sequences" / "FREE" / "images" / f"cam_{SERIALS[0]}.mp4"


@pytest.mark.parametrize(
    ("suffix", "start", "digits"), [(".png", 0, 5), (".PNG", 1, 1), (".jpg", 7, 4), (".tif", 0, 3)]
)
def test_a_folder_of_numbered_images_is_a_recording(
    suffix: str, start: int, digits: int, capture: Path, tmp_path: Path
) -> None:
    root, video = copy(capture, tmp_path)
    before = [int(np.median(image)) for _, image in CameraFrames((video,)).decode()]
    images_of(video, suffix, start, digits)
    raw = open_capture(root)
    assert check_videos(raw, ["FREE"])["FREE"][SERIALS[0]].frames == FRAMES
    after = [int(np.median(image)) for _, image in raw.frames["FREE"][SERIALS[0]].decode()]
    np.testing.assert_allclose(after, before, atol=1)  # of JPEG


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2)])
def test_images_are_turned_as_their_exif_orientation_says_when_read_and_when_checked(
    orientation: int, turns: int, tmp_path: Path
) -> None:
    image = np.full((32, 64, 3), 255, np.uint8)
    image[:8, :8] = 0  # in the upper left corner
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "cam_1").mkdir()
    Image.fromarray(image).save(tmp_path / "cam_1" / "0.jpg", exif=exif, quality=95)
    frames = list_cameras([tmp_path])["1"]
    upright = np.rot90(image, turns)
    (_, read) = next(frames.decode())
    assert (frames.header().height, frames.header().width) == upright.shape[:2]
    np.testing.assert_allclose(read, upright, atol=8)  # of JPEG


def test_images_of_numbers_that_are_no_colours_are_told(tmp_path: Path) -> None:
    path = tmp_path / "00000.tif"
    cv2.imwrite(str(path), np.ones((8, 8, 3), np.float32))
    with pytest.raises(UserError, match=r"00000\.tif holds float32 values; save it with 8 or 16"):
        read_raw_image(path)
    cv2.imwrite(str(path), np.full((8, 8, 3), 257 * 80, np.uint16))
    assert (read_raw_image(path) == 80).all()


def test_a_missing_image_of_a_recording_is_named(capture: Path, tmp_path: Path) -> None:
    root, video = copy(capture, tmp_path)
    missing = images_of(video, ".png") / "frame_00004.png"
    missing.unlink()
    with pytest.raises(UserError, match=f"{missing} does not exist"):
        check_videos(open_capture(root), ["FREE"])


def test_images_that_are_named_by_their_time_are_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "cam_1"
    folder.mkdir()
    for time in (1699999999000000000, 1699999999041666667):  # 24 Hz, in nanoseconds
        cv2.imwrite(str(folder / f"{time}.png"), grey_frames(1)[0])
    frames = list_cameras([tmp_path])["1"]
    with pytest.raises(UserError, match=f"{folder}/1699999999000000001.png does not exist"):
        frames.header()


@pytest.mark.parametrize("stranger", ["frame_00009.jpg", "other_00009.png", "thumbnail.png"])
def test_images_of_several_kinds_are_no_recording(
    stranger: str, capture: Path, tmp_path: Path
) -> None:
    root, video = copy(capture, tmp_path)
    folder = images_of(video, ".png")
    shutil.copy(folder / "frame_00000.png", folder / stranger)
    with pytest.raises(UserError, match=rf"the images of {folder} are not one recording"):
        open_capture(root)


def rename(video: Path, name: str) -> None:
    video.rename(video.with_name(name))


def replace_by_an_empty_folder(video: Path) -> None:
    video.unlink()
    video.with_suffix("").mkdir()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda video: rename(video, f"cam_{SERIALS[0]}.mxf"), f"cam_{SERIALS[0]}.mxf"),
        (lambda video: rename(video, f"{SERIALS[0]}.mp4"), f"{SERIALS[0]}.mp4"),
        (replace_by_an_empty_folder, f"cam_{SERIALS[0]}"),
    ],
)
def test_what_lies_in_place_of_a_video_is_said(
    change: Callable[[Path], None], names: str, capture: Path, tmp_path: Path
) -> None:
    root, video = copy(capture, tmp_path)
    change(video)
    said = rf"it holds {names}; what is read is cam_<camera> as a.*the camera out with .*cameras"
    with pytest.raises(UserError, match=said):
        check_videos(open_capture(root), ["FREE"])


def test_what_lies_in_place_of_all_videos_is_said(capture: Path, tmp_path: Path) -> None:
    root, video = copy(capture, tmp_path)
    for serial in SERIALS:
        rename(video.with_name(f"cam_{serial}.mp4"), f"{serial}.raw")
    said = rf"images has no .*it holds {min(SERIALS)}.raw.*the sequence out with .*exclude"
    with pytest.raises(UserError, match=said):
        check_videos(open_capture(root), ["FREE"], [min(SERIALS)])


def test_two_recordings_of_a_camera_are_a_fault(capture: Path, tmp_path: Path) -> None:
    root, video = copy(capture, tmp_path)
    shutil.copy(video, video.with_suffix(".MOV"))
    with pytest.raises(UserError, match="are of the same camera; remove one"):
        open_capture(root)


def test_a_camera_with_a_dot_in_its_name_is_called_the_same_in_a_folder_and_a_video(
    plain: Path, tmp_path: Path
) -> None:
    for serial in ("rig.1", "rig.2", "rig.3"):
        shutil.copy(plain, tmp_path / f"cam_{serial}.mp4")
    images_of(tmp_path / "cam_rig.2.mp4", ".png")
    (tmp_path / "cam_rig.2.mp4").mkdir()  # of no images: no recording, whatever its name
    assert sorted(list_cameras([tmp_path])) == ["rig.1", "rig.2", "rig.3"]


def test_masks_may_be_folders_of_images(capture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "FREE"
    folder.mkdir()
    source = copy(capture, tmp_path / "copy")[1]
    shutil.move(images_of(source, ".png"), folder)
    assert open_masks(tmp_path).frames["FREE"][SERIALS[0]].header().frames == FRAMES


def test_plates_may_be_png(capture: Path, tmp_path: Path) -> None:
    root, _ = copy(capture, tmp_path)
    folder = root / "sequences" / "BACKGROUND"
    folder.mkdir()
    cv2.imwrite(str(folder / f"image_{SERIALS[0]}.png"), grey_frames(1)[0])
    assert list(open_capture(root).plates) == [SERIALS[0]]
