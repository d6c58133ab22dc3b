"""How often `align_prior` succeeds: ``python -m benchmarks.align model.h5``, about 10 s a trial.

A trial is a subject and a mesh of its head as a generator might give it. Three of four subjects are
drawn from the morphable model (all identity components at one standard deviation), every fourth is
the generic head under a random smooth warp. What `fit_face` would leave is fitted to landmarks with
1 mm of noise: the most probable head of the model, or the warped head; of half of the subjects the
face alone, as some models have it. The mesh is the subject's head

- with shoulders or cut off at the neck, and bald or with up to 4 cm of hair, half each;
- of 1,000 to 2,000,000 faces, uniformly in the logarithm;
- with noise of 1 % of the head size at each vertex and axis;
- less 30 % of its surface: one region of 15 %, anywhere, and 15 patches of 1 %;
- turned at random (uniformly over SO(3)), 0.2 to 5 times as large, up to some head sizes away.

The pipeline also knows the person's masks: those of the whole head, with its hair, neck and
shoulders, in 12 to 16 cameras from -90° to 90° around it. Their edges are off by about 1.5 pixels
of 1.4 mm. They know nothing of how the mesh was turned and scaled.

A trial succeeds if the vertices of the face come to lie within 3 % of the head size, on average, of
where they belong. The head size is the height from the chin to the highest vertex of the bald head.

``--wrong`` makes meshes that no alignment should accept, in the same conditions; ``--mistaken``
heads as a generator may get them wrong: whole, of another subject, or with too large a skull.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import trimesh
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes

from eavatar.errors import UserError
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.io import Alignment, Identity, Mesh, read_alignment, write_arrays, write_mesh
from eavatar.landmark_indices import CHIN
from eavatar.meshes import vertex_areas, vertex_normals
from eavatar.prior.align import align_prior
from eavatar.prior.template_fit import warp
from eavatar.settings import AlignSettings, read_config
from eavatar.transforms import Similarity
from tests.scenes.heads import cut, random_head
from tests.scenes.outlines import write_outlines

LANDMARK_NOISE = 0.01  # dm
FACE_RADIUS = 0.3  # of what is measured around the landmarks, dm
FITTED_RADIUS = 0.45  # of a fitted face without head, likewise
NECK = 0.35  # below the chin, where a head without shoulders ends, dm
HAIR = 0.4  # thickest, dm
FACES = 1e3, 2e6
NOISE, REGION, PATCHES, PATCH = 0.01, 0.15, 15, 0.01  # of the head size; of the area
SCALES = 0.2, 5.0
SUCCESS = 0.03  # of the head size
CAMERAS = 12, 16
MATTE = 1.5  # standard deviation of a mask's edge, pixels
SWOLLEN = 0.1  # of the distance from the face, by which a skull is too large
MISTAKEN = "another head", "swollen"
WRONG = ("blob", "sphere", "hand", "torso", "back of the head", "mirrored")


@dataclass(frozen=True)
class Subject:
    """A person in canonical space, and what the pipeline knows of it.

    Attributes:
        head: the bald head with neck and shoulders.
        landmarks: (68, 3) on it.
        fitted: the fitted neutral mesh.
        fitted_landmarks: (68, 3) of the fit.
    """

    head: Mesh
    landmarks: np.ndarray
    fitted: Mesh
    fitted_landmarks: np.ndarray

    @property
    def size(self) -> float:
        """Height from the chin to the highest vertex, dm."""
        return float(self.head.vertices[:, 1].max() - self.landmarks[CHIN, 1])

    @property
    def face(self) -> np.ndarray:
        """(N, 3) vertices of the face."""
        return self.head.vertices[_near(self.head, self.landmarks, FACE_RADIUS)]


def main() -> None:
    """Run the trials, print one row each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a morphable model of a whole head")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--wrong", dest="kind", action="store_const", const="wrong")
    kinds.add_argument("--mistaken", dest="kind", action="store_const", const="mistaken")
    parser.add_argument("--output", type=Path, help="a .csv file for the rows")
    arguments = parser.parse_args()
    model = read_morphable_model(arguments.model)
    config = Path(__file__).parents[1] / "config" / "config.yaml"
    settings = read_config(config).prior.align.model_copy(
        update={"on_low_confidence": "without_prior"}
    )
    rows = []
    for trial in range(arguments.trials):
        seed = arguments.seed + trial
        rows.append(run_trial(settings, model, seed, arguments.kind))
        print(pd.DataFrame(rows[-1:]).to_string(header=trial == 0, index=False), flush=True)
        if arguments.output:
            pd.DataFrame(rows).to_csv(arguments.output, index=False)
    summarise(pd.DataFrame(rows), arguments.kind)


