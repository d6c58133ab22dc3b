"""A small results folder through the contracts: a ball with an avatar, seen by four cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import torch
import trimesh
from scipy.spatial.transform import Rotation

from eavatar.avatar.files import write_avatar
from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.avatar.model import Avatar, AvatarSettings, HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.cameras import Camera
from eavatar.io import (
    Alignment,
    Identity,
    Landmarks,
    Mesh,
    Sequences,
    Tracking,
    write_alignment,
    write_arrays,
    write_cameras,
    write_mesh,
    write_sequences,
)
from eavatar.settings import SplatSettings, read_config
from eavatar.transforms import Similarity
from tests.scenes import CONFIG
from tests.scenes.rays import pixel_rays

SIZE, EXPRESSION, SCALE = 64, 3, 0.1
SEQUENCES = {"EXP-1-head": 2, "FREE": 3}
FAILED = {("EXP-1-head", 1, "222200032"), ("FREE", 0, "222200031")}  # views without a good mask
TURN = Rotation.from_euler("z", 2, degrees=True)  # canonical to the truth's frame
LANDMARK_SHIFT = 0.001  # metres, of the fit, along world x


@dataclass(frozen=True)
class Subject:
    """Where the files are, and the cameras as ingested."""

    results: Path
    truth: Path
    cameras: dict[str, Camera]
    full: dict[str, Camera]


def full_cameras() -> dict[str, Camera]:
    """Four cameras of NeRSemble's image size on an arc 1 m from the origin."""
    cameras = {}
    for index, azimuth in enumerate([20, -40, 45, 0]):
        look = Rotation.from_euler("y", azimuth, degrees=True).as_matrix()
        to_camera = np.diag([1.0, -1.0, -1.0]) @ look.T
        matrix = np.eye(4)
        matrix[:3, :3], matrix[2, 3] = to_camera, 1.0
        intrinsics = np.array([[7000.0, 0, 1100], [0, 7000, 1604], [0, 0, 1]])
        cameras[f"22220003{index}"] = Camera(intrinsics, matrix, 2200, 3208)
    return cameras


def ball_mask(camera: Camera) -> np.ndarray:
    """Which pixels see the ball of radius 0.1 m at the origin."""
    along = -(pixel_rays(camera) @ camera.centre)
    return (camera.centre @ camera.centre - along**2 < 0.1**2).astype(np.uint8) * 255


def ball_landmarks() -> np.ndarray:
    """(68, 3) canonical points on the front of the unit ball; 0 and 16 at the sides, 8 below."""
    angles = np.linspace(-np.pi, 0, 17)
    jaw = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.7
    spiral = np.arange(51)[:, None] / 51 * 0.6
    turns = spiral[:, 0] * 40
    inner = np.concatenate([np.cos(turns)[:, None], np.sin(turns)[:, None]], axis=1) * spiral
    flat = np.concatenate([jaw, inner])
    return np.column_stack([flat, np.sqrt(1 - (flat**2).sum(axis=1))])


def small_avatar(settings: SplatSettings) -> Avatar:
    """A ball of Gaussians with random networks, so that expression changes what one sees.

    Half as large as the ball of the masks, which hide nothing of it.
    """
    torch.manual_seed(0)
    head = HeadSettings(
        expression_size=EXPRESSION, feature_size=8, colour_size=8, width=16, near=0.1, far=0.25,
        deform_scale=0.3,
    )  # fmt: skip
    points = 0.5 * torch.tensor(trimesh.creation.icosphere(3).vertices, dtype=torch.float32)
    neutral = NeutralGaussians.from_surface(
        points, torch.rand(len(points), 8) - 0.5, torch.zeros(0, 3), opacity=0.9
    )
    landmarks = 0.5 * torch.tensor(ball_landmarks(), dtype=torch.float32)
    drawn = AvatarSettings.of(settings, head, SCALE)
    return Avatar(drawn, head.make_drivers(), Torso(), neutral, landmarks).eval()


def make_subject(root: Path) -> Subject:
    """A complete ``results/<subject>`` with ground truth, up to what `evaluate` needs."""
    results, truth, full = root / "results", root / "truth", full_cameras()
    cameras = {s: c.crop(-200, 304, 2600, 2600).resize(SIZE, SIZE) for s, c in full.items()}
    write_cameras(results / "capture" / "cameras.json", cameras)
    settings = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml").splat
    settings = settings.model_copy(update={"image_size": SIZE, "upsampling": 2})
    avatar = small_avatar(settings)
    write_avatar(results / "splat" / "full", avatar, settings)
    write_sequences(results / "capture" / "sequences.json", Sequences(("EXP-1-head",), ("FREE",)))
    for number, (sequence, count) in enumerate(SEQUENCES.items()):
        tracking = _write_tracking(results, truth, sequence, count, seed=number)
        _write_frames(results, sequence, tracking, cameras, avatar)
        _write_landmarks(results, sequence, tracking, cameras)
        _write_true_masks(truth, sequence, count, full)
    flags = {"EXP-1-head": ("ok", "ok"), "FREE": ("ok", "few cameras", "interpolated")}
    rows = [(name, t, flag) for name, each in flags.items() for t, flag in enumerate(each)]
    quality = pd.DataFrame(rows, columns=["sequence", "timestep", "flag"])
    quality.to_csv(results / "face" / "fit" / "quality.csv", index=False)
    _write_shapes(results, truth)
    write_cameras(results / "capture" / "full_cameras.json", full)
    return Subject(results, truth, cameras, full)


