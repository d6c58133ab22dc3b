"""Dense refinement: identity, poses and expressions against the colours of all views.

1. Identity and scale, from timesteps of the training sequences: a vertex of the right face looks
   the same in all cameras. The poses and expressions of these timesteps are solved along; the
   landmarks of the fit keep an offset each, constant in the head's frame, for that is what a
   detector's bias leaves. Only differences between views count, so light does not matter.
2. Texture, from the same timesteps: each vertex' mean colour. Pose and expression follow it.
3. Every timestep of every sequence on its own, identity and texture fixed: a held-out sequence
   is treated as any other and gives nothing to them.

Letters: T timesteps, C cameras, P compared vertices, L = 68 landmarks, E expression and I identity
coefficients, U = 6 + E unknowns of a timestep, S = I + 1 + 3L shared unknowns: identity, logarithm
of the scale, landmark offsets. Unknowns of the pose count in the head's own frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.cameras import Camera
from eavatar.data.images import make_pool
from eavatar.errors import UserError
from eavatar.face.fit import skew
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.photometric import (
    CELL,
    band_pass,
    compare,
    fill_depth,
    unhidden,
)
from eavatar.face.triangulation import project
from eavatar.io import (
    LANDMARKS,
    Identity,
    Mesh,
    Tracking,
    read_arrays,
    read_cameras,
    write_arrays,
    write_mesh,
)
from eavatar.meshes import vertex_areas, vertex_normals
from eavatar.settings import RefineSettings
from eavatar.transforms import fit_similarity

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

COARSE, FINE = 2.0, 1.0  # blur of the images, pixels; two pixels is what the landmark fit leaves
BAND = 3.0  # radius of the mean that is taken off, multiple of the blur; more reaches past the nose
COARSE_STEPS, FINE_STEPS = 3, 4
FACE_RADIUS = 0.3  # dm; vertices this close to a landmark are compared
LEAST_COSINE = 0.3  # of the angle to the viewing direction; flatter views show little
HIDING = 0.003  # metres in front of a vertex at which a surface hides it
MOST_AREA = 3.0  # of the mean area of a vertex, for its weight
SCALE_DEVIATION = 0.02  # relative, of the landmark fit's scale
MARGIN = 24  # pixels around the face in each image


@dataclass(frozen=True)
class Surface:
    """The morphable model and its vertices that are compared, canonical units.

    Attributes:
        model: truncated to the I and E coefficients that the fit used.
        chosen: (P,) vertices. areas: (P,) of their surroundings, mean 1.
        basis: (P, 3, E + I). landmark_basis: (L, 3, E + I).
    """

    model: MorphableModel
    chosen: NDArray[np.int64]
    areas: Array
    basis: NDArray[np.float32]
    landmark_basis: Array


@dataclass(frozen=True)
class Head:
    """What all timesteps share: (I,) identity, scale to metres, (L, 3) metres landmark offsets."""

    identity: Array
    scale: float
    offsets: Array


@dataclass(frozen=True)
class Pose:
    """One timestep: (3, 3) rotation, (3,) translation in metres, (E,) expression."""

    rotation: Array
    translation: Array
    expression: Array


@dataclass(frozen=True)
class Rig:
    """The cameras at the size compared: (C, 3, 4) projections and (C, 3) centres, metres."""

    serials: tuple[str, ...]
    projections: Array
    centres: Array
    size: int


@dataclass(frozen=True)
class Footage:
    """A sequence of a capture, and (timestep, serial) of the views whose mask failed."""

    capture: Path
    name: str
    failed: frozenset[tuple[int, str]]


@dataclass(frozen=True)
class Frame:
    """The images of one timestep around the face, and where the landmark fit saw the landmarks.

    Attributes:
        images: (C, H, H, 3) uint8. masks: (C, H, H) uint8; nil in views whose mask failed.
        corners: (C, 2) of the images, pixels.
        landmarks: (L, 3) world, metres.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    corners: Array
    landmarks: Array


@dataclass(frozen=True)
class Texture:
    """(P, 3) colours of the vertices and (P,) their weights: 1, or 0 where there is none."""

    colours: Array
    known: Array


