"""`export-gha`: shapes, conventions, what is for training and what is not."""

import csv
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from eavatar.__main__ import main
from eavatar.cameras import Camera
from eavatar.capture.captures import open_capture
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import read_morphable_model
from eavatar.io import (
    Identity,
    Sequences,
    Tracking,
    read_arrays,
    read_cameras,
    write_arrays,
    write_cameras,
    write_sequences,
)

SIZE, SCALE = 320, 0.1
SERIALS = ("222200037", "222200042")
SEQUENCES = {"EXP-1-head": 2, "EMO-1-shout+laugh": 1, "FREE": 2}
SPLIT = Sequences(("EMO-1-shout+laugh", "EXP-1-head"), ("FREE",))
FAILED = ("EXP-1-head", 1, "222200042")
VERTICES, IDENTITY, EXPRESSION = 240, 3, 2


def image(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Coarse random patches, which JPEG keeps."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (5, 5, *shape)).astype(np.uint8)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)


def write(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), content)


def write_model(path: Path, random: np.random.Generator) -> None:
    """A BFM 2017 of a few vertices, millimetres."""
    points = random.normal(scale=60, size=(VERTICES, 3))
    points[:68] = AVERAGE_FACE
    faces = np.arange(VERTICES).reshape(-1, 3).T
    with h5py.File(path, "w") as file:
        for group, count in (("shape", IDENTITY), ("expression", EXPRESSION), ("color", 1)):
            basis = np.linalg.qr(random.normal(size=(3 * VERTICES, count)))[0]
            mean = {"shape": points, "expression": 0 * points, "color": 0.5 + 0 * points}[group]
            file[f"{group}/model/mean"] = mean.ravel()
            file[f"{group}/model/pcaBasis"] = basis
            file[f"{group}/model/pcaVariance"] = np.full(count, 900.0)
        file["shape/representer/cells"] = faces
        file["landmarks68/vertex_index"] = np.arange(68)


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Path:
    """``results/<subject>`` as `refine_face` leaves it, the landmarks exactly on the model."""
    root, random = tmp_path_factory.mktemp("subject"), np.random.default_rng(3)
    write_model(root / "model.h5", random)
    model = read_morphable_model(root / "model.h5")
    intrinsics = np.array([[900.0, 0, 150], [0, 905, 170], [0, 0, 1]])
    cameras = {}
    for serial, azimuth in zip(SERIALS, (0.0, 0.6), strict=True):
        matrix = np.eye(4)
        look = Rotation.from_euler("y", azimuth).as_matrix()
        matrix[:3, :3], matrix[2, 3] = np.diag([1.0, -1, -1]) @ look.T, 1.0
        cameras[serial] = Camera(intrinsics, matrix, SIZE, SIZE)
        write(root / f"capture/plates/{serial}.png", image(7, (3,)))
        visible = np.full((SIZE, SIZE), 255, np.uint8)
        visible[:, :16] = 0
        write(root / f"capture/visible/{serial}.png", visible)
    write_cameras(root / "capture/cameras.json", cameras)
    write_sequences(root / "capture/sequences.json", SPLIT)
    identity = random.normal(size=IDENTITY).astype(np.float32)
    neutral = model.vertices(identity)[:68]
    write_arrays(root / "face/identity.npz", Identity(identity, np.float32(SCALE), neutral))
    for sequence, count in SEQUENCES.items():
        expression = random.normal(size=(count, EXPRESSION)).astype(np.float32)
        turn = Rotation.from_rotvec(random.normal(scale=0.3, size=(count, 3)))
        translation = random.normal(scale=0.02, size=(count, 3))
        canonical = neutral + np.einsum("vxe,te->tvx", model.expression_basis[:68], expression)
        landmarks = SCALE * np.einsum("tij,tvj->tvi", turn.as_matrix(), canonical)
        tracking = Tracking(
            expression,
            turn.as_rotvec(),
            translation,
            landmarks + translation[:, None],
            np.zeros((count, len(SERIALS))),
        )
        write_arrays(root / f"face/tracking/{sequence}.npz", tracking)
        rows = [(t, serial) for t in range(count) for serial in SERIALS]
        for t, serial in rows:
            place = f"{sequence}/{serial}/{t:05d}"
            write(root / f"capture/{place}.jpg", image(t, (3,)))
            write(root / f"capture/masks/{place}.png", image(50 + t, ()))
        index = pd.DataFrame(rows, columns=["timestep", "camera"])
        index.to_csv(root / f"capture/{sequence}.csv", index=False)
        failed = [int((sequence, t, serial) == FAILED) for t, serial in rows]
        boxes = {"left": 0, "top": 0, "right": SIZE, "bottom": SIZE, "failed": failed}
        index.assign(**boxes).to_csv(root / f"capture/masks/{sequence}.csv", index=False)
    return root


