from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from eavatar.face.layout import AVERAGE_FACE
from eavatar.io import Tracking
from eavatar.landmark_indices import BROWS, CHIN, MIRROR, MOUTH
from eavatar.view.telling import find_telling, strongest_components

SCALE = 0.09
FACE = AVERAGE_FACE / 100  # canonical: decimetres
Move = list[tuple[int | slice, tuple[float, float]]]
"""Which landmarks move, and how far to the left and up."""
LOWER_LIP = [slice(55, 60), slice(65, 68)]
MOVES: dict[str, Move] = {
    "Jaw open": [(CHIN, (0, -0.25)), *((lip, (0, -0.2)) for lip in LOWER_LIP)],
    "Smile": [(48, (-0.06, 0.06)), (54, (0.06, 0.06))],
    "Lips pursed": [(48, (0.08, 0)), (54, (-0.08, 0))],
    "Mouth left": [(MOUTH, (0.1, 0))],
    "Mouth right": [(MOUTH, (-0.1, 0))],
    "Left corner up": [(54, (0, 0.06))],
    "Right corner up": [(48, (0, 0.06))],
    "Brows up": [(BROWS, (0, 0.05))],
    "Brows down": [(BROWS, (0, -0.05))],
    "Eyes closed": [(lid, (0, -0.06)) for lid in (37, 38, 43, 44)],
}
RESTS = 11  # timesteps before the moves: more than these, so that the median is rest


def act(moves: list[Move], seed: int = 0) -> Tracking:
    """A tracking of rests and then the moves, with a random head pose at each timestep."""
    random = np.random.default_rng(seed)
    landmarks = np.repeat(FACE[None], RESTS + len(moves), axis=0)
    for timestep, move in enumerate(moves, start=RESTS):
        for which, shift in move:
            landmarks[timestep, which, :2] += shift
    count = len(landmarks)
    rotation = Rotation.from_rotvec(random.normal(scale=0.3, size=(count, 3)))
    translation = random.normal(size=(count, 3))
    world = np.stack(
        [SCALE * turn.apply(face) for turn, face in zip(rotation, landmarks, strict=True)]
    )
    world += translation[:, None]
    arrays = [np.zeros((count, 2)), rotation.as_rotvec(), translation, world, np.zeros((count, 1))]
    return Tracking(*(array.astype(np.float32) for array in arrays))


def test_each_expression_is_found_where_it_was_acted_whatever_the_head_pose() -> None:
    found = find_telling({"talk": act([]), "faces": act(list(MOVES.values()))}, SCALE)
    assert found[0].name == "At rest"
    assert found[0].sequence == "talk" or found[0].timestep < RESTS
    places = {telling.name: (telling.sequence, telling.timestep) for telling in found[1:]}
    expected = {name: ("faces", RESTS + number) for number, name in enumerate(MOVES)}
    assert places == expected


def test_an_expression_that_was_not_acted_is_not_offered() -> None:
    found = find_telling({"faces": act([MOVES["Brows up"], [(MOUTH, (0.01, 0))]])}, SCALE)
    assert [telling.name for telling in found] == ["At rest", "Brows up"]


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [("Mouth left", "Mouth right"), ("Left corner up", "Right corner up"), ("Smile", "Smile")],
)
def test_a_mirrored_expression_is_found_on_the_other_side(name: str, mirrored: str) -> None:
    track = act([])
    moved = FACE.copy()
    for which, shift in MOVES[name]:
        moved[which, :2] += shift
    mirror = moved[list(MIRROR)] * [-1, 1, 1]
    still = replace(track, rotation=0 * track.rotation, translation=0 * track.translation)
    landmarks = np.repeat(FACE[None], len(track), axis=0)
    landmarks[-1] = mirror
    found = find_telling({"faces": replace(still, landmarks=np.float32(SCALE * landmarks))}, SCALE)
    assert mirrored in [telling.name for telling in found]
    assert name == mirrored or name not in [telling.name for telling in found]


def test_the_strongest_component_moves_the_face_most_in_the_tracking() -> None:
    track = act([])
    random = np.random.default_rng(0)
    expression = random.normal(size=(len(track), 3)) * [0.1, 1, 2]
    expression[0] = [0.11, 0, -7.23]
    basis = np.ones((5, 3, 3), np.float32) * np.float32([1, 1, 0])  # the last moves nothing
    tracks = {"talk": replace(track, expression=expression.astype(np.float32))}
    components = strongest_components(tracks, basis, most=3)
    assert [component.index for component in components] == [1, 0]
    largest = np.abs(expression - np.median(expression, axis=0)).max(axis=0)
    for component in components:  # to tenths, and never below
        assert 0 <= component.limit - largest[component.index] < 0.1
    assert len(strongest_components(tracks, basis, most=1)) == 1