@dataclass(frozen=True)
class Terms:
    """Cost, (U + S, U + S) normal equations and (U + S,) gradient of one timestep.

    Also the (P, 3) mean colours of the vertices in its views and (P,) the weights of these.
    """

    cost: float
    matrix: Array
    gradient: Array
    colours: Array
    weights: Array


@dataclass(frozen=True)
class Look:
    """What stays the same during the steps on a frame.

    Attributes:
        frame. images: (C, H, H, 3) float32, band-passed.
        weights: (C, P) of the vertices in the views, 0 = hidden.
    """

    frame: Frame
    images: NDArray[np.float32]
    weights: Array


def refine_face(
    settings: RefineSettings, morphable_model: Path, capture: Path, fit: Path, output: Path
) -> None:
    """Refine the landmark fit of every sequence, or take it over if not enabled.

    Args:
        capture: ``results/<subject>/capture`` with frames, masks and cameras.
        fit: folder with the landmark fit's ``identity.npz`` and ``tracking/<sequence>.npz``.
        output: folder; receives ``identity.npz``, ``neutral.ply`` and
            ``tracking/<sequence>.npz``. The reprojection errors there remain the landmark fit's.

    Raises:
        UserError: an input is missing or malformed, or no sequence is for training.
    """
    model = read_morphable_model(morphable_model)
    identity = read_arrays(Identity, fit / "identity.npz")
    tracks = {path.stem: read_arrays(Tracking, path) for path in list_tracks(fit)}
    if settings.enabled:
        identity, tracks = refine(settings, model, capture, identity, tracks)
    for name, track in tracks.items():
        write_arrays(output / "tracking" / f"{name}.npz", track)
    write_arrays(output / "identity.npz", identity)
    mesh = Mesh(model.vertices(identity.identity), model.faces, model.colours)
    write_mesh(output / "neutral.ply", mesh)


def list_tracks(fit: Path) -> list[Path]:
    """The tracking files of a fit."""
    paths = sorted((fit / "tracking").glob("*.npz"))
    if not paths:
        raise UserError(f"{fit} holds no tracking (tracking/<sequence>.npz); run fit_face again.")
    return paths


def refine(
    settings: RefineSettings,
    model: MorphableModel,
    capture: Path,
    identity: Identity,
    tracks: dict[str, Tracking],
) -> tuple[Identity, dict[str, Tracking]]:
    """The refined identity and tracking of all sequences."""
    surface = choose_surface(model, len(identity.identity), track_size(tracks))
    rig = read_rig(capture / "cameras.json", settings.image_size)
    head = Head(
        identity.identity.astype(np.float64), float(identity.scale), np.zeros((LANDMARKS, 3))
    )
    keys = keyframes(capture, tracks, settings.keyframes)
    head, texture = learn(settings, surface, rig, head, capture, tracks, keys)
    refined = {}
    for name, track in tracks.items():
        refined[name] = follow(settings, surface, rig, head, texture, capture, name, track)
    landmarks = model.vertices(head.identity.astype(np.float32))[model.landmark_vertices]
    logger.info("scale %.5f m per unit, %.5f before", head.scale, float(identity.scale))
    shared = Identity(head.identity.astype(np.float32), np.array(head.scale, np.float32), landmarks)
    return shared, refined


def track_size(tracks: dict[str, Tracking]) -> int:
    """E of the tracking."""
    return next(iter(tracks.values())).expression.shape[1]


# --- inputs -------------------------------------------------------------------------------------


def choose_surface(model: MorphableModel, identities: int, expressions: int) -> Surface:
    """The vertices of the face: near a landmark and not on its back."""
    model = replace(
        model,
        identity_basis=model.identity_basis[..., :identities],
        expression_basis=model.expression_basis[..., :expressions],
    )
    mean = model.mean.astype(np.float64)
    distance, _ = cKDTree(mean[model.landmark_vertices]).query(mean)
    forward = vertex_normals(mean, model.faces)[:, 2]
    chosen = np.flatnonzero((distance < FACE_RADIUS) & (forward > -LEAST_COSINE))
    areas = vertex_areas(mean, model.faces)[chosen]
    basis = np.concatenate([model.expression_basis, model.identity_basis], axis=2)
    landmark_basis = basis[model.landmark_vertices].astype(np.float64)
    areas = np.minimum(areas / areas.mean(), MOST_AREA)
    return Surface(model, chosen, areas, basis[chosen].astype(np.float32), landmark_basis)