def export(subject: Path, output: Path, *words: str) -> int:
    return main(["export-gha", str(subject), "--output", str(output), *words])


@pytest.fixture(scope="module")
def exported(subject, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("export") / "074"
    assert export(subject, output, "--morphable-model", str(subject / "model.h5")) == 0
    return output


def test_only_training_frames_are_where_gha_lists_them(exported):
    assert sorted(path.name for path in (exported / "images").iterdir()) == ["0000", "0001", "0002"]
    assert sorted(path.name for path in (exported / "params").iterdir()) == ["0000", "0001", "0002"]
    held_out = sorted(path.name for path in (exported / "held_out/images").iterdir())
    assert held_out == ["0003", "0004"]
    with (exported / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows] == [
        ("0", ".", "EMO-1-shout+laugh", "0", "train"),
        ("1", ".", "EXP-1-head", "0", "train"),
        ("2", ".", "EXP-1-head", "1", "train"),
        ("3", "held_out", "FREE", "0", "test"),
        ("4", "held_out", "FREE", "1", "test"),
    ]
    assert (exported / "sequences/EXP-1-head.txt").read_text() == "0001\n0002\n"
    assert (exported / "held_out/sequences/FREE.txt").read_text() == "0003\n0004\n"


def test_images_have_three_channels_and_two_sizes(exported, subject):
    for name in ("image", "mask", "visible"):
        for part, size in (("", SIZE), ("_lowres", 256)):
            path = exported / f"images/0001/{name}{part}_{SERIALS[0]}.jpg"
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (size, size, 3)
    source = subject / f"capture/EXP-1-head/{SERIALS[0]}/00000.jpg"
    assert (exported / f"images/0001/image_{SERIALS[0]}.jpg").read_bytes() == source.read_bytes()
    mask = cv2.imread(str(exported / f"images/0001/mask_{SERIALS[0]}.jpg"), cv2.IMREAD_GRAYSCALE)
    wanted = image(50, ()).astype(int)
    assert np.abs(mask - wanted).mean() < 1  # levels; JPEG at quality 95, flat patches
    plate = cv2.imread(str(exported / f"background/image_{SERIALS[0]}.jpg"))
    assert np.abs(plate - image(7, (3,)).astype(int)).mean() < 3  # with chroma subsampling


def test_a_view_without_a_matte_is_invisible(exported):
    seen = {
        serial: cv2.imread(str(exported / f"images/0002/visible_{serial}.jpg")).mean()
        for serial in SERIALS
    }
    assert seen[FAILED[2]] == 0
    assert seen[SERIALS[0]] > 200


def test_cameras_project_the_landmarks_as_ours_do(exported, subject):
    tracking = read_arrays(Tracking, subject / "face/tracking/FREE.npz")
    landmarks = np.load(exported / "held_out/params/0004/lmk_3d.npy")
    assert landmarks.shape == (66, 3)
    kept = [index for index in range(68) if index not in (48, 54)]
    for serial, camera in read_cameras(subject / "capture/cameras.json").items():
        with np.load(exported / f"held_out/cameras/0004/camera_{serial}.npz") as file:
            extrinsic, intrinsic = file["extrinsic"], file["intrinsic"]
        assert (extrinsic.shape, intrinsic.shape) == ((3, 4), (3, 3))
        seen = (landmarks @ extrinsic[:, :3].T + extrinsic[:, 3]) @ intrinsic.T
        ours, _ = camera.project(tracking.landmarks[1, kept].astype(float))
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], ours, atol=1e-3)  # pixels


