"""Base motion: the morphable model's own expression displacement at the place of each point.

Eq. 2 has a network learn all of it from zero; what training never showed, it cannot know. The
fitted mesh does: ``neutral + basis · θ``. Here each point moves with the nearest place of the mesh,
fully up to `FULL_REACH` and falling smoothly to nothing at `ZERO_REACH`, as for hair, neck and the
back of the head; the networks learn the rest. Two sheets behind the lips stand for teeth and
tongue, the upper one still as the skull, the lower one moving with the chin, and a cap in each eye
for the eyeball: most models have none, and lids would drag it along. It turns with the gaze where
that is tracked and is still otherwise.

Canonical space, 1 unit = 1 dm. Letters: V vertices and F faces of the mesh, N points, E
expression coefficients, G = 2 angles of the gaze or none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn.functional import normalize

from eavatar.errors import UserError
from eavatar.io import ExpressionBasis, Identity, Mesh, read_arrays, read_mesh
from eavatar.landmark_indices import CHIN, INNER_LIPS, LEFT_EYE, MOUTH, RIGHT_EYE
from eavatar.threads import count_threads

FULL_REACH = 0.1  # a fitted face is within a centimetre of the mesh
ZERO_REACH = 0.4  # below the jaw skin follows it for some centimetres
STILL = 5e-4  # 0.05 mm at one standard deviation: faces that move less are left out
CANDIDATES = 10  # faces of the nearest centres, one of which is the nearest face
CHUNK = 2**15  # points located at once
MOUTH_MARGIN = 0.8  # half size of the box of mouth points / largest landmark distance (GHA)
SHEET_CELLS = 12, 6  # of the teeth's sheets, across and up
EYEBALL = 0.12  # radius: those of adults differ by 0.01
EYE_CAP = 1.3  # radians from its front: as far as gaze brings between the lids
CAP_CELLS = 6, 12  # of the cap, outwards and around
CAP_VERTICES = (CAP_CELLS[0] + 1) * (CAP_CELLS[1] + 1)


@dataclass(frozen=True)
class Attachment:
    """Where on the mesh each of N points is carried.

    Attributes:
        corners: (N, 3) vertices of a face.
        weights: (N, 3) of these, with a sum of one near the mesh and of zero far from it.
    """

    corners: Tensor
    weights: Tensor

    def carry(self, displacements: Tensor) -> Tensor:
        """Displacements (…, N, 3) of the points, from those of the vertices (…, V, 3)."""
        taken = displacements.index_select(-2, self.corners.flatten())
        taken = taken.unflatten(-2, self.corners.shape)
        carried: Tensor = (self.weights[..., None] * taken).sum(dim=-2)
        return carried


class BaseMotion(nn.Module):
    """The moving part of a person's fitted mesh, the sheets of the teeth and the caps of the eyes.

    Attributes:
        vertices: (V, 3) neutral, those of the caps the last.
        faces: (F, 3).
        basis: (V, 3, E) displacements, a standard deviation each.
        gaze_size: 2 if the caps turn with the gaze, 0 if they are still.
    """

    vertices: Tensor
    faces: Tensor
    basis: Tensor

    def __init__(self, vertices: Tensor, faces: Tensor, basis: Tensor, gaze_size: int = 0):
        super().__init__()
        self.gaze_size = gaze_size
        self.register_buffer("vertices", vertices)
        self.register_buffer("faces", faces)
        self.register_buffer("basis", basis)

    @classmethod
    def of(cls, mesh: Mesh, basis: Tensor, landmarks: Tensor, gaze_size: int = 0) -> Self:
        """From the whole mesh at rest, its basis (V, 3, E), the neutral landmarks (68, 3) and G."""
        vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
        vertices, chin = vertices.float(), landmarks[CHIN]
        of_chin = basis[(vertices - chin).square().sum(dim=1).argmin()]
        moving = (basis.norm(dim=1) > STILL).any(dim=1)[faces].any(dim=1)
        used, numbers = faces[moving].unique(return_inverse=True)
        parts = [(vertices[used], numbers, basis[used])]
        still = torch.zeros_like(of_chin)
        eyes = [Eyeball.of(landmarks[ring]) for ring in (RIGHT_EYE, LEFT_EYE)]
        for (points, sheet), motion in (
            (_teeth(landmarks, upper=True), still),
            (_teeth(landmarks, upper=False), of_chin),
            *((eye.cap(), still) for eye in eyes),
        ):
            parts.append((points, sheet, motion.expand(len(points), -1, -1)))
        starts = np.cumsum([0, *(len(part[0]) for part in parts[:-1])]).tolist()
        return cls(
            torch.cat([points for points, _, _ in parts]),
            torch.cat([part[1] + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat([motion for _, _, motion in parts]),
            gaze_size,
        )

    @classmethod
    def read(cls, face: Path, expressions: int, gaze_size: int = 0) -> Self:
        """From ``results/<subject>/face``, for a tracking of so many coefficients, E and G.

        Raises:
            UserError: a file is missing or malformed, or they do not belong together.
        """
        path = face / "expression_basis.npz"
        basis = torch.from_numpy(read_arrays(ExpressionBasis, path).basis)
        mesh = read_mesh(face / "neutral.ply")
        identity = read_arrays(Identity, face / "identity.npz")
        if basis.shape != (len(mesh.vertices), 3, expressions):
            raise UserError(
                f"{path} is of {len(basis)} vertices and {basis.shape[2]} expression coefficients, "
                f"but neutral.ply has {len(mesh.vertices)} and the tracking {expressions}; run "
                "`fit_face` again."
            )
        return cls.of(mesh, basis, torch.from_numpy(identity.landmarks), gaze_size)

    @classmethod
    def empty(cls, vertices: int, faces: int, expressions: int, gaze_size: int = 0) -> Self:
        """Of these sizes, to be filled from a file."""
        corners = torch.zeros(faces, 3, dtype=torch.int64)
        basis = torch.zeros(vertices, 3, expressions)
        return cls(torch.zeros(vertices, 3), corners, basis, gaze_size)

    @property
    def eye_centres(self) -> Tensor:
        """(2, 3) of the right and the left eyeball, from their caps."""
        caps = self.vertices[-2 * CAP_VERTICES :].view(2, CAP_VERTICES, 3)
        top, rim = caps[:, 0], caps[:, -CAP_CELLS[1] :].mean(dim=1)
        return top - (top - rim) / (1 - math.cos(EYE_CAP))

    def forward(self, driving: Tensor) -> Tensor:
        """Displacements (…, V, 3) of the vertices under expression and gaze (…, E + G), behind
        which appearance may follow."""
        count = self.basis.shape[2]
        moved: Tensor = driving[..., :count] @ self.basis.flatten(0, 1).T
        moved = moved.view(*driving.shape[:-1], -1, 3)
        if self.gaze_size == 0:
            return moved
        gaze = driving[..., count : count + self.gaze_size]
        caps = self.vertices[-2 * CAP_VERTICES :].view(2, CAP_VERTICES, 3)
        arms = (caps - self.eye_centres[:, None]).flatten(0, 1)
        turned = arms @ turn_eyes(gaze).mT - arms
        moved[..., -len(arms) :, :] += turned
        return moved

    @torch.no_grad()
    def attach(self, points: Tensor) -> Attachment:
        """Points (N, 3) to the nearest faces; works on the host."""
        triangles = self.vertices[self.faces].cpu()
        sizes = (triangles - triangles.roll(1, dims=1)).norm(dim=2).amax(dim=1)
        # Small and large faces apart, or the centres of many small ones would hide a large one.
        groups = sizes.argsort().tensor_split(2)
        trees = [(group, cKDTree(triangles[group].mean(dim=1).numpy())) for group in groups]
        chosen = []
        for chunk in points.detach().cpu().split(CHUNK):
            faces = torch.cat([_candidates(chunk, *group) for group in trees], dim=1)
            _, squared = _nearest_places(chunk[:, None], triangles[faces])
            chosen.append(faces.gather(1, squared.argmin(dim=1, keepdim=True))[:, 0])
        return self.attach_to(points, torch.cat(chosen).to(points.device))

    @torch.no_grad()
    def attach_to(self, points: Tensor, faces: Tensor) -> Attachment:
        """Points (N, 3) to given faces (N,), on one device; no shape depends on values."""
        corners = self.faces.index_select(0, faces)
        triangles = self.vertices.index_select(0, corners.flatten()).view(-1, 3, 3)
        weights, squared = _nearest_places(points, triangles)
        fall = ((ZERO_REACH - squared.sqrt()) / (ZERO_REACH - FULL_REACH)).clamp(0, 1)
        reach = fall * fall * (3 - 2 * fall)
        return Attachment(corners, reach[:, None] * weights)


def _candidates(points: Tensor, faces: Tensor, centres: cKDTree) -> Tensor:
    """Those (N, C) of the faces (F,) whose centres are nearest to points (N, 3)."""
    _, found = centres.query(points.numpy(), k=CANDIDATES, workers=count_threads())
    return faces[torch.from_numpy(found)]


def mouth_box(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner (3,) of the upright rectangle behind the lips, for teeth and tongue.

    Args:
        landmarks: (68, 3) of the neutral face, canonical.
    """
    mouth = landmarks[MOUTH]
    centre = mouth.mean(dim=0)
    reach = MOUTH_MARGIN * (mouth - centre).abs().amax(dim=0)
    lower, upper = centre - reach, centre + reach
    lower[2] = upper[2] = mouth[:, 2].min()
    return lower, upper


