"""A tetrahedral grid and marching tetrahedra (DMTet, Eq. 15): signed distances to a mesh.

The grid is the body-centred cubic lattice: all tetrahedra are congruent, with edges of 1 and
0.87 cells, so the surface has no preferred diagonal as it has with split cubes.
Letters: V grid vertices, T tetrahedra, E edges, S surface vertices, F features, M faces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import pad

LOCAL_EDGES = tuple(combinations(range(4), 2))
MAX_FACES = 2  # of the surface within one tetrahedron


@dataclass(frozen=True)
class Grid:
    """A tetrahedral mesh.

    Attributes:
        vertices: (V, 3).
        tetrahedra: (T, 4) indices, positively oriented: det(b - a, c - a, d - a) > 0.
    """

    vertices: Tensor
    tetrahedra: Tensor

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Edges (E, 2), smaller index first and sorted, and the six edges (T, 6) of each cell."""
        pairs = self.tetrahedra[:, LOCAL_EDGES].sort(dim=-1).values
        keys = pairs[..., 0] * len(self.vertices) + pairs[..., 1]
        unique, of_tetrahedra = keys.unique(return_inverse=True)
        ends = [unique // len(self.vertices), unique % len(self.vertices)]
        return torch.stack(ends, dim=1), of_tetrahedra

    def band(self, inside: Tensor, layers: int) -> Band:
        """The part of the grid near a surface.

        Args:
            inside: (V,) bool; the surface runs through tetrahedra with both values.
            layers: tetrahedra kept on either side beyond those.
        """
        corners = inside[self.tetrahedra]
        kept = corners.any(dim=1) & ~corners.all(dim=1)
        for _ in range(layers):
            touched = torch.zeros_like(inside)
            touched[self.tetrahedra[kept]] = True
            kept = touched[self.tetrahedra].any(dim=1)
        used, shared = torch.zeros_like(inside), torch.zeros_like(inside)
        used[self.tetrahedra[kept]] = True
        shared[self.tetrahedra[~kept]] = True
        renumbered = used.cumsum(dim=0) - 1
        index = used.nonzero()[:, 0]
        rim = shared[index].nonzero()[:, 0]
        part = Grid(self.vertices[index], renumbered[self.tetrahedra[kept]])
        return Band(part, index, rim, inside[index[rim]])

    def subdivide(self) -> Grid:
        """Each tetrahedron cut into eight at the midpoints of its edges; old vertices first."""
        edges, of_tetrahedra = self.edges
        vertices = torch.cat([self.vertices, self.vertices[edges].mean(dim=1)])
        a, b, c, d = self.tetrahedra.unbind(dim=1)
        ab, ac, ad, bc, bd, cd = (of_tetrahedra + len(self.vertices)).unbind(dim=1)
        # Four corners, and the octahedron between them cut along the diagonal ac–bd.
        cells = [
            (a, ab, ac, ad), (ab, b, bc, bd), (ac, bc, c, cd), (ad, bd, cd, d),
            (ac, ab, bc, bd), (ac, bc, cd, bd), (ac, cd, ad, bd), (ac, ad, ab, bd),
        ]  # fmt: skip
        tetrahedra = torch.cat([torch.stack(cell, dim=1) for cell in cells])
        return Grid(vertices, tetrahedra)


@dataclass(frozen=True)
class Band:
    """The part of a grid near a surface, and what tells whether the surface left it.

    Attributes:
        grid: the part, its vertices in the order of the whole grid.
        vertices: (V',) indices of its vertices in the whole grid.
        rim: (R,) indices of its vertices that tetrahedra outside share.
        rim_inside: (R,) bool, on which side they were when the band was made.
    """

    grid: Grid
    vertices: Tensor
    rim: Tensor
    rim_inside: Tensor

    def holds(self, sdf: Tensor) -> bool:
        """Whether the surface of the values (V',) still avoids all faces to the outside."""
        return bool(((sdf[self.rim] < 0) == self.rim_inside).all())


@dataclass(frozen=True)
class Surface:
    """A triangle mesh with features.

    Attributes:
        vertices: (S, 3).
        features: (S, F).
        faces: (M, 3), counter-clockwise seen from where the signed distance is positive.
        present: (S,) bool, false where a row holds no vertex but only fills the capacity.
    """

    vertices: Tensor
    faces: Tensor
    features: Tensor
    present: Tensor


def body_centred_grid(lower: Tensor, upper: Tensor, cells: int) -> Grid:
    """The lattice that fills a box but for gaps under half a cell at its sides.

    Args:
        lower: (3,) corner of the box.
        upper: (3,) the opposite one.
        cells: cubic cells along the longest side; there are two vertices in each.
    """
    size = float((upper - lower).max()) / cells
    counts = ((upper - lower) / size - 1e-4).ceil().long()
    origin = (lower + upper - counts * size) / 2
    corner_axes = [torch.arange(int(count) + 1) for count in counts]
    corners = torch.cartesian_prod(*corner_axes)
    centres = torch.cartesian_prod(*(axis[:-1] for axis in corner_axes)) + 0.5
    corner_index = torch.arange(len(corners)).view(*(counts + 1))
    centre_index = (torch.arange(len(centres)) + len(corners)).view(*counts)
    vertices = origin + size * torch.cat([corners.to(centres.dtype), centres])
    parts = [_between_centres(axis, corner_index, centre_index) for axis in range(3)]
    return _compact(vertices, torch.cat(parts))


def _between_centres(axis: int, corners: Tensor, centres: Tensor) -> Tensor:
    """Four tetrahedra (·, 4) for each pair of centres that are neighbours along an axis.

    Each spans the two centres and an edge of the square between them.
    """
    order = [axis, (axis + 1) % 3, (axis + 2) % 3]
    corners, centres = corners.permute(order), centres.permute(order)
    first, second = centres[:-1], centres[1:]
    square = corners[1:-1]
    ring = [square[:, :-1, :-1], square[:, 1:, :-1], square[:, 1:, 1:], square[:, :-1, 1:]]
    parts = [
        torch.stack([first, second, ring[side], ring[(side + 1) % 4]], dim=-1).reshape(-1, 4)
        for side in range(4)
    ]
    return torch.cat(parts)


def _compact(vertices: Tensor, tetrahedra: Tensor) -> Grid:
    """A grid without the vertices that no tetrahedron uses."""
    used, renumbered = tetrahedra.unique(return_inverse=True)
    return Grid(vertices[used], renumbered)


@dataclass(frozen=True)
class Cut:
    """How a surface runs through a tetrahedral mesh.

    Attributes:
        edges: (S, 2) the edges that it cuts, by their vertices: one vertex of the surface each.
        faces: (M, 3) of the surface, into `edges`.
        present: (S,) as of `Surface`.
    """

    edges: Tensor
    faces: Tensor
    present: Tensor

    def compact(self, count: int) -> tuple[Tensor, Cut]:
        """The mesh's vertices (U,), of ``count``, at the ends of the edges; the cut in terms of
        those alone."""
        used = torch.zeros(count, dtype=torch.bool, device=self.edges.device)
        used.index_fill_(0, self.edges.flatten(), True)
        renumbered = used.cumsum(dim=0) - 1
        return used.nonzero()[:, 0], replace(self, edges=renumbered[self.edges])

    def padded(self, vertices: int, faces: int) -> Cut:
        """The same surface in tensors of these sizes, with faces of no area at the last vertex.

        Args:
            vertices: more than S, so that the last one is not present.
            faces: at least M.
        """
        more = vertices - len(self.edges)
        return Cut(
            torch.cat([self.edges, self.edges[:1].expand(more, 2)]),
            pad(self.faces, (0, 0, 0, faces - len(self.faces)), value=vertices - 1),
            pad(self.present, (0, more)),
        )

    def surface(self, vertices: Tensor, sdf: Tensor, features: Tensor) -> Surface:
        """The zero level on the edges of a function that is linear in each tetrahedron.

        Differentiable in all arguments. A value of zero counts as outside.

        Args:
            vertices: (V, 3) where the grid's vertices are now.
            sdf: (V,) positive outside.
            features: (V, F).
        """
        first, second = self.edges.unbind(dim=1)

        def ends(values: Tensor) -> tuple[Tensor, Tensor]:
            return values.index_select(0, first), values.index_select(0, second)

        at_first, at_second = ends(sdf)
        weight = (at_first / (at_first - at_second))[:, None]
        return Surface(
            vertices=torch.lerp(*ends(vertices), weight),
            faces=self.faces,
            features=torch.lerp(*ends(features), weight),
            present=self.present,
        )


def cut(grid: Grid, inside: Tensor) -> Cut:
    """Where a surface between vertices inside and outside (V,) runs (Eq. 15).

    With `Cut.surface` it is marching tetrahedra. The sizes of the surface need two host-device
    synchronisations.
    """
    edges, of_tetrahedra = grid.edges
    crossing = inside[edges[:, 0]] != inside[edges[:, 1]]
    number = crossing.cumsum(dim=0) - 1
    cases = _cases(inside.device)
    case = (inside[grid.tetrahedra] << torch.arange(4, device=inside.device)).sum(dim=1)
    cell, face = (cases[..., 0] >= 0)[case].nonzero().unbind(dim=1)
    faces = number[of_tetrahedra[cell].gather(1, cases[case[cell], face])]
    cut_edges = edges.index_select(0, crossing.nonzero()[:, 0])
    return Cut(cut_edges, faces, torch.ones_like(cut_edges[:, 0], dtype=torch.bool))


@cache
def _cases(device: torch.device) -> Tensor:
    return _make_cases().to(device)


def _make_cases() -> Tensor:
    """Local edges (16, 2, 3) of the faces for each set of inside corners, bit i for corner i.

    Worked out on one positively oriented tetrahedron rather than typed in.
    """
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    cases = torch.full((16, MAX_FACES, 3), -1)
    for case in range(1, 15):
        inner = [corner for corner in range(4) if case >> corner & 1]
        outer = [corner for corner in range(4) if corner not in inner]
        # Around the cut, neighbours share an inner or an outer corner.
        ring = [(i, o) for i in inner for o in outer]
        if len(inner) == 2:
            ring = [ring[0], ring[1], ring[3], ring[2]]
        points = torch.stack([(corners[i] + corners[o]) / 2 for i, o in ring])
        outward = corners[outer].mean(dim=0) - corners[inner].mean(dim=0)
        normal = torch.linalg.cross(points[1] - points[0], points[2] - points[0])
        if normal @ outward < 0:
            ring.reverse()
        edges = [LOCAL_EDGES.index((min(pair), max(pair))) for pair in ring]
        for face in range(len(edges) - 2):
            cases[case, face] = torch.tensor([edges[0], edges[face + 1], edges[face + 2]])
    return cases
