"""A small synthetic subject in contract files: a textured ellipsoid that deforms and turns."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from eavatar.avatar import files
from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.model import HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.cameras import Camera
from eavatar.io import Identity, Sequences, Tracking, write_arrays, write_cameras, write_sequences
from eavatar.rendering.splatting import Gaussians, splat
from eavatar.settings import Settings
from eavatar.transforms import axis_angle_to_matrix

SCALE = 0.1
EXPRESSIONS = 3
TRAINED_ON = ("222200000", "222200002")  # what stage I says that it has seen, of three
AXES = torch.tensor([0.75, 1.0, 0.8])
MOUTH = torch.tensor([0.0, -0.35, 0.75])


def sphere(count: int) -> torch.Tensor:
    """Evenly spread unit vectors (count, 3)."""
    index = torch.arange(count) + 0.5
    height, turn = 1 - 2 * index / count, np.pi * (1 + 5**0.5) * index
    radius = (1 - height**2).sqrt()
    return torch.stack([radius * turn.cos(), height, radius * turn.sin()], dim=1)


def paint(points: torch.Tensor) -> torch.Tensor:
    """Colours (N, 3) of canonical points: smooth shades, stripes and dark spots."""
    waves = torch.stack([torch.sin(9 * points[:, i] + 2 * points.sum(1)) for i in range(3)], dim=1)
    skin = torch.tensor([0.8, 0.6, 0.5]) + 0.12 * waves
    hair = (points[:, 1] > 0.55)[:, None]
    spots = (torch.sin(14 * points[:, :2]).prod(1) > 0.6)[:, None]
    return torch.where(hair, torch.tensor([0.25, 0.15, 0.1]), torch.where(spots, 0.5 * skin, skin))


def deform(points: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
    """Canonical points moved by the expression: jaw down, brow up, cheek out."""
    near = torch.exp(-(points - MOUTH).square().sum(1) / 0.08)[:, None]
    brow = torch.exp(-(points - torch.tensor([0.0, 0.4, 0.7])).square().sum(1) / 0.1)[:, None]
    cheek = torch.exp(-(points - torch.tensor([0.4, -0.1, 0.6])).square().sum(1) / 0.1)[:, None]
    moves = torch.tensor([[0.0, -0.2, 0.05], [0.0, 0.12, 0.0], [0.12, 0.0, 0.08]])
    return points + sum(
        expression[i] * share * moves[i] for i, share in enumerate((near, brow, cheek))
    )


def landmarks() -> torch.Tensor:
    """68 canonical points on the front of the face, the mouth's last."""
    front = sphere(400)
    front = (AXES * front)[(front[:, 2] > 0.5)]
    nearest = (front - MOUTH).norm(dim=1).argsort()
    return torch.cat([front[nearest[20:68]], front[nearest[:20]]])


def cameras(count: int, size: int) -> dict[str, Camera]:
    """Cameras on an arc 1 m in front of the head."""
    result = {}
    for i, angle in enumerate(np.linspace(-0.9, 0.9, count)):
        back = np.array([np.sin(angle), 0.15 * (-1) ** i, np.cos(angle)])
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, -np.cross(back, right), -back])
        pose[:3, 3] = -pose[:3, :3] @ back
        focal = 3.6 * size
        intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
        result[f"{222200000 + i}"] = Camera(intrinsics, pose, size, size)
    return result


def draw(expression: torch.Tensor, pose: torch.Tensor, views: dict[str, Camera]) -> torch.Tensor:
    """(C, H, W, 4) colour on white and alpha of the subject, from small Gaussians."""
    rest = AXES * sphere(8000)
    moved = SCALE * deform(rest, expression) @ axis_angle_to_matrix(pose[:3]).T + pose[3:]
    count, size = len(rest), next(iter(views.values())).width
    gaussians = Gaussians(
        moved,
        torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        torch.full((count, 3), 0.0018),
        torch.full((count,), 0.95),
        paint(rest),
    )
    matrices = torch.from_numpy(np.stack([c.world_to_camera for c in views.values()])).float()
    intrinsics = torch.from_numpy(np.stack([c.intrinsics for c in views.values()])).float()
    image = splat(gaussians, matrices, intrinsics, size, size, torch.ones(3))
    return torch.cat([image.features, image.alpha[..., None]], dim=-1)


