"""A mesh as surface splats: one flat, nearly opaque disc per vertex."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eavatar.render import Gaussians, Rendering, splat

OPACITY = 0.99
DISC_SIZE = 0.65  # standard deviation / mean length of the vertex' edges: no gaps between discs
THICKNESS = 0.1  # standard deviation along the normal / in the plane
SWELLING = 1.3  # pixels by which splatted outlines of a closed surface are too large, measured
GRAZING = 0.2  # cosine of ray and normal up to which a disc is drawn: just past the outline


@dataclass(frozen=True)
class Discs:
    """What the splats of a mesh share under small deformations.

    Attributes:
        normals: (S, 3) outward unit normals; zero where no face has an area.
        radii: (S,) standard deviations in the plane, units of the mesh.
    """

    normals: Tensor
    radii: Tensor


@torch.no_grad()
def make_discs(vertices: Tensor, faces: Tensor) -> Discs:
    """Orientation and size of the disc at each vertex (S, 3) of a mesh with faces (M, 3).

    Without gradients: shape follows the pixels by the discs' positions.
    """
    corners = vertices[faces]
    sides = corners.roll(-1, dims=1) - corners
    lengths = torch.linalg.vector_norm(sides, dim=2)
    weighted = torch.linalg.cross(sides[:, 0], sides[:, 1])[:, None].expand(-1, 3, -1)
    flat = faces.flatten()
    normals = torch.zeros_like(vertices).index_add(0, flat, weighted.flatten(0, 1))
    total = vertices.new_zeros(len(vertices)).index_add(0, flat, lengths.flatten())
    count = torch.bincount(flat, minlength=len(vertices)).clamp(min=1)
    radii = (DISC_SIZE * total / count).clamp(min=1e-4)
    return Discs(normalize(normals, dim=1, eps=1e-18), radii)  # slivers have normals too


def render_surface(
    vertices: Tensor,
    discs: Discs,
    colours: Tensor,
    to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
) -> Rendering:
    """The discs in C views on white; differentiable in vertices and colours.

    Each view leaves out what faces away, and draws each disc a little off its vertex: the low
    pass of splatting would make the outline `SWELLING` pixels too large, and so the fitted shape
    too small. The shift goes inwards across the view and falls off quickly away from the outline,
    where it would be parallax.

    Args:
        vertices: (S, 3). colours: (S, D).
        to_camera: (C, 4, 4) rigid, from the space of the vertices. intrinsics: (C, 3, 3) pixels.
    """
    white = colours.new_ones(colours.shape[1])
    views = []
    for extrinsics, matrix in zip(to_camera, intrinsics, strict=True):
        rotation, translation = extrinsics[:3, :3], extrinsics[:3, 3]
        rays = vertices.detach() + rotation.T @ translation
        depth = rays @ rotation[2]
        cosine = (discs.normals * normalize(rays, dim=1)).sum(dim=1)
        seen = ((cosine < GRAZING) & (depth > 0)).nonzero()[:, 0]
        across = discs.normals - cosine[:, None] * normalize(rays, dim=1)
        pixel = depth / matrix[0, 0]
        shift = (SWELLING * pixel * (1 - cosine**2) ** 2)[:, None] * across
        part = Discs(discs.normals[seen], discs.radii[seen])
        gaussians = to_gaussians((vertices - shift)[seen], part, colours[seen])
        views.append(splat(gaussians, extrinsics[None], matrix[None], width, height, white))
    return Rendering(
        features=torch.cat([view.features for view in views]),
        alpha=torch.cat([view.alpha for view in views]),
        depth=torch.cat([view.depth for view in views]),
    )


def to_gaussians(vertices: Tensor, discs: Discs, colours: Tensor) -> Gaussians:
    """Splats of vertices (S, 3) with colours (S, D)."""
    x, y, z = discs.normals.unbind(dim=1)
    # The shortest rotation from z to the normal or, as a disc has two sides, to its opposite.
    side = torch.where(z < 0, -1.0, 1.0)
    quaternions = torch.stack([1 + z.abs(), -side * y, side * x, torch.zeros_like(x)], dim=1)
    shape = vertices.new_tensor([1.0, 1.0, THICKNESS])
    return Gaussians(
        means=vertices,
        quaternions=quaternions,
        scales=discs.radii[:, None] * shape,
        opacities=torch.full_like(discs.radii, OPACITY),
        features=colours,
    )
