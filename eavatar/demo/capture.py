"""`demo_capture`: the embedded subject, a procedural head in the raw NeRSemble v2 layout.

    raw/calibration/*.json                     cameras, colour matrices
    raw/sequences/<sequence>/images/cam_*.mp4  videos; BACKGROUND holds the plates
    raw/morphable_model.h5                     BFM 2017 layout, from other heads of the family
    raw/landmarks/<sequence>.npz               detections, pixels of the full image
    truth/<sequence>.npz, truth/<sequence>_mask/cam_*.mp4, truth/neutral.ply

The truth is for scoring; no stage reads it.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar import io
from eavatar.data.video import write_video
from eavatar.demo import detections, render
from eavatar.demo.controls import CONTROLS
from eavatar.demo.head import Head, build_head, landmark_points
from eavatar.demo.morphable_model import build_model
from eavatar.demo.motion import HELD_OUT, REST, SEQUENCES, Motion, motion
from eavatar.demo.render import Geometry, NoiseTables
from eavatar.demo.rig import FULL_HEIGHT, FULL_WIDTH, RigCamera, build_rig
from eavatar.settings import DemoSettings
from eavatar.threads import make_pool

Array = NDArray[np.float64]

FRAME_RATE = 73  # NeRSemble's tag; the acted time is in the truth
QUALITY = "14"  # x264's constant rate factor
SENSOR_NOISE = 1.3  # standard deviation, 8-bit steps
MASK_QUALITY = "12"


@dataclass(frozen=True)
class Scene:
    """All that the renderings share.

    Attributes:
        head: the subject.
        rig: cameras by serial number.
        width, height: of the stored images.
        noise: shading detail.
        grain: (height + 64, width + 64, 3) sensor noise, of which each image shows a window.
        curve: sRGB encoding.
        seed: of everything.
    """

    head: Head
    rig: dict[str, RigCamera]
    width: int
    height: int
    noise: NoiseTables
    grain: NDArray[np.float32]
    curve: NDArray[np.float32]
    seed: int

    def generator(self, *names: str) -> np.random.Generator:
        """Random numbers for a named purpose, independent of the order of the work."""
        return np.random.default_rng([self.seed, *(zlib.crc32(name.encode()) for name in names)])


@dataclass(frozen=True)
class Take:
    """A sequence, posed.

    Attributes:
        name: of the sequence.
        motion: over time.
        geometry: (T) posed meshes.
        landmarks: (T, 68, 3) true, world, metres.
        biased: (T, 68, 3) where the detector believes them.
    """

    name: str
    motion: Motion
    geometry: list[Geometry]
    landmarks: Array
    biased: Array


@dataclass(frozen=True)
class Footage:
    """Detections in one camera's video: points (T, 68, 2) and confidence (T, 68)."""

    sequence: str
    serial: str
    points: Array
    confidence: Array


def build_scene(settings: DemoSettings, seed: int) -> Scene:
    """The subject, the cameras and the tables of noise."""
    width = round(FULL_WIDTH * settings.image_scale)
    height = round(FULL_HEIGHT * settings.image_scale)
    generator = np.random.default_rng([seed, 2])
    grain = SENSOR_NOISE * generator.standard_normal((height + 64, width + 64, 3), np.float32)
    return Scene(
        head=build_head(seed),
        rig=build_rig(width, height, generator),
        width=width,
        height=height,
        noise=render.noise_tables(generator),
        grain=grain,
        curve=render.encoding_curve(),
        seed=seed,
    )


def pose(
    head: Head, rest: NDArray[np.floating], rotation: Array, translation: Array
) -> NDArray[np.float32]:
    """(V, 3) vertices with the head turned and the torso left where it is, world, metres."""
    turned = rest @ rotation.T + translation
    weight = head.head[:, None]
    vertices: NDArray[np.float32] = (weight * turned + (1 - weight) * (rest + REST)).astype(
        np.float32
    )
    return vertices


def build_take(scene: Scene, name: str, timesteps: int, bias: Array) -> Take:
    """Pose the head at every timestep; bias (68, 3) of the detector in the head's frame."""
    head, acted = scene.head, motion(name, timesteps)
    geometry, biased = [], []
    for expression, gaze, rotation, translation in zip(
        acted.expression, acted.gaze, acted.rotation, acted.translation, strict=True
    ):
        rest = head.vertices(expression.astype(np.float32), (gaze[0], gaze[1]))
        vertices = pose(head, rest, rotation, translation)
        geometry.append(Geometry(vertices, render.smooth_normals(vertices, head.faces)))
        biased.append(vertices[head.landmarks] + bias @ rotation.T)
    landmarks = np.stack([posed.vertices[head.landmarks] for posed in geometry])
    return Take(name, acted, geometry, landmarks.astype(np.float64), np.stack(biased))


