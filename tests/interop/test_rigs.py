"""One rig in every format gives one capture; distortion is gone from its frames."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.__main__ import main
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.layouts import Layout, list_sequence_names, recognise
from eavatar.capture.plain import read_rig
from eavatar.errors import UserError
from eavatar.interop.rigs import import_rig, name_cameras
from eavatar.io import read_cameras, read_lenses
from tests.scenes.small_capture import ingest_settings
from tests.scenes.small_rig import (
    DOTS,
    HEIGHT,
    LENSES,
    SIGMA,
    make_rig,
    write_colmap,
    write_nerfstudio,
    write_opencv,
    write_plain,
    write_recordings,
    write_renderme,
)

FORMATS = (
    "world_to_camera", "camera_to_world", "colmap.bin", "colmap.txt", "nerfstudio", "opencv",
    "renderme",
)  # fmt: skip
SEQUENCES = ("FREE", "talk")
# A pixel of the frames is one of the raw images: their whole height is the crop.
SETTINGS = ingest_settings(image_size=HEIGHT, jpeg_quality=100, colour_correction=False)


def write_capture(root: Path, kind: str) -> Path:
    """The rig's capture in the plain layout, its calibration imported from a format."""
    rig, given = make_rig(), root.parent / f"{kind}_source"
    if kind == "renderme":
        import_rig(kind, write_renderme(given, rig, SEQUENCES), 1.0, root)
        return root
    write_recordings(root, rig, SEQUENCES)
    if kind in ("world_to_camera", "camera_to_world"):
        write_plain(root, rig, kind)
    elif kind.startswith("colmap"):
        import_rig("colmap", write_colmap(given, rig, kind.removeprefix("colmap")), 1.0, root)
    elif kind == "nerfstudio":
        import_rig(kind, write_nerfstudio(given, rig), 1.0, root)
    else:
        import_rig(kind, write_opencv(given, rig), 0.001, root)
    return root


