"""`demo_capture`: the embedded subject, a procedural head in the raw NeRSemble v2 layout.

    raw/calibration/*.json                     cameras, colour matrices
    raw/sequences/<sequence>/images/cam_*.mp4  videos; BACKGROUND holds the plates
    raw/morphable_model.h5                     BFM 2017 layout, from other heads of the family
    raw/landmarks/<sequence>.npz               detections, pixels of the full image
    truth/<sequence>.npz, truth/<sequence>_mask/cam_*.mp4, truth/neutral.ply

The truth is for scoring; no stage reads it.
"""

from __future__ import annotations

import zlib
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar import io
from eavatar.arrays import Float32, Float64, Uint8
from eavatar.data.video import write_video
from eavatar.demo import detections, render
from eavatar.demo.controls import CONTROLS
from eavatar.demo.head import DemoHead, build_head, landmark_points
from eavatar.demo.morphable_model import build_model
from eavatar.demo.motion import HELD_OUT, REST, SEQUENCES, ActedMotion, act
from eavatar.demo.render import Geometry, NoiseTables
from eavatar.demo.rig import FULL_HEIGHT, FULL_WIDTH, RigCamera, build_rig
from eavatar.errors import UserError
from eavatar.settings import DemoSettings
from eavatar.threads import make_pool

FRAME_RATE = 73  # NeRSemble's tag; the acted time is in the truth
VIDEO_QUALITY = "14"  # x264's constant rate factor
SENSOR_NOISE = 1.3  # standard deviation, 8-bit steps
MASK_QUALITY = "12"
MODEL, NEUTRAL = "morphable_model.h5", "neutral.ply"  # in the capture, in its ground truth


@dataclass(frozen=True)
class Scene:
    """What all images have in common.

    Attributes:
        head: the subject.
        rig: cameras by serial number.
        width: of the stored images.
        height: of the stored images.
        noise: shading detail.
        grain: (height + 64, width + 64, 3) sensor noise, of which each image uses a window.
        curve: sRGB encoding.
        seed: of all random numbers.
    """

    head: DemoHead
    rig: dict[str, RigCamera]
    width: int
    height: int
    noise: NoiseTables
    grain: Float32
    curve: Float32
    seed: int

    def generator(self, *names: str) -> np.random.Generator:
        """Random numbers for a named purpose, independent of the order of the work."""
        return np.random.default_rng([self.seed, *(zlib.crc32(name.encode()) for name in names)])


@dataclass(frozen=True)
class PosedSequence:
    """A sequence with the head's posed meshes.

    Attributes:
        name: of the sequence.
        motion: over time.
        geometry: T posed meshes.
        landmarks: (T, 68, 3) true, world, metres.
        biased: (T, 68, 3) with the detector's bias.
    """

    name: str
    motion: ActedMotion
    geometry: list[Geometry]
    landmarks: Float64
    biased: Float64


@dataclass(frozen=True)
class VideoDetections:
    """Detections in one camera's video.

    Attributes:
        sequence: its name.
        serial: of the camera.
        points: (T, 68, 2) pixels of the full image.
        confidence: (T, 68) in [0, 1].
    """

    sequence: str
    serial: str
    points: Float64
    confidence: Float64


def _build_scene(settings: DemoSettings, seed: int) -> Scene:
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


def _pose_vertices(
    head: DemoHead, rest: NDArray[np.floating], rotation: Float64, translation: Float64
) -> Float32:
    """(V, 3) vertices with the head turned and the torso at rest, world, metres.

    Args:
        head: of the scene.
        rest: (V, 3) at rest pose.
        rotation: (3, 3) of the head.
        translation: (3,) of the head, metres.
    """
    turned = rest @ rotation.T + translation
    weight = head.head[:, None]
    vertices: Float32 = (weight * turned + (1 - weight) * (rest + REST)).astype(np.float32)
    return vertices


def _pose_sequence(scene: Scene, name: str, timesteps: int, bias: Float64) -> PosedSequence:
    """Pose the head at every timestep.

    Args:
        scene: with the head.
        name: of the sequence.
        timesteps: how many.
        bias: (68, 3) of the detector in the head's frame, metres.
    """
    head, acted = scene.head, act(name, timesteps)
    geometry, biased = [], []
    for expression, gaze, rotation, translation in zip(
        acted.expression, acted.gaze, acted.rotation, acted.translation, strict=True
    ):
        rest = head.vertices(expression.astype(np.float32), (gaze[0], gaze[1]))
        vertices = _pose_vertices(head, rest, rotation, translation)
        geometry.append(Geometry(vertices, render.smooth_normals(vertices, head.faces)))
        biased.append(vertices[head.landmarks] + bias @ rotation.T)
    landmarks = np.stack([posed.vertices[head.landmarks] for posed in geometry])
    return PosedSequence(name, acted, geometry, landmarks.astype(np.float64), np.stack(biased))


def _store_image(
    scene: Scene, view: render.View, camera: RigCamera, generator: np.random.Generator
) -> Uint8:
    """The stored image of a view: (H, W, 3) uint8."""
    row, column = generator.integers(64, size=2)
    grain = scene.grain[row : row + scene.height, column : column + scene.width]
    colour = camera.colour.astype(np.float32)
    return render.apply_sensor(view.image, view.coverage, camera.plate, colour, scene.curve, grain)