def summarise(rows: pd.DataFrame, kind: str | None) -> None:
    """Print the rates and the spread of confidences and times."""
    print(f"{len(rows)} trials: {rows['accepted'].mean():.1%} accepted")
    if kind is None:
        success = rows["error_percent"] < 100 * SUCCESS
        unnoticed = (~success & rows["accepted"]).sum()
        print(f"aligned {success.mean():.1%}; failures that were accepted: {unnoticed}")
        print(f"confidence of successes {spread(rows['confidence'][success])}")
        print(f"confidence of failures {spread(rows['confidence'][~success])}")
        print(f"error of successes, % of head size: {spread(rows['error_percent'][success])}")
    print(f"residual, dm: {spread(rows['residual'])}")
    print(f"seconds {spread(rows['seconds'])}; CPU seconds {spread(rows['cpu_seconds'])}")
    groups = rows.groupby("mesh")[["accepted", "confidence"]]
    print(groups.agg(["count", "mean", "min", "max"]).to_string())


def spread(values: pd.Series) -> str:
    """Least, median and greatest."""
    if values.empty:
        return "–"
    return f"{values.min():.3f} / {values.median():.3f} / {values.max():.3f}"


def run_trial(
    settings: AlignSettings, model: MorphableModel, seed: int, kind: str | None
) -> dict[str, object]:
    """Make one mesh, align it and compare with the truth."""
    random, rig = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    subject = draw_subject(model, seed, random)
    if kind is None:
        name, person, mesh = make_head(subject, seed, random)
        mesh = damage(mesh, subject.size, random)
    else:
        person = grow_hair(subject, rig) if rig.random() < 0.5 else subject.head
        names, make = (WRONG, make_wrong) if kind == "wrong" else (MISTAKEN, make_mistaken)
        name = names[seed % len(names)]
        mesh = make(name, subject, person, model, random)
    truth = draw_similarity(random)
    vertices = truth.apply(mesh.vertices.astype(np.float64)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        place, face = Path(folder), Path(folder, "face")
        write_mesh(place / "raw.ply", replace(mesh, vertices=vertices))
        write_mesh(face / "neutral.ply", subject.fitted)
        landmarks = subject.fitted_landmarks.astype(np.float32)
        write_arrays(face / "identity.npz", Identity(np.zeros(1), np.float32(0.1), landmarks))
        cameras = int(rig.integers(CAMERAS[0], CAMERAS[1] + 1))
        write_outlines(place / "capture", face, person, cameras, MATTE, seed)
        started, before = time.perf_counter(), cpu_seconds()
        try:
            align_prior(settings, seed, place / "raw.ply", place / "capture", face, place)
            alignment = read_alignment(place / "alignment.json")
        except UserError:  # no start kept its scale
            alignment = Alignment(truth, math.nan, 0.0, accepted=False)
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    moved = alignment.transform.compose(truth).apply(subject.face)
    error = np.linalg.norm(moved - subject.face, axis=1).mean() / subject.size
    return {
        "seed": seed,
        "mesh": name,
        "faces": len(mesh.faces),
        "error_percent": 100 * error,
        "residual": alignment.residual,
        "confidence": alignment.confidence,
        "accepted": alignment.accepted,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def cpu_seconds() -> float:
    """Of all threads of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- subjects -----------------------------------------------------------------------------------


def draw_subject(model: MorphableModel, seed: int, random: np.random.Generator) -> Subject:
    """A subject; every fourth is not of the model, and every second is fitted as a face alone."""
    draw = draw_other if seed % 4 == 3 else draw_of_model
    subject = draw(model, random)
    if seed // 4 % 2 == 0:
        return subject
    near = _near(subject.fitted, subject.fitted_landmarks, FITTED_RADIUS)
    return replace(subject, fitted=cut(subject.fitted, near))


def draw_of_model(model: MorphableModel, random: np.random.Generator) -> Subject:
    """A head of the model, and the most probable one given its landmarks with noise."""
    identity = random.normal(size=(model.identity_basis.shape[2],))
    vertices = model.vertices(identity.astype(np.float32))
    landmarks = vertices[model.landmark_vertices].astype(np.float64)
    observed = landmarks + LANDMARK_NOISE * random.normal(size=landmarks.shape)
    basis = model.identity_basis[model.landmark_vertices].reshape(landmarks.size, -1)
    deviation = (observed - model.mean[model.landmark_vertices]).ravel()
    normal = basis.T @ basis / LANDMARK_NOISE**2 + np.eye(basis.shape[1])
    found = np.linalg.solve(normal, basis.T @ deviation / LANDMARK_NOISE**2)
    fitted = model.vertices(found.astype(np.float32))
    return Subject(
        Mesh(vertices, model.faces),
        landmarks,
        Mesh(fitted, model.faces),
        fitted[model.landmark_vertices].astype(np.float64),
    )


def draw_other(_: MorphableModel, random: np.random.Generator) -> Subject:
    """A head of another shape space, fitted through its landmarks with noise."""
    head = random_head(int(random.integers(2**31)))
    observed = head.landmarks + LANDMARK_NOISE * random.normal(size=(68, 3))
    vertices = head.mesh.vertices.astype(np.float64)
    fitted = warp(vertices, head.landmarks, observed, np.full(68, 1e-3)).astype(np.float32)
    return Subject(head.mesh, head.landmarks, replace(head.mesh, vertices=fitted), observed)


# --- meshes of heads ----------------------------------------------------------------------------


def make_head(subject: Subject, seed: int, random: np.random.Generator) -> tuple[str, Mesh, Mesh]:
    """What it is called, the subject with or without hair, and that with or without shoulders."""
    hair, bust = seed % 2 == 0, seed // 2 % 2 == 0
    person = mesh = grow_hair(subject, random) if hair else subject.head
    if not bust:
        mesh = cut(mesh, mesh.vertices[:, 1] > subject.landmarks[CHIN, 1] - NECK)
    return f"{'hair' if hair else 'bald'}, {'bust' if bust else 'head'}", person, mesh


def grow_hair(subject: Subject, random: np.random.Generator) -> Mesh:
    """The head, thicker by a smooth random amount where it is neither face nor below the chin."""
    vertices = subject.head.vertices.astype(np.float64)
    away = cKDTree(subject.landmarks).query(vertices)[0] - FACE_RADIUS
    above = vertices[:, 1] - subject.landmarks[CHIN, 1]
    grown = np.clip(away / 0.3, 0, 1) * np.clip(above / 0.3, 0, 1)
    waves = random.normal(0, 1.5, (3, 4)), random.uniform(0, 2 * np.pi, 4)
    thickness = (
        HAIR * random.uniform(0.3, 1) * (0.6 + 0.1 * np.sin(vertices @ waves[0] + waves[1]).sum(1))
    )
    normals = vertex_normals(vertices, subject.head.faces)
    moved = vertices + (grown * thickness)[:, None] * normals
    return replace(subject.head, vertices=moved.astype(np.float32))


def damage(mesh: Mesh, size: float, random: np.random.Generator) -> Mesh:
    """Another tessellation of a mesh, with noise and holes.

    Args:
        mesh: a surface.
        size: of the head, dm.
        random: of all choices.
    """
    count = int(np.exp(random.uniform(*np.log(FACES))))
    mesh = tessellate(mesh, count)
    holes = make_holes(mesh, random)
    noise = NOISE * size * random.normal(size=mesh.vertices.shape)
    noisy = replace(mesh, vertices=(mesh.vertices + noise).astype(np.float32))
    faces = noisy.faces[~holes]
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(noisy.vertices[used], faces.reshape(-1, 3))


def tessellate(mesh: Mesh, count: int) -> Mesh:
    """The surface with about ``count`` other faces: vertices merged in cells, then subdivided."""
    rounds = max(0, math.ceil(math.log(count / len(mesh.faces), 4)))
    side = np.sqrt(2 * mesh_area(mesh) / (count // 4**rounds))
    cells = np.floor(mesh.vertices / side).astype(np.int64)
    _, merged, sizes = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(merged, axis) for axis in mesh.vertices.T])
    vertices, faces = (sums / sizes).T, merged[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    for _ in range(rounds):
        vertices, faces = trimesh.remesh.subdivide(vertices, faces)
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64))


def mesh_area(mesh: Mesh) -> float:
    """Of all faces."""
    return float(vertex_areas(mesh.vertices.astype(np.float64), mesh.faces).sum())


def make_holes(mesh: Mesh, random: np.random.Generator) -> np.ndarray:
    """(F,) bool: faces of one large region and of small patches."""
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    missing = np.zeros(len(mesh.faces), dtype=bool)
    for fraction in (REGION, *[PATCH] * PATCHES):
        chosen = random.choice(len(mesh.faces), p=shape.area_faces / shape.area)
        offsets = shape.triangles_center - shape.triangles_center[chosen]
        order = np.linalg.norm(offsets, axis=1).argsort()
        order = order[~missing[order]]
        covered = shape.area_faces[order].cumsum()
        missing[order[covered <= fraction * shape.area]] = True
    return missing


def draw_similarity(random: np.random.Generator) -> Similarity:
    """Canonical space to a generator's frame."""
    scale = float(np.exp(random.uniform(*np.log(SCALES))))
    turn = Rotation.random(rng=random).as_matrix()
    return Similarity(scale, turn, 3 * scale * random.normal(size=3))


# --- meshes that are no head --------------------------------------------------------------------


def make_mistaken(
    name: str, subject: Subject, person: Mesh, model: MorphableModel, random: np.random.Generator
) -> Mesh:
    """A whole head that a generator got wrong: another subject's, or one with too large a skull."""
    if name == "another head":
        return grow_hair(draw_of_model(model, random), random)
    away = cKDTree(subject.landmarks).query(person.vertices)[0] - FACE_RADIUS
    arms = person.vertices - subject.landmarks.mean(axis=0)
    grown = SWOLLEN * np.clip(away / FACE_RADIUS, 0, 1)[:, None]
    return replace(person, vertices=(person.vertices + grown * arms).astype(np.float32))


def make_wrong(
    name: str, subject: Subject, person: Mesh, _: MorphableModel, random: np.random.Generator
) -> Mesh:
    """A mesh that must be rejected, of about the size of a head."""
    if name == "blob":  # what a generator with random weights gives: a cube full of noise
        noise = gaussian_filter(random.normal(size=(72, 72, 72)), 1.2)
        return _level_set(noise - np.quantile(noise, 0.3), 2.0)
    if name == "sphere":
        ball = trimesh.creation.icosphere(4)
        return Mesh((1.1 * ball.vertices).astype(np.float32), np.array(ball.faces))
    if name == "hand":
        return _make_hand(random)
    if name == "torso":
        return _make_torso(random)
    if name == "back of the head":
        behind = subject.landmarks[:, 2].min() - 0.1
        return damage(cut(person, person.vertices[:, 2] < behind), subject.size, random)
    other = person.vertices * np.float32([-1, 1, 1])  # "mirrored", also inside out
    return damage(replace(person, vertices=other), subject.size, random)


def _make_hand(random: np.random.Generator) -> Mesh:
    """A palm with five fingers of random lengths and bends."""
    points = _grid()
    palm = np.linalg.norm(points / [0.45, 0.5, 0.18], axis=-1) - 1
    distance = 0.2 * palm
    for x in (-0.36, -0.12, 0.12, 0.36, 0.6):
        base = np.array([x, 0.3 if x < 0.5 else -0.2, 0])
        tip = base + random.normal([0.2 * x, 0.8, 0.2], 0.12)
        distance = np.minimum(distance, _capsule(points, base, tip, 0.11))
    return _level_set(distance, 3.0)


def _make_torso(random: np.random.Generator) -> Mesh:
    """A trunk with arms and legs, and without head."""
    points = _grid()
    radii = random.uniform([0.3, 0.5, 0.2], [0.45, 0.7, 0.35])
    distance = 0.3 * (np.linalg.norm(points / radii, axis=-1) - 1)
    for side in (-1, 1):
        shoulder, hip = np.array([0.35 * side, 0.45, 0]), np.array([0.18 * side, -0.5, 0])
        arm = shoulder + random.normal([0.4 * side, -0.6, 0.1], 0.15)
        leg = hip + random.normal([0.1 * side, -0.8, 0], 0.1)
        distance = np.minimum(distance, _capsule(points, shoulder, arm, 0.12))
        distance = np.minimum(distance, _capsule(points, hip, leg, 0.17))
    return _level_set(distance, 3.0)


def _grid() -> np.ndarray:
    axis = np.linspace(-1.5, 1.5, 90)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def _capsule(points: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance of points (..., 3) to a capsule."""
    along = end - start
    place = np.clip((points - start) @ along / (along @ along), 0, 1)
    return np.linalg.norm(points - start - place[..., None] * along, axis=-1) - radius


def _level_set(values: np.ndarray, side: float) -> Mesh:
    """The zero level of values on a cube's grid."""
    vertices, faces, _, _ = marching_cubes(np.pad(values, 1, constant_values=1.0), 0.0)
    centred = (vertices - vertices.mean(axis=0)) * side / len(values)
    return Mesh(centred.astype(np.float32), faces.astype(np.int64))


def _near(mesh: Mesh, landmarks: np.ndarray, radius: float) -> np.ndarray:
    """(V,) bool: the vertices within a distance of a landmark."""
    return cKDTree(landmarks).query(mesh.vertices)[0] < radius


if __name__ == "__main__":
    main()
