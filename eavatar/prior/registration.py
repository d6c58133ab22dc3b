"""Registration of a head mesh in any orientation and scale to a subject's head: robust scaled ICP.

The fitted face may be a small part of the prior, and a face alone matches a head in many wrong
places; of the rest of the head a rough idea is known, the generic head, and its outlines in the
masks. All are the target: first with equal weight, point to point, from many starts, in both
directions, because one-sided distances reward shrinking; then point to plane, with the weight on
the face. There hair, neck and shoulders contribute next to nothing, and outlines and head still
hold what a hole leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Bool, Float64, Int64
from eavatar.prior.silhouettes import Silhouettes
from eavatar.transforms import Similarity, fit_similarity

# Lengths in canonical units (dm).
ROTATIONS = Rotation.create_group("I")  # 60 turns; no orientation is over 45° from all of them
REACH = 3.0  # correspondences are up to this many kernel widths long
MIN_PAIRS = 50  # of which a similarity is estimated
MAX_SCALE_CHANGE = 1.6  # factor; a start that is scaled by more has diverged
CONVERGED = 5e-4  # mean motion of an iteration, dm
DISTINCT = 15.0  # degrees between two candidates
MAX_DISTANCE = 0.2  # at which distances are clipped in the residuals
FACE_REACH = 0.3  # of the prior belongs to the face what is this close to it
DEPTH = 0.1  # what is more than this behind the face is hidden
KEPT = 0.8  # fraction of the prior near the face, its nearest part, that is compared
BACK_WEIGHT = 6.0  # of the distances from the prior to the face: holes lengthen the others


@dataclass(frozen=True)
class Cloud:
    """Points to search in.

    Attributes:
        points: (N, 3).
    """

    points: Float64

    @cached_property
    def tree(self) -> cKDTree:
        """For nearest neighbours."""
        return cKDTree(self.points)


@dataclass(frozen=True)
class Target(Cloud):
    """A subject's head, canonical: the fitted face, and around it the generic head.

    Attributes:
        points: (N, 3) in random order.
        normals: (N, 3) of the surface.
        on_face: (N,) of the fitted face.
        expected: (N,) above the neck: what every prior should have.
        outlines: of the person in the masks.
    """

    normals: Float64
    on_face: Bool
    expected: Bool
    outlines: Silhouettes

    def __getitem__(self, chosen: slice | Bool | Int64) -> Target:
        return replace(
            self,
            points=self.points[chosen],
            normals=self.normals[chosen],
            on_face=self.on_face[chosen],
            expected=self.expected[chosen],
        )


@dataclass(frozen=True)
class Stage:
    """Iterations of ICP.

    Attributes:
        iterations: at most.
        face: width of the kernel for correspondences on the face, dm.
        head: likewise on the rest of the head.
        face_weight: of a correspondence on the face, beside 1 on the rest.
        planar: minimise distances along the target's normals.
    """

    iterations: int
    face: float
    head: float
    face_weight: float = 1.0
    planar: bool = False


@dataclass(frozen=True)
class Effort:
    """One round of the search.

    Attributes:
        candidates: how many of the best enter it.
        samples: points of the target; of the prior four times as many.
        views: of the masks.
        stages: of ICP.
        measure: of what has come out: `head_residual` or `face_residual`.
    """

    candidates: int
    samples: int
    views: int
    stages: tuple[Stage, ...]
    measure: Callable[[Cloud, Target, Similarity], float]


@dataclass(frozen=True)
class Candidate:
    """A possible alignment.

    Attributes:
        transform: the prior's frame to canonical space.
        residual: `face_residual`, in the first rounds `head_residual`, dm.
        protrusion: `Silhouettes.protrusion`, dm.
        gap: `Silhouettes.gap`, dm.
    """

    transform: Similarity
    residual: float
    protrusion: float = 0.0
    gap: float = 0.0

    @property
    def error(self) -> float:
        """By which candidates are ranked, dm."""
        return self.residual + self.protrusion + self.gap


def register(prior: Float64, target: Target) -> list[Candidate]:
    """The best alignments of distinct orientations, best first; none if all starts diverge.

    Args:
        prior: (N, 3) samples in the prior's frame, in random order.
        target: what it is registered to.
    """
    found = [Candidate(start, 0.0) for start in _starts(prior, target)]
    for effort in ROUNDS:
        cloud, goal = Cloud(prior[: 4 * effort.samples]), target[: effort.samples]
        goal = replace(goal, outlines=target.outlines.first(effort.views))
        moved = [
            (start, refine(cloud, goal, start.transform, effort.stages))
            for start in tqdm(found[: effort.candidates], desc="align_prior", unit="start")
        ]
        found = _distinct(
            [
                _judge(cloud, goal, end, effort.measure)
                for start, end in moved
                if 1 / MAX_SCALE_CHANGE < end.scale / start.transform.scale < MAX_SCALE_CHANGE
            ]
        )
    return found


def _judge(
    cloud: Cloud,
    target: Target,
    transform: Similarity,
    measure: Callable[[Cloud, Target, Similarity], float],
) -> Candidate:
    """The candidate of a transform."""
    points = transform.apply(cloud.points)
    outlines = target.outlines
    residual = measure(cloud, target, transform)
    return Candidate(transform, residual, outlines.protrusion(points), outlines.gap(points))


def _starts(prior: Float64, target: Target) -> Iterator[Similarity]:
    """Every rotation, as a bust and as a head without shoulders: medians and sizes agree."""
    centre, size = _extent(prior)
    for part in (target, target[target.expected]):
        goal, wanted = _extent(part.points)
        scale = wanted / size
        for turn in ROTATIONS.as_matrix():
            yield Similarity(scale, turn, goal - scale * turn @ centre)


def _extent(points: Float64) -> tuple[Float64, float]:
    """Median and mean distance to it of points (N, 3)."""
    centre = np.median(points, axis=0)
    return centre, float(np.linalg.norm(points - centre, axis=1).mean())


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates by rising error, without those turned by little from a better one."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: candidate.error):
        turns = [candidate.transform.rotation @ other.transform.rotation.T for other in kept]
        if not turns or np.degrees(Rotation.from_matrix(turns).magnitude()).min() > DISTINCT:
            kept.append(candidate)
    return kept


def refine(cloud: Cloud, target: Target, start: Similarity, stages: Sequence[Stage]) -> Similarity:
    """Iterate closest points, in both directions and in the masks, weighted robustly.

    Args:
        cloud: the prior in its own frame; its first quarter looks for points of the target.
        target: of which all that is expected looks for points of the prior.
        start: initial similarity.
        stages: in order.
    """
    transform = start
    for stage in stages:
        for _ in range(stage.iterations):
            surface = _surface_pairs(cloud, target, transform, stage)
            if np.count_nonzero(surface.weights) < MIN_PAIRS:
                return transform
            pairs = surface.joined(_outline_pairs(cloud, target, transform, stage))
            step = (
                _fit_to_planes(pairs)
                if stage.planar
                else fit_similarity(pairs.source, pairs.points, pairs.weights)
            )
            transform = step.compose(transform)
            few = target.points[:100]
            if np.linalg.norm(step.apply(few) - few, axis=1).mean() < CONVERGED:
                break
    return transform


@dataclass(frozen=True)
class Pairs:
    """Correspondences, canonical.

    Attributes:
        source: (P, 3) points of the prior.
        points: (P, 3) where they belong.
        normals: (P, 3) of planes through ``points`` in which they belong.
        weights: (P,) 0 of those too far apart.
    """

    source: Float64
    points: Float64
    normals: Float64
    weights: Float64

    def joined(self, other: Pairs) -> Pairs:
        """These and others."""
        names = ("source", "points", "normals", "weights")
        return Pairs(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


def _surface_pairs(cloud: Cloud, target: Target, transform: Similarity, stage: Stage) -> Pairs:
    """Closest points of prior and target, from each to the other."""
    widths = np.where(target.on_face, stage.face, stage.head)
    reach = REACH * widths.max()
    some = transform.apply(cloud.points[: len(cloud.points) // 4])
    there, nearest = target.tree.query(some, distance_upper_bound=reach)
    expected = np.flatnonzero(target.expected)
    looking = transform.inverse().apply(target.points[expected])
    back, index = cloud.tree.query(looking, distance_upper_bound=reach / transform.scale)
    found = np.isfinite(back)
    chosen = np.concatenate([nearest[np.isfinite(there)], expected[found]])
    source = np.concatenate([some[np.isfinite(there)], transform.apply(cloud.points[index[found]])])
    points, normals, widths = target.points[chosen], target.normals[chosen], widths[chosen]
    lengths = np.linalg.norm(points - source, axis=1)
    errors = ((points - source) * normals).sum(axis=1) if stage.planar else lengths
    weights = np.where(target.on_face[chosen], stage.face_weight, 1.0) * _robust(errors, widths)
    return Pairs(source, points, normals, weights * (lengths < REACH * widths))


def _outline_pairs(cloud: Cloud, target: Target, transform: Similarity, stage: Stage) -> Pairs:
    """Points of the prior and where the masks' outlines have them, in planes across the view."""
    moved = transform.apply(cloud.points[: len(cloud.points) // 4])
    chosen, offsets = target.outlines.pulls(moved)
    lengths = np.linalg.norm(offsets, axis=1)
    weights = np.sqrt(stage.face_weight) * _robust(lengths, stage.head)
    normals = offsets / np.maximum(lengths, 1e-9)[:, None]
    source = moved[chosen]
    return Pairs(source, source + offsets, normals, weights * (lengths < REACH * stage.head))


def _robust(errors: Float64, widths: Float64 | float) -> Float64:
    """Weights (P,) of errors (P,) by the kernel of Geman and McClure."""
    weights: Float64 = (1 + (errors / widths) ** 2) ** -2.0
    return weights


def _fit_to_planes(pairs: Pairs) -> Similarity:
    """The similarity, linearised, that best brings points into planes (Chen and Medioni 1992)."""
    source, points, normals, weights = pairs.source, pairs.points, pairs.normals, pairs.weights
    centre = weights @ points / weights.sum()
    arms = source - centre
    rows = np.column_stack([np.cross(arms, normals), normals, (arms * normals).sum(axis=1)])
    weighted = weights[:, None] * rows
    # Damped a little: on a sphere, say, the planes leave a turn open.
    normal = weighted.T @ rows + 1e-4 * weights.sum() * np.eye(7)
    errors = ((points - source) * normals).sum(axis=1)
    turn, shift, growth = np.split(np.linalg.solve(normal, weighted.T @ errors), [3, 6])
    rotation = Rotation.from_rotvec(turn).as_matrix()
    scale = float(np.exp(np.clip(growth[0], -0.2, 0.2)))
    return Similarity(scale, rotation, centre + shift - scale * rotation @ centre)


def head_residual(cloud: Cloud, target: Target, transform: Similarity) -> float:
    """Mean of three mean clipped distances: face to prior, head to prior, prior to head; dm.

    Args:
        cloud: the prior in its own frame.
        target: what it is compared with.
        transform: the prior's frame to canonical space.
    """
    there = _clipped(target.tree, transform.apply(cloud.points[: len(cloud.points) // 4]))
    seen = target[target.expected]
    back = _clipped(Cloud(transform.apply(cloud.points)).tree, seen.points)
    parts = there, back[seen.on_face], back[~seen.on_face]
    return float(np.mean([part.mean() for part in parts if len(part)]))


def face_residual(cloud: Cloud, target: Target, transform: Similarity) -> float:
    """Weighted mean of two mean clipped distances: face to prior, prior near the face to it; dm.

    What lies behind the face, such as teeth and the inside of a shell, does not count, nor do the
    farthest of the second distances: eyeballs, of which the fitted face may have none, and lashes.

    Args:
        cloud: the prior in its own frame.
        target: what it is compared with.
        transform: the prior's frame to canonical space.
    """
    moved = transform.apply(cloud.points)
    there = _clipped(Cloud(moved).tree, target.points[target.on_face]).mean()
    distance, nearest = target.tree.query(moved, distance_upper_bound=FACE_REACH)
    near = np.flatnonzero(np.isfinite(distance))
    near = near[target.on_face[nearest[near]]]
    offsets = moved[near] - target.points[nearest[near]]
    height = (offsets * target.normals[nearest[near]]).sum(axis=1)
    seen = np.sort(distance[near[height > -DEPTH]])
    seen = seen[: math.ceil(KEPT * len(seen))]
    back = seen.clip(max=MAX_DISTANCE).mean() if len(seen) else MAX_DISTANCE
    return float((there + BACK_WEIGHT * back) / (1 + BACK_WEIGHT))


def _clipped(tree: cKDTree, points: Float64) -> Float64:
    """(N,) distances of points (N, 3) to the nearest in a tree, clipped at `MAX_DISTANCE`."""
    distance, _ = tree.query(points, distance_upper_bound=MAX_DISTANCE)
    clipped: Float64 = distance.clip(max=MAX_DISTANCE)
    return clipped


ROUNDS = (
    Effort(2 * len(ROTATIONS), 500, 6, (Stage(10, 0.3, 0.3),), head_residual),
    Effort(24, 800, 6, (Stage(12, 0.2, 0.2),), head_residual),
    Effort(
        10,
        1500,
        12,
        (Stage(10, 0.15, 0.2), Stage(10, 0.1, 0.15, 3, planar=True)),
        face_residual,
    ),
    Effort(
        3,
        3000,
        12,
        (
            Stage(20, 0.1, 0.1, 10, planar=True),
            Stage(20, 0.05, 0.1, 50, planar=True),
            Stage(20, 0.03, 0.05, 200, planar=True),
        ),
        face_residual,
    ),
)