@pytest.fixture(scope="module")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ``capture`` folder of each format."""
    folder, found = tmp_path_factory.mktemp("rigs"), {}
    for kind in FORMATS:
        root, found[kind] = write_capture(folder / kind, kind), folder / f"{kind}_capture"
        assert recognise(root) is Layout.PLAIN
        calibrate(SETTINGS, root, found[kind])
        for sequence in list_sequence_names(root):
            ingest(SETTINGS, root, sequence, found[kind])
    return found


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_all_formats_give_one_capture(contracts: dict[str, Path], kind: str) -> None:
    first, other = contracts[FORMATS[0]], contracts[kind]
    names, others = (
        sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
        for root in (first, other)
    )
    assert names == others and len(names) == 2 + 5 + 2 * (1 + 5 * 2)
    for name in ("cameras.json", "full_cameras.json"):
        assert list(read_cameras(first / name)) == list(read_cameras(other / name))
        for camera, same in zip(
            read_cameras(first / name).values(), read_cameras(other / name).values(), strict=True
        ):
            # double precision, through quaternions and inverses
            np.testing.assert_allclose(same.intrinsics, camera.intrinsics, rtol=1e-12)
            np.testing.assert_allclose(same.world_to_camera, camera.world_to_camera, atol=1e-12)
            assert (same.width, same.height) == (camera.width, camera.height)
    lenses = [
        {name: lens.coefficients for name, lens in read_lenses(root / "full_cameras.json").items()}
        for root in (first, other)
    ]
    assert lenses[0] == lenses[1] == LENSES
    for path in names:
        if path.suffix in (".jpg", ".png"):
            images = [cv2.imread(str(root / path)).astype(int) for root in (first, other)]
            assert np.abs(images[0] - images[1]).max() <= 2, path  # of 255, rounding and JPEG


def test_the_cameras_of_the_frames_see_the_dots(contracts: dict[str, Path]) -> None:
    capture, moved = contracts["opencv"], []
    cameras, lenses = (
        read_cameras(capture / "cameras.json"),
        read_lenses(capture / "full_cameras.json"),
    )
    for name, camera in cameras.items():
        path = capture / "FREE" / name / "00001.jpg"
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(float)
        for across, down in camera.project(DOTS)[0]:
            reach = int(4 * SIGMA)
            left, top = int(across) - reach, int(down) - reach
            part = image[top : top + 2 * reach, left : left + 2 * reach]
            rows, columns = np.mgrid[top : top + 2 * reach, left : left + 2 * reach] + 0.5
            found = np.array([(part * columns).sum(), (part * rows).sum()]) / part.sum()
            # the promise; cubic interpolation and JPEG move a dot by a few hundredths
            assert np.linalg.norm(found - [across, down]) < 0.2, name
        if name in lenses:
            full = lenses[name].camera.project(DOTS)[0]
            moved.append(np.abs(lenses[name].distort_points(full) - full).max())
    assert len(moved) == 2 and min(moved) > 1  # what is lost if the distortion is dropped


def test_images_and_masks_of_renderme_are_taken_as_they_are(contracts: dict[str, Path]) -> None:
    root = contracts["renderme"].parent / "renderme"
    assert len(list(root.glob("sequences/talk/cam_*/0000?.png"))) == 10
    assert len(list(root.glob("mattes/FREE/cam_left/0000?.png"))) == 2


def test_import_rig_is_a_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_colmap(tmp_path / "0", make_rig(), ".bin")
    words = ["import-rig", str(source), "--format", "colmap", "--output", str(tmp_path / "rig")]
    assert main([*words, "--metres-per-unit", "0.5"]) == 0
    scaled = read_rig(tmp_path / "rig" / "cameras.json")["left"].camera
    np.testing.assert_allclose(scaled.world_to_camera[2, 3], 0.5)
    for unit in ("0", "inf", "nan"):
        assert main([*words, "--metres-per-unit", unit]) == 2
        assert "must be above 0, and finite" in capsys.readouterr().err


def test_images_name_the_cameras() -> None:
    assert name_cameras(["a/cam_1.jpg", "a/cam_2.jpg"]) == ["1", "2"]
    assert name_cameras(["left/0001.jpg", "right/0001.jpg"]) == ["left", "right"]
    with pytest.raises(UserError, match="cameras stand still"):
        name_cameras(["left/0001.jpg", "left/0002.jpg", "right/0001.jpg"])


def test_what_an_import_lacks_is_one_sentence(tmp_path: Path) -> None:
    def refused(match: str, program: str, source: Path) -> None:
        with pytest.raises(UserError, match=match) as raised:
            import_rig(program, source, 1.0, tmp_path / "rig")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "rig" / "cameras.json").exists()

    rig = make_rig()
    refused("none of colmap", "metashape", tmp_path)
    refused("does not exist", "colmap", tmp_path / "nothing")
    refused("neither cameras.bin", "colmap", tmp_path)
    colmap = write_colmap(tmp_path / "binary", rig, ".bin")
    (colmap / "images.bin").write_bytes((colmap / "images.bin").read_bytes()[:100])
    refused("no readable COLMAP model", "colmap", colmap)
    colmap = write_colmap(tmp_path / "fisheye", rig, ".bin")
    cameras = (colmap / "cameras.bin").read_bytes()  # count, number and model, all else
    (colmap / "cameras.bin").write_bytes(cameras[:8] + struct.pack("<2i", 99, 5) + cameras[16:])
    refused("camera 99 has camera model 5", "colmap", colmap)
    colmap = write_colmap(tmp_path / "text", rig, ".txt")
    text = (colmap / "cameras.txt").read_text()
    (colmap / "cameras.txt").write_text(text.replace("OPENCV", "OPENCV_FISHEYE"))
    refused("camera model OPENCV_FISHEYE", "colmap", colmap)
    path = write_nerfstudio(tmp_path / "studio", rig)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: content[key] for key in ("frames", "w")}))
    refused("lacks 'h'", "nerfstudio", path)
    path.write_text(json.dumps(content | {"frames": content["frames"][:1]}))
    refused("holds 1 camera", "nerfstudio", path)
    opencv = write_opencv(tmp_path / "opencv", rig)
    storage = cv2.FileStorage(str(opencv / "low.yml"), cv2.FILE_STORAGE_WRITE)
    storage.write("camera_matrix", np.eye(3))
    storage.release()
    refused("lacks 'image_width'", "opencv", opencv)
    path = write_opencv(tmp_path / "by_hand", rig) / "low.yml"
    text = re.sub(r"R: !!opencv-matrix.*?\]", "R: [0., 0., 0.]", path.read_text(), flags=re.DOTALL)
    path.write_text(text)
    refused("low.yml: R is no matrix", "opencv", path.parent)
    path.write_text("%YAML:1.0\n---\n[")
    refused("low.yml is no file of OpenCV's", "opencv", path.parent)
    refused("holds no <subject>_<part>_anno.smc", "renderme", tmp_path / "opencv")
    (tmp_path / "smc").mkdir()
    (tmp_path / "smc" / "0026_e0_anno.smc").write_text("no HDF5")
    refused("no readable file of RenderMe-360", "renderme", tmp_path / "smc")