def _record_video(
    scene: Scene, sequence: PosedSequence, serial: str, raw: Path, truth: Path
) -> VideoDetections:
    """Render one camera's video of one sequence, write it, and detect landmarks in it."""
    camera = scene.rig[serial]
    stored = camera.camera.resize(scene.width, scene.height)
    generator = scene.generator(sequence.name, serial)
    images, masks, points, confidence = [], [], [], []
    for posed, landmarks, biased in zip(
        sequence.geometry, sequence.landmarks, sequence.biased, strict=True
    ):
        view = render.render_view(posed, scene.head.faces, scene.head.look, stored, scene.noise)
        images.append(_store_image(scene, view, camera, generator))
        masks.append((255 * view.coverage + 0.5).astype(np.uint8))
        visible = detections.find_visible(landmarks, stored, view.depth)
        normals = posed.normals[scene.head.landmarks]
        found = detections.detect(biased, normals, visible, camera.camera, generator)
        points.append(found[0])
        confidence.append(found[1])
    # Planar 4:4:4 stores odd image sizes, which 4:2:0 cannot. One thread each: the videos are
    # written in parallel.
    video = raw / "sequences" / sequence.name / "images" / f"cam_{serial}.mp4"
    write_video(video, images, FRAME_RATE, "yuv444p", VIDEO_QUALITY, threads=1)
    mask = truth / f"{sequence.name}_mask" / f"cam_{serial}.mp4"
    write_video(mask, masks, FRAME_RATE, "gray", MASK_QUALITY, threads=1)
    return VideoDetections(sequence.name, serial, np.stack(points), np.stack(confidence))


def _record_videos(
    scene: Scene, sequences: list[PosedSequence], raw: Path, truth: Path
) -> list[VideoDetections]:
    """Record all videos in parallel, with a progress bar over the videos."""
    from tqdm import tqdm

    with make_pool() as pool:
        jobs: list[Future[VideoDetections]] = [
            pool.submit(_record_video, scene, sequence, serial, raw, truth)
            for sequence in sequences
            for serial in scene.rig
        ]
        try:
            done = tqdm(as_completed(jobs), total=len(jobs), desc="demo videos", unit="video")
            return [job.result() for job in done]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_calibration(scene: Scene, raw: Path) -> None:
    """Write cameras, colour matrices that undo each camera's colour, and background plates."""
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
        image = _store_image(scene, empty, item, scene.generator("BACKGROUND", serial))
        path = raw / "sequences" / "BACKGROUND" / f"image_{serial}.jpg"
        with io.atomic(path) as temporary:
            Image.fromarray(image).save(temporary, quality=95)


def _write_detections(detected: list[VideoDetections], path: Path) -> None:
    """Write one sequence's detections as `provided` landmarks."""
    ordered = sorted(detected, key=lambda item: item.serial)
    landmarks = io.Landmarks(
        cameras=np.array([item.serial for item in ordered]),
        points=np.stack([item.points for item in ordered], axis=1).astype(np.float32),
        confidence=np.stack([item.confidence for item in ordered], axis=1).astype(np.float32),
    )
    io.write_arrays(path, landmarks)


def _write_truth(scene: Scene, sequences: list[PosedSequence], truth: Path) -> None:
    """Write poses, control strengths and landmarks of each sequence; the neutral head's skin."""
    for sequence in sequences:
        with io.atomic(truth / f"{sequence.name}.npz") as temporary:
            np.savez_compressed(
                temporary,
                R=sequence.motion.rotation,
                t=sequence.motion.translation,
                time_s=sequence.motion.time_s,
                expression=sequence.motion.expression.astype(np.float32),
                expression_names=np.array(CONTROLS),
                gaze=sequence.motion.gaze,
                landmarks68=sequence.landmarks,
            )
    head = scene.head
    skin = io.Mesh(head.neutral[: head.skin], head.skin_faces.astype(np.int64))
    io.write_mesh(truth / NEUTRAL, skin)


def _check_places(raw: Path, truth: Path) -> None:
    """Raise `UserError` where replacing both folders would remove something else."""
    one, other = raw.resolve(), truth.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise UserError(f"capture and ground truth must lie apart, not in {raw} and {truth}.")
    for path, sign in ((raw, MODEL), (truth, NEUTRAL)):
        if path.exists() and any(path.iterdir()) and not (path / sign).exists():
            raise UserError(
                f"{path} would be replaced, and holds something else; name an empty folder, or "
                "one that does not exist."
            )


def demo_capture(settings: DemoSettings, seed: int, raw: Path, truth: Path) -> Path:
    """Generate the embedded subject, deterministic from the seed.

    Args:
        settings: sizes.
        seed: of all random numbers.
        raw: folder of the capture, replaced as a whole.
        truth: folder of its ground truth, replaced as a whole.

    Returns:
        ``raw``.

    Raises:
        UserError: the folders overlap, or hold something else than an earlier call's files.
    """
    _check_places(raw, truth)
    scene = _build_scene(settings, seed)
    bias = detections.landmark_bias(scene.generator("bias"))
    counts = dict.fromkeys(SEQUENCES, settings.timesteps)
    counts[HELD_OUT] = settings.held_out_timesteps
    with io.replace_folder(truth) as new_truth, io.replace_folder(raw) as new_raw:
        sequences = [_pose_sequence(scene, name, count, bias) for name, count in counts.items()]
        detected = _record_videos(scene, sequences, new_raw, new_truth)
        for name in counts:
            found = [item for item in detected if item.sequence == name]
            _write_detections(found, new_raw / "landmarks" / f"{name}.npz")
        _write_calibration(scene, new_raw)
        _write_truth(scene, sequences, new_truth)
        build_model(new_raw / MODEL, landmark_points(), scene.generator("morphable model"))
    return raw