def read_rig(path: Path, size: int) -> Rig:
    """The cameras for images of a size; at most that of the ingested ones."""
    cameras = read_cameras(path)
    size = min(size, next(iter(cameras.values())).width)
    resized: list[Camera] = [camera.resize(size, size) for camera in cameras.values()]
    projections = [camera.intrinsics @ camera.world_to_camera[:3] for camera in resized]
    centres = [camera.centre for camera in resized]
    return Rig(tuple(cameras), np.stack(projections), np.stack(centres), size)


def keyframes(capture: Path, tracks: dict[str, Tracking], count: int) -> list[tuple[str, int]]:
    """At most ``count`` timesteps of the training sequences, evenly spread."""
    keys = []
    for name, track in tracks.items():
        index = pd.read_csv(capture / f"{name}.csv")
        if (index["split"] == "train").all():
            keys += [(name, timestep) for timestep in range(len(track.rotation))]
    if not keys:
        raise UserError(
            f"{capture} has no training sequence to refine the face from; check "
            "capture.ingest.held_out, or switch face.refine off."
        )
    chosen = np.linspace(0, len(keys) - 1, min(count, len(keys))).round().astype(int)
    return [keys[index] for index in chosen]


def read_frame(
    surface: Surface,
    rig: Rig,
    head: Head,
    footage: Footage,
    timestep: int,
    pose: Pose,
    landmarks: Array,
) -> Frame:
    """The images of a timestep around the face where the landmark fit put it."""
    world = place(head, pose, canonical(surface, head, pose)[surface.chosen])
    pixels = project(rig.projections, world[None])[0][0]
    side = int(np.ceil(np.ptp(pixels, axis=1).max())) + 2 * MARGIN
    side = min(side, rig.size)
    middle = (pixels.min(axis=1) + pixels.max(axis=1)) / 2
    corners = np.floor(middle - side / 2).clip(0, rig.size - side).astype(int)
    images = np.empty((len(rig.serials), side, side, 3), np.uint8)
    masks = np.empty((len(rig.serials), side, side), np.uint8)
    for camera, serial in enumerate(rig.serials):
        left, top = corners[camera]
        window = (slice(top, top + side), slice(left, left + side))
        file = Path(footage.name, serial, f"{timestep:05d}")
        colour = footage.capture / file.with_suffix(".jpg")
        mask = footage.capture / "masks" / file.with_suffix(".png")
        images[camera] = read_image(colour, rig.size, cv2.IMREAD_COLOR)[window]
        masks[camera] = read_image(mask, rig.size, cv2.IMREAD_GRAYSCALE)[window]
        if (timestep, serial) in footage.failed:
            masks[camera] = 0
    return Frame(images, masks, corners.astype(np.float64), landmarks)


def open_footage(capture: Path, name: str) -> Footage:
    """A sequence; its list of masks says which failed, if any could."""
    table = pd.read_csv(capture / "masks" / f"{name}.csv", dtype={"camera": str})
    table = table[table["failed"] == 1] if "failed" in table else table[:0]
    failed = zip(table["timestep"].astype(int), table["camera"], strict=True)
    return Footage(capture, name, frozenset(failed))


def read_image(path: Path, size: int, mode: int) -> NDArray[Any]:
    """A frame or a mask at a size, uint8; ``mode`` is OpenCV's for reading."""
    image = cv2.imread(str(path), mode)
    if image is None:
        raise UserError(f"the image {path} is missing or damaged; run the capture rules again.")
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


# --- geometry -----------------------------------------------------------------------------------


def canonical(surface: Surface, head: Head, pose: Pose) -> Array:
    """(V, 3) canonical vertices of a timestep."""
    model = surface.model
    neutral = model.vertices(head.identity.astype(np.float32))
    moved: Array = (neutral + model.expression_basis @ pose.expression).astype(np.float64)
    return moved


def canonical_landmarks(surface: Surface, head: Head, expression: Array) -> Array:
    """(..., L, 3) canonical landmarks of expressions (..., E)."""
    model, count = surface.model, expression.shape[-1]
    neutral = (
        model.mean[model.landmark_vertices] + surface.landmark_basis[..., count:] @ head.identity
    )
    moved: Array = neutral + np.einsum(
        "lik,...k->...li", surface.landmark_basis[..., :count], expression
    )
    return moved


