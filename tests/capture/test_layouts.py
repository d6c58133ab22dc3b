"""One recording in the layouts of NeRSemble v1, v2 and Gaussian Head Avatar gives one contract."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from eavatar.capture.captures import open_capture, open_masks
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.layouts import (
    Layout,
    list_recordings,
    list_sequence_names,
    list_shared,
    recognise,
)
from eavatar.capture.matting import matte
from eavatar.capture.recording import check_videos
from eavatar.errors import UserError
from eavatar.io import read_cameras
from tests.scenes.small_capture import (
    HEIGHT,
    INTRINSICS,
    SERIALS,
    WIDTH,
    grey_frames,
    ingest_settings,
    matte_settings,
    world_to_camera,
    write_capture,
    write_video,
)

SEQUENCES = ("EXP-1-head", "FREE")
SWAP = np.eye(3)[[1, 2, 0]]  # channels change places: the same in linear light and encoded
CROP = (-20, 30, 260, 259)  # the settings' crop in the pixels of the small videos
SIZE = 64
SETTINGS = ingest_settings(image_size=SIZE)


def draw_image(step: int) -> np.ndarray:
    """(H, W, 3) RGB with soft edges: JPEG and chroma subsampling lose next to nothing."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 30 + step / 4), np.sin(y / 40), np.cos((x + y) / 50 - step / 4)]
    return (128 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def alpha(step: int) -> np.ndarray:
    """(H, W, 3) of a soft disc."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - 110 - 4 * step, y - 160)
    return np.repeat(np.clip(255 * (70 - distance) / 10, 0, 255)[..., None], 3, 2).astype(np.uint8)


def crop(image: np.ndarray) -> np.ndarray:
    x, y, width, height = CROP
    padded = cv2.copyMakeBorder(image, 0, 0, -x, width + x - WIDTH, cv2.BORDER_CONSTANT)
    return cv2.resize(padded[y : y + height], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def write_v1(v2: Path, root: Path) -> Path:
    """The v2 capture's files in v1's layout; a camera's videos may be in any part."""
    participant = root / "camera_params" / "031"
    participant.mkdir(parents=True)
    shutil.copy(v2 / "calibration" / "camera_params.json", participant)
    (root / "color_correction" / "031").mkdir(parents=True)
    for index, serial in enumerate(SERIALS):
        # Published: RGB as a row times A; v2's matrix multiplies a column.
        affine = np.vstack([np.column_stack([SWAP.T, np.zeros(3)]), [0, 0, 0, 1]])
        np.save(root / "color_correction" / "031" / f"{serial}.npy", affine)
        for sequence in SEQUENCES:
            part = root / f"sequence_{sequence}_part-{1 + index % 2}" / "031" / sequence
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(v2 / "sequences" / sequence / "images" / f"cam_{serial}.mp4", part)
    plates = root / "sequence_BACKGROUND_part-1" / "031"
    shutil.copytree(v2 / "sequences" / "BACKGROUND", plates / "BACKGROUND")
    return participant


def write_gha(root: Path, steps: int, plate: np.ndarray) -> Path:
    """The corrected, cropped pictures in GHA's layout, FREE in the held-out part."""
    seen = crop(np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
    intrinsics = np.diag([SIZE / CROP[2], SIZE / CROP[3], 1.0]) @ (
        np.diag([WIDTH / 2200, HEIGHT / 3208, 1.0]) @ INTRINSICS
        - [[0, 0, CROP[0]], [0, 0, CROP[1]], [0, 0, 0]]
    )
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    number = 0
    for part in (root, root / "held_out"):
        sequence = SEQUENCES[part != root]
        (part / "sequences").mkdir(parents=True)
        names = [f"{number + step:04d}" for step in range(steps)]
        (part / "sequences" / f"{sequence}.txt").write_text("\n".join(names))
        for step, name in enumerate(names):
            (part / "images" / name).mkdir(parents=True)
            (part / "cameras" / name).mkdir(parents=True)
            kinds = {"image": crop(draw_image(step)[..., [1, 2, 0]])[..., ::-1], "visible": seen}
            for kind, image in (kinds | {"mask": crop(alpha(step))}).items():
                for serial in SERIALS:
                    path = part / "images" / name / f"{kind}_{serial}.jpg"
                    cv2.imwrite(str(path), image, quality)
                    small = part / "images" / name / f"{kind}_lowres_{serial}.jpg"
                    cv2.imwrite(str(small), image[::4, ::4], quality)
            for index, serial in enumerate(SERIALS):
                np.savez(
                    part / "cameras" / name / f"camera_{serial}.npz",
                    extrinsic=world_to_camera(0.5 * (index - 1))[:3],
                    intrinsic=intrinsics,
                )
        number += steps
    (root / "background").mkdir()
    for serial in SERIALS:
        image = crop(plate[..., [1, 2, 0]])[..., ::-1]
        cv2.imwrite(str(root / "background" / f"image_{serial}.jpg"), image, quality)
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    folder, steps = tmp_path_factory.mktemp("layouts"), 3
    plate = draw_image(9)
    frames = [draw_image(step) for step in range(steps)]
    v2 = write_capture(folder / "v2", frames, SEQUENCES, plate, SWAP)
    for sequence in SEQUENCES:
        for serial in SERIALS:
            path = folder / "mattes" / sequence / f"cam_{serial}.mp4"
            write_video(path, [alpha(step) for step in range(steps)])
    return {
        Layout.NERSEMBLE_V2: v2,
        Layout.NERSEMBLE_V1: write_v1(v2, folder / "v1"),
        Layout.GHA: write_gha(folder / "gha", steps, plate),
    }


@pytest.fixture(scope="module")
def contracts(roots: dict[Layout, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The ``capture`` folders of v2, v1 and GHA."""
    outputs = []
    for layout, root in roots.items():
        output = tmp_path_factory.mktemp("results") / "capture"
        mattes = root if layout is Layout.GHA else roots[Layout.NERSEMBLE_V2].parent / "mattes"
        calibrate(SETTINGS, root, output)
        for name in list_sequence_names(root):
            ingest(SETTINGS, root, name, output)
            matte(matte_settings("provided"), SETTINGS, output, name, mattes, output / "masks")
        outputs.append(output)
    return outputs


def test_layouts_are_recognised(roots: dict[Layout, Path]) -> None:
    for layout, root in roots.items():
        assert recognise(root) is layout
        assert list_sequence_names(root) == list(SEQUENCES) == sorted(open_capture(root).frames)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(float)


@pytest.mark.parametrize("other", [1, 2], ids=["v1", "gha"])
def test_the_contract_is_the_same(contracts: list[Path], other: int) -> None:
    first, second = contracts[0], contracts[other]
    names, others = (
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (first, second)
    )
    assert names == others
    # v1 holds the very same files. GHA's JPEGs are coded twice, at 64² with halved chroma, which
    # bleeds over the edge of the padding: 3 % of the pixels lie there.
    mean, most = (0.0, 0.0) if other == 1 else (2.0, 10.0)
    for name in names:
        if name.suffix in (".jpg", ".png"):
            difference = np.abs(read(first / name) - read(second / name))
            if name.parts[0] == "visible":
                assert difference.max() == 0
            assert difference.mean() <= mean, name
            assert np.quantile(difference, 0.97) <= most, name


@pytest.mark.parametrize("other", [1, 2], ids=["v1", "gha"])
def test_cameras_and_indices_are_the_same(contracts: list[Path], other: int) -> None:
    first, second = (read_cameras(contracts[index] / "cameras.json") for index in (0, other))
    assert list(first) == list(second)
    for serial, camera in first.items():
        np.testing.assert_allclose(second[serial].intrinsics, camera.intrinsics, rtol=1e-9)
        np.testing.assert_allclose(
            second[serial].world_to_camera, camera.world_to_camera, atol=1e-12
        )
        assert (camera.width, camera.height) == (second[serial].width, second[serial].height)
    for sequence in SEQUENCES:
        frames, masks = (
            [pd.read_csv(contracts[index] / place / f"{sequence}.csv") for index in (0, other)]
            for place in ("", "masks")
        )
        columns = ["timestep", "camera", "source_frame"]
        assert list(frames[0]) == list(frames[1])
        pd.testing.assert_frame_equal(frames[0][columns], frames[1][columns])
        np.testing.assert_allclose(masks[0]["coverage"], masks[1]["coverage"], atol=0.005)
        assert (masks[0]["failed"] == masks[1]["failed"]).all()


def test_colours_are_corrected_not_mirrored(contracts: list[Path]) -> None:
    """A cyclic change of channels and its inverse differ; the pictures tell which was applied."""
    frame = read(contracts[0] / "FREE" / SERIALS[0] / "00001.jpg")[..., ::-1]
    expected = crop(draw_image(1)[..., [1, 2, 0]]).astype(float)
    assert np.abs(frame - expected).mean() < 2


def test_a_benchmark_capture_brings_its_mattes(roots: dict[Layout, Path], tmp_path: Path) -> None:
    """Intrinsics per camera for 1100×1604, a held-out camera without video, no colours."""
    root = tmp_path / "nvs" / "388"
    calibration = root / "calibration" / "camera_params.json"
    calibration.parent.mkdir(parents=True)
    content = json.loads(
        (roots[Layout.NERSEMBLE_V2] / "calibration" / "camera_params.json").read_text()
    )
    half = (np.diag([0.5, 0.5, 1.0]) @ INTRINSICS).tolist()
    content["intrinsics"] = dict.fromkeys(SERIALS, half)
    calibration.write_text(json.dumps(content))
    for kind, make in (("images", draw_image), ("alpha_maps", alpha)):
        for serial in SERIALS[:2]:
            path = root / "sequences" / "HAIR" / kind / f"cam_{serial}.mp4"
            write_video(path, [make(step) for step in range(2)])
    assert recognise(root) is Layout.BENCHMARK
    raw = open_capture(root)
    assert list(raw.cameras) == sorted(SERIALS[:2])
    np.testing.assert_allclose(raw.cameras[SERIALS[0]].intrinsics, INTRINSICS)
    check_videos(raw, ["HAIR"])
    calibrate(SETTINGS, root, tmp_path / "capture")
    ingest(SETTINGS, root, "HAIR", tmp_path / "capture")
    assert open_masks(root).frames["HAIR"][SERIALS[0]].header().frames == 2


def test_a_gha_folder_without_lists_is_one_sequence(roots: dict[Layout, Path], tmp_path) -> None:
    root = tmp_path / "gha"
    shutil.copytree(roots[Layout.GHA], root)
    shutil.rmtree(root / "sequences")
    assert list_sequence_names(root) == ["FREE", "all"]
    assert sorted(open_capture(root).frames) == ["FREE", "all"]
    (root / "sequences").mkdir()
    (root / "sequences" / "some.txt").write_text("0000\n0007\n")
    with pytest.raises(UserError, match="lists 7, which is no folder"):
        open_capture(root)


def test_a_camera_that_moves_is_refused(roots: dict[Layout, Path], tmp_path: Path) -> None:
    root = tmp_path / "gha"
    shutil.copytree(roots[Layout.GHA], root)
    path = root / "cameras" / "0002" / f"camera_{SERIALS[0]}.npz"
    content = dict(np.load(path))
    content["extrinsic"] = content["extrinsic"] + 0.01 * np.eye(3, 4, 3)
    np.savez(path, **content)
    with pytest.raises(UserError, match="must stand still"):
        open_capture(root)


def test_a_missing_gha_image_is_named(roots: dict[Layout, Path], tmp_path: Path) -> None:
    root = tmp_path / "gha"
    shutil.copytree(roots[Layout.GHA], root)
    (root / "images" / "0001" / f"image_{SERIALS[1]}.jpg").unlink()
    with pytest.raises(UserError, match=rf"0001/image_{SERIALS[1]}\.jpg does not exist"):
        check_videos(open_capture(root), ["EXP-1-head"])


def test_a_v1_download_that_is_named_itself_is_explained(roots: dict[Layout, Path]) -> None:
    with pytest.raises(UserError, match="<download>/camera_params/<participant>"):
        open_capture(roots[Layout.NERSEMBLE_V1].parent.parent)


def test_a_v1_participant_is_read_through_a_link(roots: dict[Layout, Path], tmp_path: Path) -> None:
    target, link = roots[Layout.NERSEMBLE_V1], tmp_path / "mine"
    link.symlink_to(target)
    assert recognise(link) is Layout.NERSEMBLE_V1
    linked, own = open_capture(link), open_capture(target)
    assert (linked.root, linked.frames, linked.plates) == (own.root, own.frames, own.plates)
    assert linked.colours.keys() == own.colours.keys() != set()
    assert list_shared(link)[1:] == list_shared(target)[1:]
    assert list_recordings(link) == list_recordings(target)


def test_cameras_that_are_not_chosen_need_no_video(tmp_path: Path) -> None:
    root = write_capture(tmp_path / "v2", grey_frames(2), ("FREE",))
    (root / "sequences" / "FREE" / "images" / f"cam_{SERIALS[0]}.mp4").unlink()
    settings = ingest_settings(cameras=list(SERIALS[1:]))
    ingest(settings, root, "FREE", tmp_path / "capture")
    with pytest.raises(UserError, match="leave the camera out"):
        ingest(ingest_settings(), root, "FREE", tmp_path / "capture")
