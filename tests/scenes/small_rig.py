"""A rig of five cameras, two of them with distortion, that looks at dots; any format of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera
from eavatar.capture.plain import RigCamera
from eavatar.io import write_json
from eavatar.lenses import Lens

WIDTH, HEIGHT, FOCAL = 384, 320, 700.0
LENSES = {"left": (-1.2, 0.4, 0.003, -0.002, 0.0), "top": (1.1, 0.3, -0.002, 0.003, 0.0)}
PLACES = {"centre": (0, 0), "left": (-35, 0), "right": (30, 5), "low": (10, -25), "top": (-5, 30)}
DOTS = np.array([[x, y, 0.03 * (x + y)] for x in (-1, 0, 1) for y in (-1, 0, 1)]) * 0.11
SIGMA = 2.5  # of a dot, pixels
TURN = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's cameras to OpenCV's


def make_rig() -> dict[str, RigCamera]:
    """Cameras 1 m from the origin, azimuth and elevation in degrees, sorted by name."""
    rig = {}
    for index, (name, (azimuth, elevation)) in enumerate(sorted(PLACES.items())):
        matrix = np.eye(4)
        turned = Rotation.from_euler("xyz", [180 + elevation, azimuth, 3 * index], degrees=True)
        matrix[:3, :3] = turned.as_matrix()
        matrix[2, 3] = 1.0
        intrinsics = np.array(
            [[FOCAL + index, 0, WIDTH / 2 + 3 - index], [0, FOCAL, HEIGHT / 2 + index], [0, 0, 1]]
        )
        camera = Camera(intrinsics, matrix, WIDTH, HEIGHT)
        lens = Lens(camera, LENSES[name]) if name in LENSES else None
        rig[name] = RigCamera(camera, lens)
    return rig


def draw_dots(one: RigCamera) -> NDArray[np.uint8]:
    """(H, W, 3) the dots as the camera sees them, distortion included."""
    pixels, _ = one.camera.project(DOTS)
    if one.lens:
        pixels = one.lens.distort_points(pixels)
    x, y = np.arange(one.camera.width) + 0.5, np.arange(one.camera.height)[:, None] + 0.5
    image = np.zeros((one.camera.height, one.camera.width))
    for across, down in pixels:
        image += 200 * np.exp(-((x - across) ** 2 + (y - down) ** 2) / (2 * SIGMA**2))
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write_recordings(root: Path, rig: Mapping[str, RigCamera], sequences: tuple[str, ...]) -> None:
    """Two images of the dots by every camera, in each sequence."""
    for sequence in sequences:
        for name, one in rig.items():
            folder = root / "sequences" / sequence / f"cam_{name}"
            folder.mkdir(parents=True)
            for frame in range(2):
                cv2.imwrite(str(folder / f"{frame:05d}.png"), draw_dots(one))


def _entries(rig: Mapping[str, RigCamera]) -> list[tuple[str, Camera, tuple[float, ...]]]:
    """Name, camera and five coefficients."""
    nothing = (0.0,) * 5
    return [
        (name, one.camera, one.lens.coefficients if one.lens else nothing)
        for name, one in rig.items()
    ]


def write_plain(folder: Path, rig: Mapping[str, RigCamera], direction: str) -> Path:
    """A ``cameras.json`` as docs/own_rigs.md says it."""
    cameras = {}
    for name, camera, distortion in _entries(rig):
        pose = camera.world_to_camera
        pose = np.linalg.inv(pose) if direction == "camera_to_world" else pose
        cameras[name] = {
            "width": camera.width,
            "height": camera.height,
            "intrinsics": camera.intrinsics.tolist(),
            "distortion": list(distortion),
            direction: pose.tolist(),
        }
    return write_json(folder / "cameras.json", {"cameras": cameras})


def write_colmap(folder: Path, rig: Mapping[str, RigCamera], suffix: str) -> Path:
    """A sparse model by COLMAP's documentation: camera model OPENCV, two points an image."""
    folder.mkdir(parents=True)
    cameras, images = b"", b""
    lines: dict[str, list[str]] = {"cameras": ["# Camera list"], "images": ["# Image list"]}
    for number, (name, camera, (k1, k2, p1, p2, _)) in enumerate(_entries(rig), 1):
        (fx, _, cx), (_, fy, cy) = camera.intrinsics[:2]
        parameters = (fx, fy, cx, cy, k1, k2, p1, p2)
        x, y, z, w = Rotation.from_matrix(camera.world_to_camera[:3, :3]).as_quat()
        pose = (w, x, y, z, *camera.world_to_camera[:3, 3])
        image = f"cam_{name}.jpg"
        cameras += struct.pack("<iiQQ8d", number, 4, WIDTH, HEIGHT, *parameters)
        images += struct.pack("<i7di", 7 * number, *pose, number) + image.encode() + b"\0"
        images += struct.pack("<Q", 2) + struct.pack("<ddqddq", 1, 2, -1, 3, 4, 5)
        lines["cameras"].append(_words(number, "OPENCV", WIDTH, HEIGHT, *parameters))
        lines["images"] += [
            _words(7 * number, *pose, number, image),
            "1 2 -1" if number % 2 else "",
        ]
    counted = struct.pack("<Q", len(rig))
    if suffix == ".bin":
        (folder / "cameras.bin").write_bytes(counted + cameras)
        (folder / "images.bin").write_bytes(counted + images)
    else:
        for name, own in lines.items():
            (folder / f"{name}.txt").write_text("\n".join(own) + "\n")
    return folder


