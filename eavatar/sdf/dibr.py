"""A mesh drawn by kaolin's DIB-R, the differentiable rasteriser that GHA trains its mesh with.

Written to the published interface of kaolin 0.18, and not run: kaolin has no release for the torch
that this was developed with. What leads up to its call and away from it is tested.
Letters: B timesteps, K views of each, S vertices, M faces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eavatar.sdf.surface import SurfaceImages
from eavatar.transforms import rotate

# Of the soft silhouette, as GHA has them.
SHARPNESS = 7000  # kaolin's sigmainv
BOX_LENGTH = 0.02  # how far a face reaches beyond its outline, of kaolin's scaled coordinates
NEAREST_FACES = 30  # of a pixel
MULTIPLIER = 1000  # kaolin's scale of coordinates, against underflow


def render_mesh(
    vertices: Tensor,
    faces: Tensor,
    colours: Tensor,
    to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    capacity: int | None = None,
) -> SurfaceImages:
    """The mesh on white, with kaolin's soft silhouette; arguments as of `render_surface`.

    There is no capacity here. Not run, see above.
    """
    from kaolin.render.mesh import dibr_rasterization

    views = to_camera.shape[:2]
    image, depth = project(vertices, to_camera, intrinsics, width, height)
    normals = facing(in_kaolin_camera(vertices, to_camera), faces)
    features, soft, index = dibr_rasterization(
        height,
        width,
        of_faces(depth[..., None], faces)[..., 0].flatten(0, 1),
        of_faces(image, faces).flatten(0, 1),
        of_faces(colours, faces).repeat_interleave(views[1], dim=0),
        normals.flatten(0, 1),
        sigmainv=SHARPNESS,
        boxlen=BOX_LENGTH,
        knum=NEAREST_FACES,
        multiplier=MULTIPLIER,
    )
    return SurfaceImages(on_white(features, index).unflatten(0, views), soft.unflatten(0, views))


def in_kaolin_camera(vertices: Tensor, to_camera: Tensor) -> Tensor:
    """Vertices (B, S, 3) in each camera (B, K, S, 3): x right, y up, looking along -z.

    Cameras are OpenCV's, so both are half a turn about x apart.
    """
    rotation, translation = to_camera[..., :3, :3], to_camera[..., None, :3, 3]
    x, y, z = (rotate(vertices[:, None], rotation) + translation).unbind(dim=-1)
    return torch.stack([x, -y, -z], dim=-1)


def project(
    vertices: Tensor, to_camera: Tensor, intrinsics: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Image coordinates (B, K, S, 2), y up and 1 at the edge, and depth (B, K, S), near is larger.

    Pixel centres are at half integers, here and in kaolin.
    """
    x, y, depth = in_kaolin_camera(vertices, to_camera).unbind(dim=-1)
    matrix = intrinsics[..., None, :, :]
    across = 2 * (matrix[..., 0, 0] * x / -depth + matrix[..., 0, 2]) / width - 1
    down = 2 * (matrix[..., 1, 1] * -y / -depth + matrix[..., 1, 2]) / height - 1
    return torch.stack([across, -down], dim=-1), depth


def of_faces(values: Tensor, faces: Tensor) -> Tensor:
    """Values (..., S, D) at the corners of the faces: (..., M, 3, D)."""
    corners: Tensor = values.index_select(-2, faces.flatten()).unflatten(-2, (-1, 3))
    return corners


def facing(vertices: Tensor, faces: Tensor) -> Tensor:
    """z of the unit normals (..., M) of faces: kaolin draws those where it is not negative."""
    a, b, c = of_faces(vertices, faces).unbind(dim=-2)
    normals = torch.linalg.cross(b - a, c - a)
    return torch.nn.functional.normalize(normals, dim=-1)[..., 2]


def on_white(features: Tensor, faces: Tensor) -> Tensor:
    """Features (..., H, W, D), white where the face (..., H, W) of a pixel is -1."""
    return torch.where((faces < 0)[..., None], 1.0, features)