def _write_tracking(results: Path, truth: Path, sequence: str, count: int, seed: int) -> Tracking:
    random = np.random.default_rng(seed)
    true = Rotation.from_rotvec(random.normal(scale=0.2, size=(count, 3)))
    translation = np.zeros((count, 3))
    expression = random.normal(size=(count, EXPRESSION))
    expression[-1] *= 5  # the strongest is the last
    in_model = TURN.apply(SCALE * ball_landmarks())
    landmarks = np.stack([rotation.apply(in_model) for rotation in true])
    tracking = Tracking(
        expression.astype(np.float32),
        (true * TURN).as_rotvec().astype(np.float32),
        translation.astype(np.float32),
        (landmarks + np.array([LANDMARK_SHIFT, 0, 0])).astype(np.float32),
        np.full((count, 4), 0.5, dtype=np.float32),
    )
    for folder in ("face", "face/fit"):
        write_arrays(results / folder / "tracking" / f"{sequence}.npz", tracking)
    # The video has twice the frames: the ingested ones are every second.
    truth.mkdir(exist_ok=True)
    doubled = [np.repeat(array, 2, axis=0) for array in (true.as_matrix(), translation, landmarks)]
    arrays = dict(zip(("R", "t", "landmarks68"), doubled, strict=True))
    np.savez(truth / f"{sequence}.npz", **arrays)
    return tracking


def _write_frames(
    results: Path,
    sequence: str,
    tracking: Tracking,
    cameras: dict[str, Camera],
    avatar: Avatar,
) -> None:
    capture = results / "capture"
    rows, boxes = [], []
    for timestep in range(len(tracking.expression)):
        images = avatar.render(tracking[timestep], cameras).numpy()
        for (serial, camera), image in zip(cameras.items(), images, strict=True):
            place = Path(sequence, serial, f"{timestep:05d}")
            _write_image((capture / place).with_suffix(".jpg"), image[..., ::-1] * 255)
            _write_image((capture / "masks" / place).with_suffix(".png"), ball_mask(camera))
            rows.append((timestep, serial, 2 * timestep, 1.0))
            failed = int((sequence, timestep, serial) in FAILED)
            boxes.append((timestep, serial, 0, 0, SIZE, SIZE, failed))
    columns = ["timestep", "camera", "source_frame", "sharpness"]
    pd.DataFrame(rows, columns=columns).to_csv(capture / f"{sequence}.csv", index=False)
    columns = ["timestep", "camera", "left", "top", "right", "bottom", "failed"]
    path = capture / "masks" / f"{sequence}.csv"
    pd.DataFrame(boxes, columns=columns).to_csv(path, index=False)
    for serial in cameras:
        visible = np.full((SIZE, SIZE), 255)
        visible[:, :5] = 0
        _write_image(capture / "visible" / f"{serial}.png", visible)


def _write_landmarks(
    results: Path, sequence: str, tracking: Tracking, cameras: dict[str, Camera]
) -> None:
    """Detections where the tracked landmarks are, each other landmark not seen."""
    points = np.stack([camera.project(tracking.landmarks)[0] for camera in cameras.values()], 1)
    confidence = np.ones(points.shape[:3], dtype=np.float32)
    confidence[..., ::2] = 0
    found = Landmarks(np.array(list(cameras)), points.astype(np.float32), confidence)
    write_arrays(results / "face" / "landmarks" / f"{sequence}.npz", found)


def _write_true_masks(truth: Path, sequence: str, count: int, full: dict[str, Camera]) -> None:
    for serial, camera in full.items():
        path = truth / f"{sequence}_mask" / f"cam_{serial}.mp4"
        path.parent.mkdir(exist_ok=True)
        mask = ball_mask(camera.resize(550, 802))
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 550, 802, "yuv420p"
            for _ in range(2 * count):
                frame = av.VideoFrame.from_ndarray(mask, format="gray")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def _write_shapes(results: Path, truth: Path) -> None:
    ball = trimesh.creation.icosphere(4)

    def sized(radius: float) -> Mesh:
        return Mesh((radius * ball.vertices).astype(np.float32), np.array(ball.faces))

    write_mesh(truth / "neutral.ply", sized(SCALE))
    landmarks = ball_landmarks().astype(np.float32)
    identity = Identity(np.zeros(2, np.float32), np.float32(SCALE), landmarks)
    write_arrays(results / "face" / "identity.npz", identity)
    write_mesh(results / "face" / "neutral.ply", sized(1.0))
    write_mesh(results / "prior" / "aligned.ply", sized(1.05))
    write_mesh(results / "sdf" / "full" / "neutral.ply", sized(0.98))
    unmoved = Similarity(1.0, np.eye(3), np.zeros(3))
    alignment = Alignment(unmoved, 0.02, 0.9, accepted=True)
    write_alignment(results / "prior" / "alignment.json", alignment)
    _write_image(results / "prior" / "alignment.png", np.full((40, 80, 3), 200))
    (results / "sdf" / "full" / "model.yaml").write_text("settings:\n  steps: 3\n")
    for stage in ("sdf", "splat"):
        log = pd.DataFrame({"step": [0, 10, 20], "rgb": [0.3, 0.2, 0.1], "gaussians": [9, 9, 12]})
        log.to_csv(results / stage / "full" / "log.csv", index=False)
    benchmark = results / "benchmarks" / "ingest" / "FREE.tsv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\th:m:s\tmax_rss\n12.5\t0:00:12\t345.6\n")


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), image.round().astype(np.uint8), quality)
