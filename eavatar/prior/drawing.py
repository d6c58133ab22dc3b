"""The image of an alignment: the prior beside the fitted face, its distance in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eavatar.arrays import Float64
from eavatar.io import Mesh, write_image
from eavatar.meshes import face_normals, sample_surface, vertex_areas
from eavatar.prior.registration import Target
from eavatar.rendering.mesh_images import Colour, contact_sheet, draw_meshes

VIEWS = (0, 90)  # degrees: front, left side
SIDE = 400  # of a view, pixels
MARGIN = 1.3  # of the view, beside the extent of the subject's head
SKIN: Colour = (222, 170, 140)  # RGB, of the fitted face
BETWEEN = 0.1  # samples of the target are at most about this far from all of its surface, dm
DISTANCES = (0.0, 0.05, 0.1)  # dm
COLOURS = np.array([[60, 160, 90], [240, 210, 60], [200, 40, 40]])  # RGB, at the distances
OVERLAP = 3.0  # area of all facets, of that of the mesh


def draw_alignment(
    path: Path, aligned: Mesh, face: Mesh, target: Target, samples: int, seed: int
) -> Path:
    """Write front and left side of an aligned prior, each beside the fitted face (skin).

    The prior is drawn as facets at samples of its surface, so that an image of millions of faces
    takes no longer. Their colour is the distance to the subject's head: green where there is none,
    yellow at 5 mm, red from 1 cm on.

    Args:
        path: the image.
        aligned: the prior, canonical.
        face: the fitted neutral mesh, canonical.
        target: that the prior was registered to.
        samples: number of facets.
        seed: of the samples.
    """
    facets = _facets(aligned, samples, seed)
    centres = facets.vertices.reshape(-1, 3, 3).mean(axis=1)
    distance = _distances(centres, target)
    colours = np.stack([np.interp(distance, DISTANCES, each) for each in COLOURS.T], axis=1)
    reach = MARGIN * float(np.abs(target.points).max())
    views = [
        draw_meshes([drawn], angle, SIDE, reach)
        for angle in VIEWS
        for drawn in ((face, SKIN), (facets, colours))
    ]
    return write_image(path, contact_sheet(views, len(views))[..., ::-1])


def _distances(points: Float64, target: Target) -> Float64:
    """Distances (N,) of points (N, 3) to the surface that a target's samples lie on, dm."""
    length, nearest = target.tree.query(points)
    offsets = points - target.points[nearest]
    height = np.abs((offsets * target.normals[nearest]).sum(axis=1))
    distances: Float64 = np.maximum(height, length - BETWEEN)
    return distances


def _facets(mesh: Mesh, count: int, seed: int) -> Mesh:
    """Equal triangles in the planes of the faces at ``count`` samples of a surface."""
    points, faces = sample_surface(mesh, count, seed)
    normals = face_normals(mesh.vertices, mesh.faces)[faces]
    across = np.cross(normals, np.eye(3)[np.abs(normals).argmin(axis=1)])
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    along = np.cross(normals, across)
    # An equilateral triangle within a circle of radius r has the area 3/4 √3 r².
    area = vertex_areas(mesh.vertices.astype(np.float64), mesh.faces).sum()
    radius = np.sqrt(OVERLAP * area / count / (0.75 * np.sqrt(3)))
    corners = [
        points + radius * (np.cos(angle) * across + np.sin(angle) * along)
        for angle in 2 * np.pi / 3 * np.arange(3)
    ]
    vertices: Float64 = np.stack(corners, axis=1).reshape(-1, 3)
    return Mesh(vertices.astype(np.float32), np.arange(len(vertices)).reshape(-1, 3))
