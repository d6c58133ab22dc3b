"""A mesh as surface splats: one flat, nearly opaque disc per vertex.

Letters: B timesteps, K views of each, S vertices, M faces.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eavatar.rendering.splatting import Gaussians, splat
from eavatar.transforms import rotate

OPACITY = 0.99
DISC_SIZE = 0.65  # standard deviation / mean length of the vertex' edges: no gaps between discs
THICKNESS = 0.1  # standard deviation along the normal / in the plane
SWELLING = 1.3  # pixels by which splatted outlines of a closed surface are too large, measured
GRAZING = 0.2  # cosine of ray and normal up to which a disc is drawn: just past the outline


@dataclass(frozen=True)
class SurfaceImages:
    """A mesh drawn in K views at each of B timesteps.

    Attributes:
        features: (B, K, H, W, D) on white.
        alpha: (B, K, H, W) soft silhouette in [0, 1].
        pairs: () as of `eavatar.rendering.splatting.Rendering`.
    """

    features: Tensor
    alpha: Tensor
    pairs: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))


@dataclass(frozen=True)
class Discs:
    """What the splats of a mesh share under small deformations.

    Attributes:
        normals: (B, S, 3) outward unit normals; zero where no face has an area.
        radii: (B, S) standard deviations in the plane, units of the mesh.
    """

    normals: Tensor
    radii: Tensor


@torch.no_grad()
def make_discs(vertices: Tensor, faces: Tensor) -> Discs:
    """Orientation and size of the disc at each vertex (B, S, 3) of meshes with faces (M, 3).

    Without gradients: shape follows the pixels by the discs' positions.
    """
    timesteps, count = vertices.shape[:2]
    flat = faces.flatten()
    corners = vertices.index_select(1, flat).view(timesteps, -1, 3, 3)
    sides = corners.roll(-1, dims=2) - corners
    lengths = torch.linalg.vector_norm(sides, dim=3, keepdim=True)
    weighted = torch.linalg.cross(sides[:, :, :1], sides[:, :, 1:2]).expand(-1, -1, 3, -1)
    ones = torch.ones_like(lengths)
    rows = torch.cat([weighted, lengths, ones], dim=3).flatten(1, 2)
    sums = vertices.new_zeros(timesteps, count, 5).index_add(1, flat, rows)
    normals, total, used = sums.split([3, 1, 1], dim=2)
    radii = (DISC_SIZE * total / used.clamp(min=1)).clamp(min=1e-4)
    return Discs(normalize(normals, dim=2, eps=1e-18), radii[..., 0])  # slivers have normals too


def render_surface(
    vertices: Tensor,
    faces: Tensor,
    colours: Tensor,
    to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    capacity: int | None = None,
) -> SurfaceImages:
    """The surface as discs on white; differentiable in vertices and colours.

    Args:
        vertices: (B, S, 3).
        faces: (M, 3).
        colours: (B, S, D).
        to_camera: (B, K, 4, 4) rigid, from the space of the vertices.
        intrinsics: (B, K, 3, 3) pixels.
        width: of the images, pixels.
        height: of the images, pixels.
        capacity: as of `eavatar.rendering.splatting.splat`.
    """
    discs = make_discs(vertices, faces)
    means, seen = place_discs(vertices, discs, to_camera, intrinsics)
    scene = means, seen, discs, colours, to_camera, intrinsics, width, height
    return draw_at_once(*scene, capacity) if vertices.is_cuda else draw_each(*scene)


def place_discs(
    vertices: Tensor, discs: Discs, to_camera: Tensor, intrinsics: Tensor
) -> tuple[Tensor, Tensor]:
    """Where each view draws its discs (B, K, S, 3), and which (B, K, S).

    A view leaves out what faces away or has no normal, and draws each disc a little off its vertex:
    the low pass of splatting would make the outline `SWELLING` pixels too large, and so the fitted
    shape too small. The shift goes inwards across the view and falls off quickly away from the
    outline, where it would be parallax.
    """
    with torch.no_grad():
        rotation, translation = to_camera[..., :3, :3], to_camera[..., None, :3, 3]
        rays = vertices[:, None] + rotate(translation, rotation.mT)
        depth = (rays * rotation[..., None, 2, :]).sum(dim=-1)
        rays = normalize(rays, dim=-1)
        normals = discs.normals[:, None]
        cosine = (normals * rays).sum(dim=-1)
        size = SWELLING * depth / intrinsics[..., :1, 0] * (1 - cosine**2) ** 2
        shift = size[..., None] * (normals - cosine[..., None] * rays)
        seen = (cosine < GRAZING) & (depth > 0) & (discs.normals != 0).any(dim=-1)[:, None]
    return vertices[:, None] - shift, seen


def to_gaussians(means: Tensor, discs: Discs, colours: Tensor) -> Gaussians:
    """Splats (..., S) at means (..., S, 3) with colours (..., S, D)."""
    x, y, z = discs.normals.unbind(dim=-1)
    # The shortest rotation from z to the normal or, as a disc has two sides, to its opposite.
    side = torch.where(z < 0, -1.0, 1.0)
    quaternions = torch.stack([1 + z.abs(), -side * y, side * x, torch.zeros_like(x)], dim=-1)
    return Gaussians(
        means=means,
        quaternions=quaternions,
        scales=torch.stack([discs.radii, discs.radii, THICKNESS * discs.radii], dim=-1),
        opacities=torch.full_like(discs.radii, OPACITY),
        features=colours,
    )


def draw_at_once(
    means: Tensor,
    seen: Tensor,
    discs: Discs,
    colours: Tensor,
    to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    capacity: int | None = None,
) -> SurfaceImages:
    """Every view a scene of its own, in which what is not seen has no opacity.

    gsplat drops that in its projection, and nothing here depends on how much is seen.
    """
    views = means.shape[1]
    repeated = Discs(*(x.repeat_interleave(views, dim=0) for x in (discs.normals, discs.radii)))
    colours = colours.repeat_interleave(views, dim=0)
    gaussians = to_gaussians(means.flatten(0, 1), repeated, colours)
    gaussians = replace(gaussians, opacities=gaussians.opacities * seen.flatten(0, 1))
    cameras = (to_camera.flatten(0, 1)[:, None], intrinsics.flatten(0, 1)[:, None])
    white = colours.new_ones(colours.shape[-1])
    drawn = splat(gaussians, *cameras, width, height, white, capacity)
    return SurfaceImages(
        drawn.features.view(*means.shape[:2], height, width, -1),
        drawn.alpha.view(*means.shape[:2], height, width),
        drawn.pairs,
    )


def draw_each(
    means: Tensor,
    seen: Tensor,
    discs: Discs,
    colours: Tensor,
    to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
) -> SurfaceImages:
    """One view after the other, of what it sees: on the CPU a hidden Gaussian costs time."""
    white = colours.new_ones(colours.shape[-1])
    drawn = []
    for timestep, view in product(*map(range, means.shape[:2])):
        index = seen[timestep, view].nonzero()[:, 0]
        part = Discs(discs.normals[timestep, index], discs.radii[timestep, index])
        gaussians = to_gaussians(
            means[timestep, view].index_select(0, index),
            part,
            colours[timestep].index_select(0, index),
        )
        camera = (to_camera[timestep, view, None], intrinsics[timestep, view, None])
        drawn.append(splat(gaussians, *camera, width, height, white))
    features, alpha = (
        torch.cat([getattr(image, name) for image in drawn]) for name in ("features", "alpha")
    )
    return SurfaceImages(
        features.unflatten(0, means.shape[:2]),
        alpha.unflatten(0, means.shape[:2]),
    )
