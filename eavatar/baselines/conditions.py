"""Orthographic images of the morphable model's mesh, which condition HAvatar.

The mesh is that of an expression at rest, seen from the front and from both sides. Its surface is
sampled densely, and each pixel keeps the sample nearest to the viewer: an order that does not
matter, so that the same mesh always gives the same image, without a gradient. The original draws
FaceVerse's mesh with its texture; here a colour tells which point of the neutral face it is.

Letters: B expressions, V vertices, F faces, E coefficients, P samples of the surface, H = W the
size of the images. Columns of the front run along x, those of the sides along z, so that the left
side is seen mirrored; rows run down along y: as in the planes of features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from eavatar.arrays import Float32, Int64

LOWER, UPPER = (-1.5, -1.6, -1.6), (1.5, 1.4, 1.2)  # HAvatar's box, canonical
FRONT_CHANNELS, SIDE_CHANNELS = 7, 13
DENSITY = 1.5  # samples along an edge of the neutral mesh / pixels
DEPTH_LEVELS = 2**30
VIEWS = (
    (0, 2, 1),
    (2, 0, 1),
    (2, 0, -1),
)  # axis of the columns, axis of depth, where the viewer is


@dataclass(frozen=True)
class DeformingMesh:
    """A person's mesh at rest, by expression: ``neutral + basis · e``, canonical.

    Attributes:
        neutral: (V, 3).
        basis: (V, 3, E), a standard deviation each.
        faces: (F, 3) counter-clockwise seen from outside.
    """

    neutral: Float32
    basis: Float32
    faces: Int64

    @property
    def digest(self) -> str:
        """Of all of it."""
        arrays = (self.neutral, self.basis, self.faces)
        parts = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return hashlib.sha256(parts).hexdigest()


class Conditions(nn.Module):
    """Draws the images.

    Args:
        vertices: V.
        faces: F.
        expressions: E.
        size: H = W.
    """

    neutral: Tensor
    basis: Tensor
    faces: Tensor
    lower: Tensor
    extent: Tensor

    def __init__(self, vertices: int, faces: int, expressions: int, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("neutral", torch.zeros(vertices, 3))
        self.register_buffer("basis", torch.zeros(vertices, 3, expressions))
        self.register_buffer("faces", torch.zeros(faces, 3, dtype=torch.int64))
        self.register_buffer("lower", torch.tensor(LOWER), persistent=False)
        extent = torch.tensor(UPPER) - torch.tensor(LOWER)
        self.register_buffer("extent", extent, persistent=False)
        self._samples: tuple[Tensor, Tensor] | None = None

    def fill(self, mesh: DeformingMesh) -> None:
        """Take over a person's mesh, of whose basis the leading components are used."""
        expressions = self.basis.shape[2]
        arrays = (mesh.neutral, mesh.basis[..., :expressions], mesh.faces)
        for buffer, array in zip((self.neutral, self.basis, self.faces), arrays, strict=True):
            buffer.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    @torch.no_grad()
    def forward(self, expressions: Tensor) -> tuple[Tensor, Tensor]:
        """Front (B, 7, H, W) and sides (B, 13, H, W) of expressions (B, E).

        The channels are colour and normal, of the left side and then of the right one, and last
        the mask; zero where there is no mesh.
        """
        vertices = self.neutral + (self.basis * expressions[:, None, None]).sum(dim=-1)
        colours = 2 * (self.neutral - self.lower) / self.extent - 1
        normals = self._normals(vertices)
        values = torch.cat([colours.expand_as(vertices), normals], dim=-1)
        front, left, right = self._draw(vertices, values).unbind(dim=1)
        return front, torch.cat([left[:, :-1], right], dim=1)

    def _draw(self, vertices: Tensor, values: Tensor) -> Tensor:
        """Images (B, 3, D + 1, H, W) of the three views, the mask last.

        Args:
            vertices: (B, V, 3).
            values: (B, V, D) at them.
        """
        corners, weights = self._sample()
        batch, size = len(vertices), self.size
        points = _mix(vertices, corners, weights)
        places = (points - self.lower) / self.extent
        inside = ((places >= 0) & (places < 1)).all(dim=-1)
        numbers = torch.arange(len(corners), device=points.device)
        rows = ((1 - places[..., 1]) * size).long().clamp(0, size - 1)
        images = []
        for columns, depth, side in VIEWS:
            near = places[..., depth] if side > 0 else 1 - places[..., depth]
            key = ((near * DEPTH_LEVELS).long().clamp(0, DEPTH_LEVELS - 1) << 32) + numbers
            column = (places[..., columns] * size).long().clamp(0, size - 1)
            best = torch.full((batch, size * size), -1, dtype=torch.int64, device=points.device)
            key = torch.where(inside, key, -1)
            best.scatter_reduce_(1, rows * size + column, key, "amax")
            shown = (best & (2**32 - 1)).clamp(max=len(corners) - 1)
            mask = (best >= 0).float()[..., None]
            drawn = torch.stack(
                [
                    _mix(v[None], corners[i], weights[i])[0]
                    for v, i in zip(values, shown, strict=True)
                ]
            )
            images.append(torch.cat([drawn * mask, mask], dim=-1))
        stacked = torch.stack(images, dim=1).transpose(2, 3)
        return stacked.reshape(*stacked.shape[:3], size, size)

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Corners (P, 3) of the face of each sample, and their weights (P, 3); made once."""
        if self._samples is None:
            self._samples = sample_faces(self.neutral, self.faces, self.size / self.extent.amin())
        corners, weights = (tensor.to(self.neutral.device) for tensor in self._samples)
        self._samples = corners, weights
        return corners, weights

    def _normals(self, vertices: Tensor) -> Tensor:
        """Unit normals (B, V, 3) of the vertices."""
        corners = vertices.index_select(1, self.faces.flatten()).unflatten(1, (-1, 3))
        first, second, third = corners.unbind(dim=2)
        across = torch.linalg.cross(second - first, third - first)
        sums = torch.zeros_like(vertices)
        for corner in range(3):
            sums = sums.index_add(1, self.faces[:, corner], across)
        return normalize(sums, dim=-1)


def sample_faces(vertices: Tensor, faces: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of a mesh so dense that hardly a pixel is missed.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        pixels: () per unit of length.
    Returns:
        Corners (P, 3), indices of vertices, and their weights (P, 3).
    """
    corners = vertices[faces]
    longest = (corners - corners.roll(1, dims=1)).norm(dim=-1).amax(dim=1)
    counts = (DENSITY * longest * pixels).ceil().long().clamp(min=1)
    parts = []
    for count in counts.unique().tolist():
        steps = (torch.arange(count, device=faces.device) + 1 / 3) / count
        first, second = torch.meshgrid(steps, steps, indexing="ij")
        kept = first + second < 1
        pair = torch.stack([first[kept], second[kept]], dim=-1)
        weights = torch.cat([pair, 1 - pair.sum(dim=-1, keepdim=True)], dim=-1)
        chosen = faces[counts == count]
        parts.append((chosen.repeat_interleave(len(weights), 0), weights.repeat(len(chosen), 1)))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _mix(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Values (B, P, D) at samples, of values (B, V, D) at the vertices."""
    total = torch.zeros((), device=values.device)
    for corner in range(3):
        total = total + weights[:, corner, None] * values.index_select(1, corners[:, corner])
    return total