def _words(*values: object) -> str:
    return " ".join(repr(float(v)) if isinstance(v, float) else str(v) for v in values)


def write_nerfstudio(path: Path, rig: Mapping[str, RigCamera]) -> Path:
    """``transforms.json``: image size shared, the rest by frame, OpenGL's axes."""
    frames = []
    for name, camera, (k1, k2, p1, p2, _) in _entries(rig):
        own = {"file_path": f"images/{name}.png", "k1": k1, "k2": k2, "p1": p1, "p2": p2}
        (own["fl_x"], _, own["cx"]), (_, own["fl_y"], own["cy"]) = camera.intrinsics[:2].tolist()
        own["transform_matrix"] = (np.linalg.inv(camera.world_to_camera) @ TURN).tolist()
        frames.append(own)
    shared = {"camera_model": "OPENCV", "w": WIDTH, "h": HEIGHT}
    return write_json(path / "transforms.json", {**shared, "frames": frames})


def write_opencv(folder: Path, rig: Mapping[str, RigCamera]) -> Path:
    """A file of cv2.FileStorage for each camera; the first pixel's centre is OpenCV's 0, 0."""
    folder.mkdir(parents=True)
    for index, (name, camera, distortion) in enumerate(_entries(rig)):
        storage = cv2.FileStorage(str(folder / f"{name}.yml"), cv2.FILE_STORAGE_WRITE)
        storage.write("image_width", WIDTH)
        storage.write("image_height", HEIGHT)
        storage.write("camera_matrix", _shift(camera.intrinsics))
        storage.write("distortion_coefficients", np.array(distortion)[:, None])
        rotation = camera.world_to_camera[:3, :3].copy()
        storage.write("R", cv2.Rodrigues(rotation)[0] if index % 2 else rotation)
        storage.write("T", 1000 * camera.world_to_camera[:3, 3:])  # millimetres
        storage.release()
    return folder


def write_renderme(folder: Path, rig: Mapping[str, RigCamera], parts: tuple[str, ...]) -> Path:
    """The annotation and raw files of some parts, with the keys of the dataset's reader."""
    folder.mkdir(parents=True)
    for part in parts:
        with h5py.File(folder / f"0026_{part}_anno.smc", "w") as file:
            file.create_group("Camera").attrs["resolution"] = [HEIGHT, WIDTH]
            for name, camera, distortion in _entries(rig):
                group = file.create_group(f"Calibration/{name}")
                group["K"], group["D"] = _shift(camera.intrinsics), np.array(distortion)
                group["RT"] = np.linalg.inv(camera.world_to_camera)
                _store_images(file, name, "mask", np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
        with h5py.File(folder / f"0026_{part}_raw.smc", "w") as file:
            for name, one in rig.items():
                _store_images(file, name, "color", draw_dots(one))
    return folder


def _store_images(file: h5py.File, name: str, kind: str, image: NDArray[np.uint8]) -> None:
    for frame in range(2):
        file[f"Camera/{name}/{kind}/{frame}"] = cv2.imencode(".png", image)[1].ravel()


def _shift(intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    return intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
