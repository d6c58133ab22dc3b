"""Which vertices of a morphable model are the 68 landmarks: who says so, and whether it is right.

The published `.h5` files do not say it. The lists that go around for them were made by their
users, so every list is checked against the mean face of the file that it is used with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eavatar.arrays import Float32, Int64
from eavatar.errors import UserError
from eavatar.face.layout import find_asymmetry, find_layout_fault, place_average_face
from eavatar.io import LANDMARKS
from eavatar.landmark_indices import MIRROR

UNKNOWN = -1  # in place of a vertex that the published list lacks
# Published vertex indices of the iBUG-68 landmarks, from 0, by the number of a file's vertices.
PUBLISHED_LANDMARKS: dict[int, tuple[int, ...]] = {
    # model2017-1_face12_nomouth.h5; from Landmarks68_model2017-1_face12_nomouth.anl, for example in
    # github.com/berksaribas/face-reconstruction. Checked against each file's mean face on reading.
    28588: (
        16214, 16229, 16248, 16270, 16295, 25899, 26351, 26776, 27064, 27352, 27790, 28275, 22486,
        22462, 22440, 22422, 22406, 17471, 22988, 23398, 23613, 23834, 8800, 24358, 24575, 24934,
        19912, 8108, 8135, 8148, 8156, 6389, 7341, 8168, 8993, 9938, 2218, 4275, 5049, 5962, 4803,
        4025, 10014, 11030, 11674, 13100, 11943, 11299, 5263, 6024, 7354, 8180, 8770, 9954, 10727,
        9139, 8551, 8198, 7726, 7137, 6295, 7480, 8188, 8778, 10337, 8546, 8192, 7838,
    ),
    # model2017-1_bfm_nomouth.h5; from share/ibug_to_bfm2017-1_bfm_nomouth.txt of
    # github.com/patrikhuber/eos, which has no jaw line but the chin, no brows and little of nose
    # and eyes.
    53149: (
        *[UNKNOWN] * 8, 47846, *[UNKNOWN] * 21, 8156, *[UNKNOWN] * 5,
        2602, UNKNOWN, UNKNOWN, 5830, UNKNOWN, UNKNOWN, 10390, UNKNOWN, UNKNOWN, 13481, UNKNOWN,
        UNKNOWN, 5522, 6026, 7355, 8181, 9007, 10329, 10857, 9730, 8670, 8199, 7726, 6898, 6291,
        7364, 8190, 9016, 10088, 8663, 8191, 7719,
    ),
    # gnm_head.npz, version 3; from gnm/shape/data/landmarks/head_sparse_68.txt of
    # github.com/google/GNM (Apache-2.0), of whose points in triangles these are the nearest
    # corners. Its lines 3 to 7 run from the ear's side of the jaw in reverse; here they are in
    # iBUG's order.
    17821: (
        11165, 9836, 9845, 8737, 6846, 10090, 9982, 9740, 12258, 3612, 3854, 3962, 718, 2609, 3717,
        3708, 5037, 7635, 7574, 7671, 7565, 7108, 980, 1437, 1543, 1446, 1507, 12319, 12329, 12310,
        12296, 10105, 10225, 12298, 3354, 3977, 7426, 7288, 7404, 11027, 6739, 7307, 4899, 1276,
        1160, 1298, 1179, 611, 10653, 10719, 10731, 12276, 4603, 4591, 4525, 4599, 4593, 12270,
        10721, 10727, 11285, 10805, 12285, 4677, 5157, 4689, 12271, 10817,
    ),
}  # fmt: skip
MAX_TILT = 30.0  # degrees, of a mean face in the axes of its file
# An index off by one may name a neighbour, too near for the layout to tell, but not as symmetric: a
# list is taken to be shifted where the vertices beside it have half of its median asymmetry, and
# that is more than 1 mm (0.01 dm).
SHIFTED_ASYMMETRY, MIN_SHIFTED_ASYMMETRY = 0.5, 0.01


@dataclass(frozen=True)
class LandmarkList:
    """The landmarks of a model.

    Attributes:
        vertices: (68,) indices from 0, in iBUG order.
        origin: what holds them, for sentences: "the … are not …".
        start: 0 or 1, the number from which that counts vertices.
        remedy: what to do about a fault, an imperative.
    """

    vertices: Int64
    origin: str
    start: int
    remedy: str


def find_landmark_list(path: Path, vertices: int) -> LandmarkList:
    """The 68 indices of a model that does not hold them: of the text file beside it, or published.

    Args:
        path: of the model.
        vertices: how many it has.

    Raises:
        UserError: there is none, or the text file holds something else.
    """
    beside = path.with_suffix(".txt")
    published = np.array(PUBLISHED_LANDMARKS.get(vertices, ()), dtype=np.int64)
    complete = len(published) > 0 and (published != UNKNOWN).all()
    if beside.is_file():
        remedy = (
            "remove the file, as the list for this model is known" if complete else "correct it"
        )
        return LandmarkList(_read_indices(beside), f"indices in {beside}", 0, remedy)
    write = f"write the indices of all 68, counted from 0 and in iBUG order, into {beside}"
    if complete:
        return LandmarkList(published, f"published indices for {path}", 0, write)
    known = ""
    if len(published):
        known = (
            ", and the published list for its mesh lacks the jaw line and the brows: take "
            "model2017-1_face12_nomouth.h5 of the same download, whose list is known, or"
        )
    raise UserError(
        f"{path} does not say which vertices are the 68 landmarks{known or ':'} {write}."
    )


def _read_indices(path: Path) -> Int64:
    """68 whole numbers of a text file."""
    try:
        words = path.read_text(encoding="utf-8-sig").split()  # some editors begin with a mark
        indices = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} must hold whole numbers only: {error}.") from error
    if indices.shape != (LANDMARKS,):
        raise UserError(f"{path} must hold 68 vertex indices, not {indices.size}.")
    return indices


def check_landmark_list(listed: LandmarkList, mean: Float32, path: Path) -> None:
    """Raise `UserError` unless the listed vertices are a face's landmarks in iBUG order.

    Args:
        listed: vertices of the model.
        mean: (V, 3) its mean face.
        path: of the model, for the message.
    """
    landmarks = mean[listed.vertices].astype(np.float64)
    fault, shift = find_layout_fault(landmarks), _find_shift(listed.vertices, mean)
    if fault or shift:
        cause = _guess_cause(listed.vertices, shift, mean)
        raise UserError(
            f"the {listed.origin} are not the 68 landmarks of a face in iBUG order "
            f"({fault or 'their neighbours are more symmetric'}){cause and f'; probably {cause}'}: "
            f"they must count vertices from {listed.start} and begin with the jaw line, from the "
            f"person's right to the left; {listed.remedy}."
        )
    rotation = place_average_face(landmarks).rotation
    tilt = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    if tilt > MAX_TILT:
        raise UserError(
            f"{path}: its mean face is turned by {tilt:.0f}° against the axes of the Basel models, "
            "y up and z out of the face; turn the model."
        )


def _find_shift(vertices: Int64, mean: Float32) -> int:
    """1 or -1 if all listed vertices are too large or small by it, as far as can be told; or 0."""
    published = np.array(PUBLISHED_LANDMARKS.get(len(mean), ()), dtype=np.int64)
    known = np.flatnonzero(published != UNKNOWN)
    own = _median_asymmetry(vertices, mean)
    for shift in (1, -1):
        if len(known) and (vertices[known] - published[known] == shift).all():
            return shift
        shifted = (vertices - shift) % len(mean)
        symmetric = _median_asymmetry(shifted, mean) < SHIFTED_ASYMMETRY * own
        if own > MIN_SHIFTED_ASYMMETRY and symmetric and _is_face(shifted, mean):
            return shift
    return 0


def _median_asymmetry(vertices: Int64, mean: Float32) -> float:
    return float(np.median(find_asymmetry(mean[vertices].astype(np.float64))))


def _is_face(vertices: Int64, mean: Float32) -> bool:
    return find_layout_fault(mean[vertices].astype(np.float64)) is None


def _guess_cause(vertices: Int64, shift: int, mean: Float32) -> str:
    """Which common mistake explains listed vertices that are no face's; empty if none does."""
    corrections = {
        "each is one too large": (vertices - 1) % len(mean),
        "each is one too small": (vertices + 1) % len(mean),
        "left and right are exchanged, or the mesh is a mirror image": vertices[list(MIRROR)],
        "the jaw line runs from left to right": np.append(vertices[16::-1], vertices[17:]),
    }
    if shift:
        return list(corrections)[0 if shift > 0 else 1]
    fitting = [cause for cause, corrected in corrections.items() if _is_face(corrected, mean)]
    return fitting[0] if fitting else ""
