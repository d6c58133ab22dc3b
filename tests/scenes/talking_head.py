"""Results of a subject whose avatar opens its mouth: a generic head of random colours.

The networks have learned nothing, and the expression reaches none of them but through base motion:
component 0 opens the jaw, component 1 raises the brows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.files import write_avatar
from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.avatar.model import Avatar, AvatarSettings, HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.cameras import Camera
from eavatar.io import (
    ExpressionBasis,
    Identity,
    Sequences,
    Tracking,
    write_arrays,
    write_cameras,
    write_sequences,
)
from eavatar.landmark_indices import BROWS, CHIN, OUTER_LIP_CORNERS
from eavatar.prior.template import generic_head
from eavatar.settings import Settings, read_config
from tests.scenes import CONFIG
from tests.scenes.small_results import make_camera

SIZE, SCALE = 96, 0.1
EXPRESSIONS = 2  # components
LOWER_LIP = 57  # its middle
SEQUENCES = {  # expressions of each timestep
    "EXP-1-head": ((0, 0), (0, 0), (2, 0), (0, 0), (0, 1.5), (0, 0)),
    "FREE": ((1, 0), (0, 1)),
}


def write_talking_head(root: Path) -> Path:
    """The results, with frames as the avatar draws them; returns the folder."""
    head = generic_head()
    vertices, landmarks = torch.from_numpy(head.mesh.vertices), torch.from_numpy(head.landmarks)
    basis = _basis(vertices, landmarks.float())
    avatar = _avatar(
        vertices, landmarks.float(), BaseMotion.of(head.mesh, basis, landmarks.float())
    )
    write_avatar(root / "splat" / "full", avatar, Settings())
    write_arrays(root / "face" / "expression_basis.npz", ExpressionBasis(basis.numpy()))
    identity = Identity(np.zeros(2, np.float32), np.float32(SCALE), np.float32(head.landmarks))
    write_arrays(root / "face" / "identity.npz", identity)
    write_sequences(root / "capture" / "sequences.json", Sequences(("EXP-1-head",), ("FREE",)))
    cameras = {"222200036": _camera(40), "222200037": _camera(-5)}
    write_cameras(root / "capture" / "cameras.json", cameras)
    for serial, camera in cameras.items():
        visible = np.full((camera.height, camera.width), 255, np.uint8)
        visible[:, -8:] = 0
        _write(root / "capture" / "visible" / f"{serial}.png", visible)
    carried = basis[cKDTree(vertices.numpy()).query(head.landmarks)[1]].numpy()
    for name, expressions in SEQUENCES.items():
        track = _track(np.float32(expressions), head.landmarks, carried)
        write_arrays(root / "face" / "tracking" / f"{name}.npz", track)
        images = (255 * avatar.render(track, cameras)).round().byte().numpy()
        for timestep, views in enumerate(images):
            for serial, image in zip(cameras, views, strict=True):
                place = f"{name}/{serial}/{timestep:05d}"
                _write(root / "capture" / f"{place}.jpg", image[..., ::-1])
                mask = np.full(image.shape[:2], 255, np.uint8)
                _write(root / "capture" / "masks" / f"{place}.png", mask)
    return root


def _camera(angle: float) -> Camera:
    """As of `make_camera`, but it sees the whole head, and is tilted."""
    camera = make_camera(angle).resize(2 * SIZE, 2 * SIZE)
    intrinsics = camera.intrinsics.copy()
    intrinsics[[0, 1], [0, 1]] *= 0.8
    tilted = np.eye(4)
    tilted[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix()
    world_to_camera = tilted @ camera.world_to_camera
    return replace(camera, intrinsics=intrinsics, world_to_camera=world_to_camera)


def _basis(vertices: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """(V, 3, 2): what is below the mouth around the chin goes down; the front at the brows, up."""
    jaw = (landmarks[LOWER_LIP] + landmarks[CHIN]) / 2
    below = vertices[:, 1] < landmarks[list(OUTER_LIP_CORNERS), 1].mean()
    height = vertices[:, 1] - landmarks[BROWS, 1].mean()
    basis = torch.zeros(len(vertices), 3, EXPRESSIONS)
    basis[:, 1, 0] = -0.15 * torch.exp(-(vertices - jaw).square().sum(dim=1) / 0.1) * below
    basis[:, 1, 1] = 0.08 * torch.exp(-height.square() / 0.01) * (vertices[:, 2] > 0)
    return basis


def _avatar(vertices: torch.Tensor, landmarks: torch.Tensor, base: BaseMotion) -> Avatar:
    torch.manual_seed(0)
    settings = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml").splat
    settings = settings.model_copy(update={"image_size": SIZE, "upsampling": 2})
    head = HeadSettings(
        expression_size=EXPRESSIONS, feature_size=8, colour_size=8, width=16, near=0.1, far=0.25,
        deform_scale=0.3,
    )  # fmt: skip
    drivers = head.make_drivers()
    colour = drivers.expression_colour.layers
    torch.nn.init.normal_(colour[-1].weight)
    for layer in (colour[0], colour[drivers.expression_colour.skip]):
        torch.nn.init.zeros_(layer.weight[:, -head.expression_size :])
    features = 2 * torch.rand(len(vertices), 8) - 1
    neutral = NeutralGaussians.from_surface(vertices, features, torch.zeros(0, 3), opacity=0.9)
    drawn = AvatarSettings.of(settings, head, SCALE)
    avatar = Avatar(drawn, drivers, Torso(), neutral, landmarks, base, mixed_precision=False)
    torch.nn.init.zeros_(avatar.generator.expression_attributes.layers[-1].weight)
    avatar.sort_by_expression_weight()
    return avatar.eval()


def _track(expression: np.ndarray, landmarks: np.ndarray, basis: np.ndarray) -> Tracking:
    count = len(expression)
    rotation = np.linspace(-0.1, 0.1, count)[:, None] * np.array([0.3, 1, 0.2])
    moved = landmarks + np.einsum("lce,te->tlc", basis, expression)
    turned = np.stack([
        SCALE * turn.apply(points)
        for turn, points in zip(Rotation.from_rotvec(rotation), moved, strict=True)
    ])  # fmt: skip
    arrays = [expression, rotation, np.zeros((count, 3)), turned, np.zeros((count, 2))]
    return Tracking(*(array.astype(np.float32) for array in arrays))


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