def place(head: Head, pose: Pose, points: Array) -> Array:
    """Canonical points (N, 3) in the world, metres."""
    return head.scale * points @ pose.rotation.T + pose.translation


def moved_pose(head: Head, pose: Pose, step: Array) -> Pose:
    """A pose after a step (U,) in the head's frame."""
    turn = Rotation.from_rotvec(step[:3]).as_matrix()
    shift = head.scale * pose.rotation @ step[3:6]
    return Pose(pose.rotation @ turn, pose.translation + shift, pose.expression + step[6:])


def moved_head(head: Head, step: Array) -> Head:
    """The shared unknowns after a step (S,)."""
    count = len(head.identity)
    offsets = head.offsets + head.scale * step[count + 1 :].reshape(-1, 3)
    scale = head.scale * float(np.exp(step[count]))
    return Head(head.identity + step[:count], scale, offsets)


def start_pose(surface: Surface, head: Head, pose: Pose, landmarks: Array) -> Pose:
    """The rigid motion of a changed face to the landmark fit's landmarks (L, 3)."""
    face = head.scale * canonical_landmarks(surface, head, pose.expression) - head.offsets
    rigid = fit_similarity(face, landmarks, with_scale=False)
    return Pose(rigid.rotation, rigid.translation, pose.expression)


def look(surface: Surface, rig: Rig, head: Head, pose: Pose, frame: Frame, blur: float) -> Look:
    """The band-passed images of a frame, and which vertices its cameras see."""
    images = np.stack(
        [
            band_pass(image, mask, blur, BAND * blur)
            for image, mask in zip(frame.images, frame.masks, strict=True)
        ]
    )
    vertices = place(head, pose, canonical(surface, head, pose))
    normals = vertex_normals(vertices, surface.model.faces)[surface.chosen]
    side = int(frame.images.shape[1] / CELL)
    buffer = np.empty((side, side))
    weights = np.zeros((len(rig.serials), len(surface.chosen)))
    seen_at = project(rig.projections, vertices[None])[0][0] - frame.corners[:, None]
    for camera, pixels in enumerate(seen_at):
        rays = rig.centres[camera] - vertices
        depth = np.linalg.norm(rays, axis=1)
        fill_depth(pixels, depth, surface.model.faces, buffer)
        rays, depth = rays[surface.chosen], depth[surface.chosen]
        cosine = (normals * rays).sum(axis=1) / depth
        inside = pixels[surface.chosen].clip(0, frame.images.shape[1] - 1)
        seen = unhidden(inside, depth, buffer, frame.masks[camera], HIDING)
        facing = (cosine - LEAST_COSINE).clip(0) / (1 - LEAST_COSINE)
        weights[camera] = seen * facing * surface.areas
    return Look(frame, images, weights)


# --- normal equations ---------------------------------------------------------------------------


def frame_terms(
    settings: RefineSettings,
    surface: Surface,
    rig: Rig,
    head: Head,
    pose: Pose,
    view: Look,
    texture: Texture,
) -> Terms:
    """Photometric, landmark and expression terms of one timestep, linearised."""
    points = canonical(surface, head, pose)[surface.chosen]
    cost, matrices, forces, colours, weights = compare(
        view.images,
        view.frame.corners,
        rig.projections,
        place(head, pose, points),
        view.weights,
        texture.colours,
        texture.known,
        settings.colour_outlier,
    )
    to_world = head.scale * pose.rotation  # all derivatives are by canonical positions from here
    information = (to_world.T @ matrices @ to_world / settings.colour_noise**2).astype(np.float32)
    force = forces @ to_world / settings.colour_noise**2
    jacobian = point_jacobian(points, surface.basis).astype(np.float32)
    flat = jacobian.reshape(-1, jacobian.shape[2])
    matrix = (flat.T @ (information @ jacobian).reshape(flat.shape)).astype(np.float64)
    gradient = (flat.T @ force.ravel().astype(np.float32)).astype(np.float64)
    cost /= settings.colour_noise**2
    return add_landmarks(
        settings, surface, head, pose, view.frame, Terms(cost, matrix, gradient, colours, weights)
    )