def test_pose_and_coefficients_give_vertices_and_landmarks(exported, subject):
    """Rows of canonical space go to (x · scale) Rᵀ + t."""
    model = read_morphable_model(subject / "model.h5")
    with np.load(exported / "params/0002/params.npz") as file:
        params = dict(file)
    shapes = {name: array.shape for name, array in params.items()}
    expected = {"id_coeff": (1, 3), "exp_coeff": (1, 2), "scale": (1,), "pose": (1, 6)}
    assert shapes == expected
    canonical = model.vertices(params["id_coeff"][0])
    canonical = canonical + model.expression_basis @ params["exp_coeff"][0]
    rotation = Rotation.from_rotvec(params["pose"][0, :3]).as_matrix()
    world = canonical * params["scale"] @ rotation.T + params["pose"][0, 3:]
    vertices = np.load(exported / "params/0002/vertices.npy")
    np.testing.assert_allclose(vertices, world, atol=1e-6)  # metres, float32
    landmarks = np.load(exported / "params/0002/lmk_3d.npy")
    np.testing.assert_allclose(landmarks, np.delete(vertices[:68], (48, 54), axis=0), atol=1e-6)


def test_without_the_model_there_are_no_vertices(subject, tmp_path):
    assert export(subject, tmp_path / "out") == 0
    assert not (tmp_path / "out/params/0000/vertices.npy").exists()


def test_a_full_folder_is_never_written_to(subject, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert export(subject, tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_with_fewer_components_is_refused(subject, tmp_path, capsys):
    with h5py.File(subject / "model.h5") as source, h5py.File(tmp_path / "s.h5", "w") as small:
        for name in source:
            source.copy(name, small)
        for name in ("pcaBasis", "pcaVariance"):
            short = small[f"shape/model/{name}"][..., :2]
            del small[f"shape/model/{name}"]
            small[f"shape/model/{name}"] = short
    output = tmp_path / "out"
    assert export(subject, output, "--morphable-model", str(tmp_path / "s.h5")) == 2
    assert "fitted with 3 and 2" in capsys.readouterr().err


def test_the_matte_index_must_say_what_failed(subject, tmp_path, capsys):
    index = subject / "capture/masks/FREE.csv"
    content = index.read_text()
    index.write_text(content.replace("failed", "sharpness"))
    try:
        assert export(subject, tmp_path / "out") == 2
    finally:
        index.write_text(content)
    assert "run `matte` again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_frame_without_any_usable_view_is_left_out(subject, tmp_path):
    """GHA would be shown nothing but blackness, and counts a folder as a frame."""
    shutil.copytree(subject, tmp_path / "074")
    index = tmp_path / "074/capture/masks/EXP-1-head.csv"
    table = pd.read_csv(index, dtype={"camera": str})
    table.loc[table["timestep"] == 1, "failed"] = 1
    table.to_csv(index, index=False)
    assert export(tmp_path / "074", tmp_path / "out") == 0
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    assert (tmp_path / "out/sequences/EXP-1-head.txt").read_text() == "0001\n"


def test_an_export_is_a_capture_with_the_same_frames_and_cameras(exported, subject):
    """Read back as a capture in GHA's layout; images agree to the byte, masks up to JPEG."""
    capture = open_capture(exported)
    assert capture.prepared
    assert set(capture.frames) == set(SEQUENCES)
    ours = read_cameras(subject / "capture/cameras.json")
    assert list(capture.cameras) == list(ours)
    for serial, camera in capture.cameras.items():
        np.testing.assert_allclose(camera.intrinsics, ours[serial].intrinsics)
        np.testing.assert_allclose(camera.world_to_camera, ours[serial].world_to_camera)
        assert (camera.width, camera.height) == (SIZE, SIZE)
        assert serial in capture.plates
    for sequence, count in SEQUENCES.items():
        for serial in SERIALS:
            clip, matte = capture.frames[sequence][serial], capture.masks[sequence][serial]
            assert len(clip.paths) == count
            for timestep, path in enumerate(clip.paths):
                place = subject / "capture" / sequence / serial / f"{timestep:05d}.jpg"
                assert path.read_bytes() == place.read_bytes()
            for timestep, alpha in matte.decode():
                wanted = image(50 + timestep, ())[..., None].astype(int)
                assert np.abs(alpha - wanted).mean() < 1  # levels