def develop(
    scene: Scene, view: render.View, camera: RigCamera, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """The stored image of a view: (H, W, 3) uint8."""
    row, column = generator.integers(64, size=2)
    grain = scene.grain[row : row + scene.height, column : column + scene.width]
    colour = camera.colour.astype(np.float32)
    return render.develop(view.image, view.coverage, camera.plate, colour, scene.curve, grain)


def film(scene: Scene, take: Take, serial: str, raw: Path, truth: Path) -> Footage:
    """Render, store and detect one camera's video of one sequence."""
    camera = scene.rig[serial]
    stored = camera.camera.resize(scene.width, scene.height)
    generator = scene.generator(take.name, serial)
    images, masks, points, confidence = [], [], [], []
    for posed, landmarks, biased in zip(take.geometry, take.landmarks, take.biased, strict=True):
        view = render.render(posed, scene.head.faces, scene.head.look, stored, scene.noise)
        images.append(develop(scene, view, camera, generator))
        masks.append((255 * view.coverage + 0.5).astype(np.uint8))
        visible = detections.seen(landmarks, stored, view.depth)
        normals = posed.normals[scene.head.landmarks]
        found = detections.detect(biased, normals, visible, camera.camera, generator)
        points.append(found[0])
        confidence.append(found[1])
    # Planar 4:4:4 stores odd image sizes, which 4:2:0 cannot. One thread each: the videos are
    # written in parallel.
    video = raw / "sequences" / take.name / "images" / f"cam_{serial}.mp4"
    write_video(video, images, FRAME_RATE, "yuv444p", QUALITY, threads=1)
    mask = truth / f"{take.name}_mask" / f"cam_{serial}.mp4"
    write_video(mask, masks, FRAME_RATE, "gray", MASK_QUALITY, threads=1)
    return Footage(take.name, serial, np.stack(points), np.stack(confidence))


def film_all(scene: Scene, takes: list[Take], raw: Path, truth: Path) -> list[Footage]:
    """All videos, on all cores, with a progress bar over the videos."""
    from tqdm import tqdm

    with make_pool() as pool:
        jobs: list[Future[Footage]] = [
            pool.submit(film, scene, take, serial, raw, truth)
            for take in takes
            for serial in scene.rig
        ]
        try:
            done = tqdm(as_completed(jobs), total=len(jobs), desc="demo videos", unit="video")
            return [job.result() for job in done]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_calibration(scene: Scene, raw: Path) -> None:
    """Cameras, colour matrices that undo each camera's colour, and background plates."""
    from PIL import Image

    cameras = {serial: item.camera for serial, item in scene.rig.items()}
    shared = next(iter(cameras.values())).intrinsics
    content = {
        "world_2_cam": {s: camera.world_to_camera.tolist() for s, camera in cameras.items()},
        "intrinsics": shared.tolist(),
    }
    io.write_json(raw / "calibration" / "camera_params.json", content)
    correction = {s: np.linalg.inv(item.colour).tolist() for s, item in scene.rig.items()}
    io.write_json(raw / "calibration" / "color_calibration.json", correction)
    empty = render.View(
        np.zeros((scene.height, scene.width, 3), np.float32),
        np.zeros((scene.height, scene.width), np.float32),
        np.full((scene.height, scene.width), 1e9, np.float32),
    )
    for serial, item in scene.rig.items():
        image = develop(scene, empty, item, scene.generator("BACKGROUND", serial))
        path = raw / "sequences" / "BACKGROUND" / f"image_{serial}.jpg"
        with io.atomic(path) as temporary:
            Image.fromarray(image).save(temporary, quality=95)


def write_detections(footage: list[Footage], path: Path) -> None:
    """One sequence's detections in the `provided` form."""
    ordered = sorted(footage, key=lambda item: item.serial)
    landmarks = io.Landmarks(
        cameras=np.array([item.serial for item in ordered]),
        points=np.stack([item.points for item in ordered], axis=1).astype(np.float32),
        confidence=np.stack([item.confidence for item in ordered], axis=1).astype(np.float32),
    )
    io.write_arrays(path, landmarks)


def write_truth(scene: Scene, takes: list[Take], truth: Path) -> None:
    """Poses, control strengths and landmarks of each sequence; the skin of the neutral head."""
    for take in takes:
        with io.atomic(truth / f"{take.name}.npz") as temporary:
            np.savez_compressed(
                temporary,
                R=take.motion.rotation,
                t=take.motion.translation,
                time_s=take.motion.time_s,
                expression=take.motion.expression.astype(np.float32),
                expression_names=np.array(CONTROLS),
                gaze=take.motion.gaze,
                landmarks68=take.landmarks,
            )
    head = scene.head
    skin = io.Mesh(head.neutral[: head.skin], head.skin_faces.astype(np.int64))
    io.write_mesh(truth / "neutral.ply", skin)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def demo_capture(settings: DemoSettings, seed: int, raw: Path, truth: Path) -> None:
    """Generate the embedded subject, deterministic from the seed.

    Args:
        raw: folder of the capture, replaced as a whole.
        truth: folder of its ground truth, replaced as a whole.
    """
    scene = build_scene(settings, seed)
    bias = detections.landmark_bias(scene.generator("bias"))
    counts = dict.fromkeys(SEQUENCES, settings.timesteps)
    counts[HELD_OUT] = settings.held_out_timesteps
    with whole_folder(truth) as new_truth, whole_folder(raw) as new_raw:
        takes = [build_take(scene, name, count, bias) for name, count in counts.items()]
        footage = film_all(scene, takes, new_raw, new_truth)
        for name in counts:
            found = [item for item in footage if item.sequence == name]
            write_detections(found, new_raw / "landmarks" / f"{name}.npz")
        write_calibration(scene, new_raw)
        write_truth(scene, takes, new_truth)
        build_model(
            new_raw / "morphable_model.h5", landmark_points(), scene.generator("morphable model")
        )
