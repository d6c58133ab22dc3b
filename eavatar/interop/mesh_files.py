"""The head's surface as glTF: still meshes, and a sequence as one animated file.

Before the pose moves it, the surface of a sequence is close to its neutral shape plus a few linear
shapes. These become morph targets, and the pose becomes two joints, head and torso, between which
`eavatar.avatar.torso` blends as glTF's skins do: that part is exact. Letters: T timesteps, S
vertices, K targets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float32, Float64, Int64
from eavatar.interop.glb import INDICES, TRIANGLES, VERTICES, Content, Glb
from eavatar.interop.head_mesh import HeadMesh
from eavatar.interop.splat_files import to_linear
from eavatar.io import Mesh, Timestep

logger = logging.getLogger(__name__)

MAX_TARGETS = 64  # 13 MB of a head of 17,000 vertices
RATE = 24.0  # timesteps per second: NeRSemble's 73 with every third frame


@dataclass(frozen=True)
class Shapes:
    """T shapes as weighted sums of K.

    Attributes:
        targets: (K, S, 3).
        weights: (T, K).
        error: largest distance of a vertex to where it should be, in the unit of the targets.
    """

    targets: Float32
    weights: Float32
    error: float

    @classmethod
    def of(cls, displacements: Float32, most: int = MAX_TARGETS) -> Shapes:
        """The best few of displacements (T, S, 3), by their singular values."""
        rows = displacements.reshape(len(displacements), -1)
        _, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))  # the largest come last
        chosen = vectors[:, ::-1][:, :most].astype(np.float32)
        # Targets as large as the sequence has them: the weights are within [-1, 1].
        largest = np.abs(chosen).max(axis=0)
        weights, targets = chosen / largest, largest[:, None] * (chosen.T @ rows)
        rest = (rows - weights @ targets).reshape(displacements.shape)
        error = float(np.linalg.norm(rest, axis=2).max())
        return cls(targets.reshape(-1, *displacements.shape[1:]), weights, error)


def write_mesh_glb(path: Path, mesh: Mesh, scale: float = 1.0) -> Path:
    """Write a still mesh, whose unit has so many metres, as glTF."""
    glb = Glb()
    primitive = _add_surface(glb, np.float32(scale) * mesh.vertices, mesh.faces, mesh.colours)
    content = {"scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
    return glb.write(path, content | _describe_surface(primitive))


def write_animation(path: Path, head: HeadMesh, timesteps: Sequence[Timestep], world: bool) -> Path:
    """Write a sequence as one ``.glb``: neutral mesh, morph targets, joints and their animation.

    The colours are those of the neutral expression. Lengths are metres; in canonical space the head
    keeps still and the torso moves against it.

    Args:
        path: the file.
        head: the surface.
        timesteps: at least one.
        world: move head and torso as in the world, in place of canonical space.
    """
    rest = head.stage.torso.rest_pose.numpy()
    still = Timestep(np.zeros_like(timesteps[0].expression), rest[:3], rest[3:])
    neutral, colours = head.deform(still)
    moved = torch.stack([head.deform(timestep)[0] - neutral for timestep in timesteps])
    shapes = Shapes.of((head.scale * moved).numpy())
    logger.info(
        "%d morph targets, no vertex more than %.2f mm off", len(shapes.targets), 1e3 * shapes.error
    )
    glb = Glb()
    metres = (head.scale * neutral).numpy()
    primitive = _add_surface(glb, metres, head.faces, colours.numpy())
    primitive["targets"] = [
        {"POSITION": glb.add(target, VERTICES, bounds=True)} for target in shapes.targets
    ]
    primitive["attributes"] |= _add_skin(glb, head.head_weights.numpy())
    names = [f"shape {number}" for number in range(1, len(shapes.targets) + 1)]
    surface = _describe_surface(primitive)
    surface["meshes"][0]["extras"] = {"targetNames": names}  # as Blender and three.js read them
    content = {
        "scenes": [{"nodes": [0, 3]}],
        "nodes": [
            {"mesh": 0, "skin": 0},
            {"name": "head"},
            {"name": "torso"},
            {"name": "joints", "children": [1, 2]},
        ],
        "skins": [{"joints": [1, 2]}],
        "animations": [_animate(glb, shapes.weights, _move_joints(timesteps, rest, world))],
    }
    return glb.write(path, content | surface)


@dataclass(frozen=True)
class Motion:
    """Where a joint is at T timesteps.

    Attributes:
        rotations: (T, 4) quaternions xyzw.
        translations: (T, 3) metres.
    """

    rotations: Float32
    translations: Float32


def _move_joints(
    timesteps: Sequence[Timestep], rest_pose: Float32, world: bool
) -> tuple[Motion, Motion]:
    """Head and torso, which keeps the rest pose (6,) in the world."""
    turn = Rotation.from_rotvec(np.stack([each.rotation for each in timesteps]))
    shift = np.stack([each.translation for each in timesteps]).astype(np.float64)
    rest = Rotation.from_rotvec(np.tile(rest_pose[:3], (len(timesteps), 1)))
    rest_shift = np.tile(rest_pose[3:].astype(np.float64), (len(timesteps), 1))
    if world:
        return _motion(turn, shift), _motion(rest, rest_shift)
    back = turn.inv()
    torso = _motion(back * rest, back.apply(rest_shift - shift))
    return _motion(back * turn, np.zeros_like(shift)), torso


def _motion(turn: Rotation, shift: Float64) -> Motion:
    quaternions = turn.as_quat()
    # The nearer of q and -q from one timestep to the next, between which viewers interpolate.
    apart = (quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0
    quaternions[1:] *= np.cumprod(np.where(apart, -1, 1))[:, None]
    return Motion(quaternions.astype(np.float32), shift.astype(np.float32))


def _animate(glb: Glb, weights: Float32, joints: tuple[Motion, Motion]) -> Content:
    """The animation of node 0, whose mesh has morph targets, and of the joints after it."""
    times = glb.add(np.arange(len(weights), dtype=np.float32) / np.float32(RATE), bounds=True)
    moving = [(0, "weights", weights.reshape(-1))]
    for node, motion in enumerate(joints, start=1):
        moving.append((node, "rotation", motion.rotations))
        moving.append((node, "translation", motion.translations))
    return {
        "samplers": [{"input": times, "output": glb.add(values)} for _, _, values in moving],
        "channels": [
            {"sampler": number, "target": {"node": node, "path": kind}}
            for number, (node, kind, _) in enumerate(moving)
        ],
    }


def _add_surface(glb: Glb, vertices: Float32, faces: Int64, colours: Float32 | None) -> Content:
    """The primitive of a mesh in metres."""
    attributes = {"POSITION": glb.add(vertices, VERTICES, bounds=True)}
    if colours is not None:
        attributes["COLOR_0"] = glb.add(to_linear(colours), VERTICES)
    indices = glb.add(faces.astype(np.uint32).reshape(-1), INDICES)
    return {"mode": TRIANGLES, "attributes": attributes, "indices": indices, "material": 0}


def _add_skin(glb: Glb, head_weights: Float32) -> Content:
    """How much each vertex follows the first joint, the head (S,), and the second, the torso."""
    weights = np.zeros((len(head_weights), 4), np.float32)
    weights[:, 0], weights[:, 1] = head_weights, 1 - head_weights
    joints = np.zeros((len(head_weights), 4), np.uint8)
    joints[:, 1] = weights[:, 1] > 0
    return {"JOINTS_0": glb.add(joints, VERTICES), "WEIGHTS_0": glb.add(weights, VERTICES)}


def _describe_surface(primitive: Content) -> Content:
    """Mesh and material of a primitive; the colours hold the capture's light already."""
    return {
        "extensionsUsed": ["KHR_materials_unlit"],
        "materials": [{"doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}],
        "meshes": [{"primitives": [primitive]}],
    }