def tracking(count: int, phase: float) -> Tracking:
    """Smooth expressions and poses of so many timesteps."""
    time = np.arange(count)[:, None] / count
    rate, start = np.array([[1.0, 2, 3]]), np.array([[0.0, 1, 2]])
    expression = 0.5 + 0.5 * np.sin(2 * np.pi * rate * time + start + phase)
    rotation = np.array([[0.1, 0.25, 0.05]]) * np.sin(2 * np.pi * time + start + 2 * phase)
    translation = 0.005 * np.cos(2 * np.pi * time + start)
    values = [expression, rotation, translation, np.zeros((count, 68, 3)), np.zeros((count, 1))]
    return Tracking(*(value.astype(np.float32) for value in values))


def write_sequence(root: Path, name: str, track: Tracking, views: dict[str, Camera]) -> None:
    rows, boxes = [], []
    for timestep in range(len(track.expression)):
        pose = torch.from_numpy(
            np.concatenate([track.rotation[timestep], track.translation[timestep]])
        )
        images = draw(torch.from_numpy(track.expression[timestep]), pose, views).clamp(0, 1)
        for serial, image in zip(views, (255 * images).byte().numpy(), strict=True):
            place = Path(name, serial, f"{timestep:05d}")
            for folder, suffix, pixels in (
                (root / "capture", ".jpg", cv2.cvtColor(image[..., :3], cv2.COLOR_RGB2BGR)),
                (root / "capture" / "masks", ".png", image[..., 3]),
            ):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str((folder / place).with_suffix(suffix)), pixels)
            rows.append([timestep, serial, timestep, 1.0])
            x, y, width, height = cv2.boundingRect(image[..., 3].copy())
            boxes.append([timestep, serial, x, y, x + width, y + height, 0])
    columns = ["timestep", "camera", "source_frame", "sharpness"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "capture" / f"{name}.csv", index=False)
    columns = ["timestep", "camera", "left", "top", "right", "bottom", "failed"]
    path = root / "capture" / "masks" / f"{name}.csv"
    pd.DataFrame(boxes, columns=columns).to_csv(path, index=False)
    write_arrays(root / "face" / "tracking" / f"{name}.npz", track)


def write_stage_one(
    folder: Path, vertices: int, width: int, features: int, colours: int, appearances: int = 0,
    base: BaseMotion | None = None,
) -> None:  # fmt: skip
    """Stage I's model as if just begun: the right surface, networks that know nothing."""
    torch.manual_seed(0)
    head = HeadSettings(
        expression_size=EXPRESSIONS, feature_size=features, colour_size=colours, width=width,
        appearance_size=appearances, gaze_size=base.gaze_size if base else 0,
        near=0.1, far=0.25, deform_scale=0.3,
    )  # fmt: skip
    stage = files.StageOne(
        head,
        head.make_drivers(),
        Torso(),
        landmarks(),
        vertices=AXES * sphere(vertices),
        features=0.8 * torch.tanh(torch.randn(vertices, features)),
        geometry={},
        base=base,
    )
    files.write_stage_one(folder, stage, Settings(), cameras=TRAINED_ON)


def write_subject(
    root: Path, timesteps: int = 4, views: int = 3, size: int = 64, vertices: int = 1500,
    width: int = 16, features: int = 8, colours: int = 6,
) -> Path:  # fmt: skip
    """All that stage II reads: ``capture``, ``face`` and ``sdf`` below ``root``."""
    arc = cameras(views, size)
    write_cameras(root / "capture" / "cameras.json", arc)
    (root / "capture" / "visible").mkdir(parents=True, exist_ok=True)
    for serial in arc:
        path = root / "capture" / "visible" / f"{serial}.png"
        cv2.imwrite(str(path), np.full((size, size), 255, np.uint8))
    identity = Identity(np.zeros(2, np.float32), np.float32(SCALE), landmarks().numpy())
    write_arrays(root / "face" / "identity.npz", identity)
    write_sequences(root / "capture" / "sequences.json", Sequences(("EXP-1",), ("FREE",)))
    write_sequence(root, "EXP-1", tracking(timesteps, 0.0), arc)
    write_sequence(root, "FREE", tracking(max(timesteps // 4, 2), 0.7), arc)
    write_stage_one(root / "sdf", vertices, width, features, colours)
    return root