def point_jacobian(points: Array, basis: NDArray[Any]) -> Array:
    """(N, 3, 6 + E + I + 1) derivative of canonical points by pose, shape and scale."""
    rigid = np.broadcast_to(np.eye(3), (len(points), 3, 3))
    return np.concatenate([-skew(points), rigid, basis, points[..., None]], axis=2)


def add_landmarks(
    settings: RefineSettings, surface: Surface, head: Head, pose: Pose, frame: Frame, terms: Terms
) -> Terms:
    """Add the distance to the fit's landmarks, less their offsets, and the expression's prior."""
    points = canonical_landmarks(surface, head, pose.expression)
    seen = (frame.landmarks - pose.translation) @ pose.rotation
    residual = ((head.scale * points - seen - head.offsets) / head.scale).ravel()
    jacobian = point_jacobian(points, surface.landmark_basis).reshape(3 * LANDMARKS, -1)
    jacobian = np.concatenate([jacobian, -np.eye(3 * LANDMARKS)], axis=1)
    weight = 1 / settings.landmark_noise**2
    matrix = weight * jacobian.T @ jacobian
    gradient = weight * jacobian.T @ residual
    count = len(terms.gradient)
    matrix[:count, :count] += terms.matrix
    gradient[:count] += terms.gradient
    expression = np.arange(6, 6 + len(pose.expression))
    matrix[expression, expression] += 1
    gradient[expression] += pose.expression
    prior = float(weight * residual @ residual + pose.expression @ pose.expression)
    return replace(terms, cost=terms.cost + 0.5 * prior, matrix=matrix, gradient=gradient)


def shared_prior(settings: RefineSettings, head: Head, start: Head) -> tuple[Array, Array]:
    """Diagonal (S,) and gradient (S,) of the priors on identity, scale and landmark offsets.

    The landmark fit's identity is the mean: it is the most probable one given the landmarks.
    """
    deviations = np.repeat(
        [1.0, SCALE_DEVIATION, settings.landmark_bias], [len(head.identity), 1, 3 * LANDMARKS]
    )
    scale = np.log(head.scale / start.scale)
    change = head.identity - start.identity
    values = np.concatenate([change, [scale], head.offsets.ravel() / head.scale])
    return 1 / deviations**2, values / deviations**2


def solve_together(
    terms: Iterable[Terms], diagonal: Array, gradient: Array
) -> tuple[list[Array], Array]:
    """The steps (U,) of each timestep and the shared one (S,): its unknowns are eliminated."""
    matrix, gradient = np.diag(diagonal), gradient.copy()
    own = []
    for each in terms:
        count = len(each.gradient) - len(gradient)
        border = each.matrix[:count, count:]
        right = np.concatenate([border, each.gradient[:count, None]], axis=1)
        solved = np.linalg.solve(each.matrix[:count, :count], right)
        matrix += each.matrix[count:, count:] - border.T @ solved[:, :-1]
        gradient += each.gradient[count:] - border.T @ solved[:, -1]
        own.append(solved)
    shared: Array = -np.asarray(np.linalg.solve(matrix, gradient), dtype=np.float64)
    return [-(solved[:, -1] + solved[:, :-1] @ shared) for solved in own], shared


# --- the three parts ----------------------------------------------------------------------------


def learn(
    settings: RefineSettings,
    surface: Surface,
    rig: Rig,
    head: Head,
    capture: Path,
    tracks: dict[str, Tracking],
    keys: list[tuple[str, int]],
) -> tuple[Head, Texture]:
    """Identity and texture from some timesteps of the training sequences."""
    start, nothing = head, no_texture(surface)
    footage = {name: open_footage(capture, name) for name in dict(keys)}
    poses = [start_of(tracks[name], timestep) for name, timestep in keys]
    with make_pool() as pool:

        def read(key: tuple[str, int], pose: Pose) -> Frame:
            landmarks = tracks[key[0]].landmarks[key[1]].astype(np.float64)
            return read_frame(surface, rig, head, footage[key[0]], key[1], pose, landmarks)

        frames = list(tqdm(pool.map(read, keys, poses), "reading keyframes", len(keys)))
        blurs = [COARSE] * COARSE_STEPS + [FINE] * FINE_STEPS
        for blur in tqdm(blurs, desc="refining the identity", unit="step"):
            shared = head

            def linearise(
                pose: Pose, frame: Frame, head: Head = shared, blur: float = blur
            ) -> Terms:
                view = look(surface, rig, head, pose, frame, blur)
                return frame_terms(settings, surface, rig, head, pose, view, nothing)

            terms = pool.map(linearise, poses, frames)
            steps, step = solve_together(terms, *shared_prior(settings, head, start))
            poses = [moved_pose(head, *pair) for pair in zip(poses, steps, strict=True)]
            head = moved_head(head, step)
        texture = nothing
        for _ in tqdm(range(settings.rounds), desc="refining the texture", unit="round"):
            known = texture

            def settled(pose: Pose, frame: Frame, known: Texture = known) -> tuple[Pose, Terms]:
                return settle(settings, surface, rig, head, pose, frame, known)

            colours = list(pool.map(settled, poses, frames))
            poses = [pose for pose, _ in colours]
            texture = mean_texture(settings, [terms for _, terms in colours])
    return head, texture