def _teeth(landmarks: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
    """Vertices (P, 3) and faces (Q, 3) of the sheet of the upper or the lower teeth, which meet at
    the height of the inner lips."""
    low, high = mouth_box(landmarks)
    seam = landmarks[INNER_LIPS, 1].mean()
    bottom, top = (seam, high[1]) if upper else (low[1], seam)
    across, up = SHEET_CELLS
    x = torch.lerp(low[0], high[0], torch.linspace(0, 1, across + 1).to(low))
    y = torch.lerp(bottom, top, torch.linspace(0, 1, up + 1).to(low))
    grid = torch.cartesian_prod(y, x)
    points = torch.stack([grid[:, 1], grid[:, 0], low[2].expand(len(grid))], dim=1)
    return points, _grid_faces(up, across)


@dataclass(frozen=True)
class Eyeball:
    """The sphere through the middles of both lids, about the axis of their opening.

    Attributes:
        centre: (3,) canonical.
        axes: (3, 3) rows: towards the other corner, across the lids, and to the front.
    """

    centre: Tensor
    axes: Tensor

    @classmethod
    def of(cls, ring: Tensor) -> Self:
        """From the six landmarks (6, 3) of an eye."""
        corners, lids = ring[[0, 3]], ring[[1, 2, 4, 5]]
        middle, upper, lower = lids.mean(dim=0), lids[:2].mean(dim=0), lids[2:].mean(dim=0)
        sideways = normalize(corners[1] - corners[0], dim=0)
        front = normalize(torch.linalg.cross(upper - lower, sideways), dim=0)
        front = front * front[2].sign()
        half = ((upper - lower).norm() / 2).clamp(max=EYEBALL)
        centre = middle - (EYEBALL**2 - half**2).sqrt() * front
        return cls(centre, torch.stack([sideways, torch.linalg.cross(front, sideways), front]))

    def cap(self) -> tuple[Tensor, Tensor]:
        """Vertices (P, 3) and faces (Q, 3) of its front."""
        outwards, around = CAP_CELLS
        tilt = torch.linspace(0, EYE_CAP, outwards + 1).to(self.centre)
        turn = torch.linspace(0, 2 * torch.pi, around + 1).to(self.centre)
        grid = torch.cartesian_prod(tilt, turn)
        return self.points(grid[:, 0], grid[:, 1]), _grid_faces(outwards, around)

    def points(self, tilt: Tensor, turn: Tensor) -> Tensor:
        """(N, 3) on the sphere, at angles (N,) from its front and (N,) about it."""
        sine = tilt.sin()
        places = torch.stack([sine * turn.cos(), sine * turn.sin(), tilt.cos()], dim=1)
        return self.centre + EYEBALL * places @ self.axes


def eye_points(landmarks: Tensor, count: int) -> Tensor:
    """Random points (2 · count, 3) on the fronts of both eyeballs, as densely everywhere.

    Args:
        landmarks: (68, 3) of the neutral face, canonical.
        count: of points of each.
    """
    points = []
    for ring in (RIGHT_EYE, LEFT_EYE):
        height, turn = torch.rand(2, count).to(landmarks)
        tilt = torch.acos(1 - height * (1 - math.cos(EYE_CAP)))
        points.append(Eyeball.of(landmarks[ring]).points(tilt, 2 * torch.pi * turn))
    return torch.cat(points)


def turn_eyes(gaze: Tensor) -> Tensor:
    """Rotations (…, 3, 3) of the eyeballs by gaze (…, 2), in the head's axes."""
    (sy, sp), (cy, cp) = (part.unbind(dim=-1) for part in (gaze.sin(), gaze.cos()))
    rows = cy, -sy * sp, sy * cp, 0 * sy, cp, sp, -sy, -cy * sp, cy * cp
    return torch.stack(rows, dim=-1).view(*gaze.shape[:-1], 3, 3)


def _grid_faces(up: int, across: int) -> Tensor:
    """Faces (2 · up · across, 3) of a grid of so many cells, its points row by row."""
    numbers = torch.arange((up + 1) * (across + 1)).view(up + 1, across + 1)
    a, b, c, d = (n.flatten() for n in (
        numbers[:-1, :-1], numbers[:-1, 1:], numbers[1:, :-1], numbers[1:, 1:],
    ))  # fmt: skip
    return torch.cat([torch.stack([a, b, d], 1), torch.stack([a, d, c], 1)])


def _nearest_places(points: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric weights (…, 3) of the places of triangles (…, 3, 3) nearest to points (…, 3), and
    the squared distances (…) to them."""
    first, second, third = triangles.unbind(dim=-2)
    u, v, w = second - first, third - first, points - first
    uu, uv, vv, wu, wv = (
        (one * other).sum(dim=-1) for one, other in ((u, u), (u, v), (v, v), (w, u), (w, v))
    )
    area = (uu * vv - uv * uv).clamp(min=1e-20)
    of_second, of_third = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    inner = torch.stack([1 - of_second - of_third, of_second, of_third], dim=-1)
    choices = [inner.clamp(min=0) / inner.clamp(min=0).sum(dim=-1, keepdim=True)]
    for start in range(3):
        end = (start + 1) % 3
        edge = triangles[..., end, :] - triangles[..., start, :]
        along = ((points - triangles[..., start, :]) * edge).sum(dim=-1)
        part = (along / edge.square().sum(dim=-1).clamp(min=1e-20)).clamp(0, 1)
        weights = torch.zeros_like(inner)
        weights[..., start], weights[..., end] = 1 - part, part
        choices.append(weights)
    weights = torch.stack(choices)
    places = (weights[..., None] * triangles).sum(dim=-2)
    squared = (places - points).square().sum(dim=-1)
    best = squared.argmin(dim=0, keepdim=True)
    chosen = weights.gather(0, best[..., None].expand(-1, *weights.shape[1:]))[0]
    return chosen, squared.gather(0, best)[0]
