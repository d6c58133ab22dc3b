"""Time and peak memory of the landmark fit: ``python -m benchmarks.fit``, some minutes.

2,000 timesteps of 16 cameras in eight sequences, as a NeRSemble subject has them. The morphable
model is random with the Basel model's numbers of components, and so are motion and expressions;
detections are off by 5 pixels of 2048, 5 % by tens to hundreds; 5 % of the faces are missed.
Peak memory is that of the whole process, the making of the detections included.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float32
from eavatar.cameras import Camera
from eavatar.face.fit import fit_face
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.io import Landmarks, Tracking, read_arrays, write_arrays, write_cameras
from eavatar.settings import read_config

Array = NDArray[np.float64]

CAMERAS, SEQUENCES, SIDE = 16, 8, 2048
IDENTITIES, EXPRESSIONS, VERTICES = 80, 64, 1000
SCALE = 0.1  # metres per canonical unit
WAVES = 3  # sines that a motion is made of


def main() -> None:
    """Make the subject in a temporary folder, fit it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=2000, help="of all sequences together")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    settings = read_config(Path(__file__).parents[1] / "config" / "config.yaml").face.fit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = make_subject(folder, arguments.timesteps)
        before = peak_memory()
        started = time.perf_counter()
        landmarks = list((folder / "landmarks").glob("*.npz"))
        fit_face(settings, folder / "model.h5", folder, landmarks, folder / "fit")
        seconds = time.perf_counter() - started
        errors = [
            np.linalg.norm(
                read_arrays(Tracking, folder / "fit/tracking" / name).landmarks - true, axis=-1
            )
            for name, true in truth.items()
        ]
    print(f"{arguments.timesteps} timesteps × {CAMERAS} cameras: {seconds:.1f} s")
    print(f"peak memory {peak_memory():.2f} GiB, {before:.2f} GiB before the fit")
    print(f"median landmark error {1000 * np.median(np.concatenate(errors)):.2f} mm")


def peak_memory() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_subject(folder: Path, timesteps: int) -> dict[str, Array]:
    """Write model, cameras and detections; the true landmarks (T, 68, 3) by file name."""
    random = np.random.default_rng(0)
    model = make_model(folder / "model.h5", random)
    cameras = make_cameras()
    write_cameras(folder / "cameras.json", cameras)
    neutral = model.vertices(random.normal(size=IDENTITIES).astype(np.float32))[:68]
    truth = {}
    for number, part in enumerate(np.array_split(np.arange(timesteps), SEQUENCES)):
        world = make_motion(model, neutral, len(part), random)
        name = f"EXP-{number + 1}.npz"
        write_arrays(folder / "landmarks" / name, make_detections(world, cameras, random))
        truth[name] = world
    return truth


def make_model(path: Path, random: np.random.Generator) -> MorphableModel:
    """A face and a shell around it with smooth random deformations, in the layout of BFM 2017."""
    across, up = random.uniform(-1, 1, (2, VERTICES)) * 0.9
    depth = np.sqrt(2 - across**2 - up**2) - 1.2
    mean = np.stack([75 * across, 85 * up, 70 * depth], axis=1)
    mean[:68] = AVERAGE_FACE
    across, up = mean[:, 0] / 75, mean[:, 1] / 85
    count = IDENTITIES + EXPRESSIONS
    frequencies = random.normal(0, 2.5, (2, count))
    waves = np.sin(np.stack([across, up], axis=1) @ frequencies + random.uniform(0, 6, count))
    basis = (waves[:, None] * random.normal(0, 1, (3, count))).reshape(3 * VERTICES, count)
    length = np.linalg.norm(basis, axis=0)
    with h5py.File(path, "w") as file:
        for group, part in (("shape", slice(IDENTITIES)), ("expression", slice(IDENTITIES, None))):
            file[f"{group}/model/mean"] = mean.ravel() * (group == "shape")
            file[f"{group}/model/pcaBasis"] = (basis / length)[:, part]
            file[f"{group}/model/pcaVariance"] = (length[part] * 0.5) ** 2  # half a millimetre
        file["shape/representer/cells"] = random.integers(0, VERTICES, (3, 300))
        file["color/model/mean"] = np.full(3 * VERTICES, 0.7)
        file["landmarks68/vertex_index"] = np.arange(68)
    return read_morphable_model(path)


def make_cameras() -> dict[str, Camera]:
    """Cameras 1 m away on an arc of 100° with two heights."""
    intrinsics = np.array([[6400.0, 0, SIDE / 2], [0, 6400, SIDE / 2], [0, 0, 1]])
    cameras = {}
    for number, angle in enumerate(np.linspace(-0.87, 0.87, CAMERAS)):
        turn = Rotation.from_euler("xy", [0.3 * (number % 2) - 0.15, -angle]).as_matrix()
        pose = np.eye(4)
        pose[:3, :3], pose[2, 3] = np.diag([1.0, -1, -1]) @ turn, 1.0
        cameras[f"2222000{number:02d}"] = Camera(intrinsics, pose, SIDE, SIDE)
    return cameras


def make_motion(
    model: MorphableModel, neutral: Float32, count: int, random: np.random.Generator
) -> Array:
    """(T, 68, 3) world landmarks of a head that turns and speaks smoothly."""
    phase = np.arange(count)[:, None, None] / 24  # seconds
    curves = np.sin(
        phase * random.uniform(0.5, 6, (WAVES, 6 + EXPRESSIONS))
        + random.uniform(0, 6, (WAVES, 6 + EXPRESSIONS))
    ).sum(axis=1) / np.sqrt(WAVES / 2)
    rotation, translation, expression = np.split(curves, [3, 6], axis=1)
    face = neutral + np.einsum("lij,tj->tli", model.expression_basis[:68], expression)
    turned = np.einsum("tij,tlj->tli", Rotation.from_rotvec(0.2 * rotation).as_matrix(), face)
    return SCALE * turned + 0.01 * translation[:, None]


def make_detections(
    world: Array, cameras: dict[str, Camera], random: np.random.Generator
) -> Landmarks:
    """Noisy detections of world landmarks with outliers and missed faces."""
    points = np.stack([camera.project(world)[0] for camera in cameras.values()], axis=1)
    points += random.normal(0, 5, points.shape)
    outliers = random.random(points.shape[:3]) < 0.05
    points[outliers] += random.uniform(-300, 300, (np.count_nonzero(outliers), 2))
    confidence = random.uniform(0.6, 1, points.shape[:3])
    confidence[random.random(points.shape[:2]) < 0.05] = 0
    serials = np.array(list(cameras))
    return Landmarks(serials, points.astype(np.float32), confidence.astype(np.float32))


if __name__ == "__main__":
    main()