def no_texture(surface: Surface) -> Texture:
    """Before one is known."""
    count = len(surface.chosen)
    return Texture(np.zeros((count, 3)), np.zeros(count))


def mean_texture(settings: RefineSettings, terms: list[Terms]) -> Texture:
    """Robust mean of the colours of some timesteps."""
    colours = np.stack([each.colours for each in terms])
    weights = np.stack([each.weights for each in terms])[..., None]
    share = weights
    for _ in range(4):
        mean = (share * colours).sum(axis=0) / share.sum(axis=0).clip(1e-9)
        squared = ((colours - mean) ** 2).sum(axis=-1, keepdims=True)
        share = weights / (1 + squared / settings.colour_outlier**2) ** 2
    return Texture(mean, (weights.sum(axis=0)[:, 0] > 0).astype(np.float64))


def settle(
    settings: RefineSettings,
    surface: Surface,
    rig: Rig,
    head: Head,
    pose: Pose,
    frame: Frame,
    texture: Texture,
    blurs: tuple[float, ...] = (FINE,),
) -> tuple[Pose, Terms]:
    """The best pose and expression of a timestep, the head given, and the terms there."""
    own = slice(0, 6 + len(pose.expression))
    for blur in blurs:
        view = look(surface, rig, head, pose, frame, blur)
        terms = frame_terms(settings, surface, rig, head, pose, view, texture)
        for _ in range(COARSE_STEPS):
            step = np.linalg.solve(terms.matrix[own, own], -terms.gradient[own]).astype(float)
            trial = moved_pose(head, pose, step)
            trial_terms = frame_terms(settings, surface, rig, head, trial, view, texture)
            if trial_terms.cost >= terms.cost:
                break
            pose, terms = trial, trial_terms
    return pose, terms


def follow(
    settings: RefineSettings,
    surface: Surface,
    rig: Rig,
    head: Head,
    texture: Texture,
    capture: Path,
    name: str,
    track: Tracking,
) -> Tracking:
    """All timesteps of a sequence, each on its own."""
    footage = open_footage(capture, name)

    def one(timestep: int) -> Pose:
        landmarks = track.landmarks[timestep].astype(np.float64)
        pose = start_pose(surface, head, start_of(track, timestep), landmarks)
        frame = read_frame(surface, rig, head, footage, timestep, pose, landmarks)
        return settle(settings, surface, rig, head, pose, frame, texture, (COARSE, FINE))[0]

    count = len(track.rotation)
    with make_pool() as pool:
        poses = list(tqdm(pool.map(one, range(count)), f"refining {name}", count))
    rotation = np.stack([pose.rotation for pose in poses])
    translation = np.stack([pose.translation for pose in poses])
    expression = np.stack([pose.expression for pose in poses])
    points = canonical_landmarks(surface, head, expression)
    landmarks = head.scale * points @ rotation.transpose(0, 2, 1) + translation[:, None]
    turns = Rotation.from_matrix(rotation).as_rotvec()
    arrays = (expression, turns, translation, landmarks, track.reprojection_error)
    return Tracking(*(array.astype(np.float32) for array in arrays))


def start_of(track: Tracking, timestep: int) -> Pose:
    """The landmark fit's pose of a timestep."""
    rotation = Rotation.from_rotvec(track.rotation[timestep]).as_matrix()
    translation = track.translation[timestep].astype(np.float64)
    return Pose(rotation, translation, track.expression[timestep].astype(np.float64))
