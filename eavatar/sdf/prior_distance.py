"""The aligned prior as signed distances at many points of canonical space.

Letters: N points, M samples of the prior's surface, V views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from eavatar.arrays import Float64
from eavatar.io import Mesh
from eavatar.meshes import sample_surface, vertex_areas, vertex_normals
from eavatar.sdf.field import LOWER, UPPER
from eavatar.threads import count_threads

POINTS = 50_000
SAMPLES = 100_000  # of the surface, 1.5 mm apart on a head with shoulders
CLOSE = 0.6  # fraction of the points that are drawn close to the surface, where shape is decided
# Their deviations from it, a third of them each, dm: the shape, less than a cell, the way there.
SPREAD = (0.02, 0.08, 0.25)
WINDING_SAMPLES = 5000
NORMAL_REACH = 0.15  # dm; closer to the surface its normal tells the side, farther the winding
GRAZING = 0.3  # cosine of normal and ray above which a camera counts as seeing the surface
MAX_VIEWS = 200  # that the visibility is found from
CHUNK = 2**22  # pairs of a point and a sample at once


@dataclass(frozen=True)
class PriorDistance:
    """The prior's signed distance at points in random order.

    Attributes:
        points: (N, 3) canonical.
        distances: (N,) positive outside.
        weights: (N,) in [0, 1], how much the prior counts.
    """

    points: Tensor
    distances: Tensor
    weights: Tensor

    def draw(self, step: int, count: int) -> PriorDistance:
        """The points (count, 3) of a step, the same ones whenever it is asked for."""
        first = step * count % (len(self.points) - count + 1)
        part = slice(first, first + count)
        return PriorDistance(self.points[part], self.distances[part], self.weights[part])

    def counting(self, weights: Tensor) -> PriorDistance:
        """The same with at least the weights (N,)."""
        return replace(self, weights=torch.maximum(self.weights, weights))


def tabulate_prior(prior: Mesh, cameras: Tensor, seed: int) -> PriorDistance:
    """Signed distances about the aligned prior, which counts where no camera looks.

    Args:
        prior: canonical; need not be closed.
        cameras: (V, 3) centres of cameras about the head at rest, canonical.
        seed: of the points.
    """
    samples, faces = sample_surface(prior, SAMPLES, seed)
    normals = _outward_normals(prior, samples, faces)
    points = _scatter(samples, seed)
    nearest = cKDTree(samples).query(points, workers=count_threads())[1]
    area = vertex_areas(prior.vertices, prior.faces).sum()
    offsets, normal = points - samples[nearest], normals[nearest]
    height, length = (offsets * normal).sum(axis=1), np.linalg.norm(offsets, axis=1)
    # The nearest point of the surface lies beside the nearest sample, seldom farther than twice
    # what samples are apart.
    beside = 4 * area / SAMPLES
    distance = np.maximum(np.abs(height), np.sqrt(np.maximum(length**2 - beside, 0)))
    far, few = distance > NORMAL_REACH, slice(WINDING_SAMPLES)
    inside = height < 0
    inside[far] = (
        _winding_numbers(points[far], samples[few], area / WINDING_SAMPLES * normals[few]) > 0.5
    )
    device = cameras.device
    at, facing = _to(samples[nearest], device), _to(normal, device)
    return PriorDistance(
        _to(points, device),
        _to(np.where(inside, -distance, distance), device),
        1 - _visibility(cameras, at, facing),
    )


def _to(array: Float64, device: torch.device) -> Tensor:
    return torch.from_numpy(array).float().to(device)


def _outward_normals(mesh: Mesh, samples: Float64, faces: np.ndarray) -> Float64:
    """(M, 3) smooth unit normals at samples (M, 3) in faces (M,), outwards whatever the order
    of the faces' corners."""
    import trimesh

    at_vertices = vertex_normals(mesh.vertices.astype(np.float64), mesh.faces)
    corners = mesh.vertices[mesh.faces[faces]].astype(np.float64)
    weights: Float64 = trimesh.triangles.points_to_barycentric(corners, samples)
    normals: Float64 = np.einsum("nk,nkd->nd", weights, at_vertices[mesh.faces[faces]])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    volume = ((samples - samples.mean(axis=0)) * normals).sum()
    return normals if volume > 0 else -normals


def _scatter(samples: Float64, seed: int) -> Float64:
    """Points (N, 3) of the canonical box, most of them close to samples (M, 3), shuffled."""
    random = np.random.default_rng(seed)
    lower, upper = np.array(LOWER), np.array(UPPER)
    close = samples[: round(CLOSE * POINTS)]
    deviation = np.resize(SPREAD, len(close))[:, None]
    moved = np.clip(close + deviation * random.normal(size=close.shape), lower, upper)
    rest = random.uniform(lower, upper, (POINTS - len(close), 3))
    points: Float64 = random.permutation(np.concatenate([moved, rest]))
    return points


def _winding_numbers(points: Float64, samples: Float64, areas: Float64) -> Float64:
    """Generalised winding numbers (N,) of a surface about points (N, 3).

    1 inside and 0 outside of a closed surface, in between where one is not closed (Jacobson et
    al. 2013), from dipoles as by Barill et al. 2018.

    Args:
        points: (N, 3) farther from the surface than its samples from each other.
        samples: (M, 3) of the surface.
        areas: (M, 3) of which each stands for, along the normal.
    """
    there, across = torch.from_numpy(samples).float(), torch.from_numpy(areas).float()
    numbers = []
    constant = (there * across).sum(dim=1)
    for some in torch.from_numpy(points).float().split(max(1, CHUNK // len(samples))):
        solid = constant - some @ across.T
        numbers.append((solid / torch.cdist(some, there).pow(3)).sum(dim=1) / (4 * torch.pi))
    return torch.cat(numbers).double().numpy()


def _visibility(cameras: Tensor, samples: Tensor, normals: Tensor) -> Tensor:
    """How well the best camera sees samples (M, 3), (M,) in [0, 1]; what hides them is not seen."""
    best = samples.new_full((len(samples),), -1.0)
    for camera in cameras[:: -(-len(cameras) // MAX_VIEWS)]:
        cosine = (normalize(camera - samples, dim=1) * normals).sum(dim=1)
        best = torch.maximum(best, cosine)
    return (best / GRAZING).clamp(0, 1)
