"""Whether cameras can have recorded a head, from their calibration alone.

A head stands near the middle of most frames. So there must be a point that most cameras have near
the middle of their frame, from directions that differ, at a distance and a width of view that suit
a head: then the optical axes meet. Limits were chosen on arcs, rings, domes and walls of 3 to 40
cameras, 0.5 to 5 m away, aimed with an error of up to 15 % of the frame; their `miss` was at most
0.29.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from eavatar.arrays import Bool, Float64
from eavatar.cameras import Camera
from eavatar.conventions import HEAD_SCALE, READINGS, UNITS, Reading, in_unit
from eavatar.errors import UserError

MIN_CAMERAS = 2  # to triangulate
MIN_JUDGES = 3  # to tell which camera is wrong
DISTANCES = 0.25, 15.0  # metres of an adult's head to a camera
VIEWS = 0.1, 3.0  # metres that a frame shows at the head: a face; so much that the head is a dot
USUAL_VIEW = 0.4  # metres; of several units that fit, the one nearest to it is named
MIN_SPREAD = 0.017  # radians, root mean square, of the directions from which the head is seen
MAX_MISS = 0.35
MUCH_BETTER = 3.0  # ratio of misses, of those above `MIN_DOUBT`
MIN_DOUBT = 0.1
SAME_PLACE = 1e-3  # of the distance to the head; nobody builds two cameras into one another
SAME_TURN = 0.01  # largest difference of rotation entries
STEPS = 20  # points tried along each axis, for rigs whose axes are parallel
MAX_LISTED = 4


@dataclass(frozen=True)
class Meeting:
    """The point that cameras have in view in common, or what comes nearest to that.

    Attributes:
        miss: mean over all cameras of its squared distance from the frame's middle, 1 at the edge,
            and 1 where a camera cannot have taken it for a head; 1 in all if there is no point.
        sees: (C,) whether a camera can have taken it for a head.
        view: metres that a frame shows there, median.
        distance: metres to the cameras, median.
    """

    miss: float
    sees: Bool
    view: float
    distance: float

    @property
    def plausible(self) -> bool:
        """Whether the cameras can have recorded a head there."""
        return bool(self.miss <= MAX_MISS and 2 * self.sees.sum() > len(self.sees))


def check_rig(cameras: Mapping[str, Camera], head_scale: tuple[float, float]) -> list[str]:
    """Check that the cameras of the ingested frames can have recorded a head.

    Args:
        cameras: by serial number.
        head_scale: metres of a canonical unit, limits: for heads of another size than adults'.

    Returns:
        what is doubtful, a sentence each.

    Raises:
        UserError: the cameras cannot have recorded a head together; the sentence names the unit,
            direction or axes that would make it plausible.
    """
    if len(cameras) < MIN_CAMERAS:
        raise UserError(
            f"only camera {', '.join(cameras) or 'none'} is used, but a head is reconstructed from "
            f"{MIN_CAMERAS} at least; choose more with capture.ingest.cameras or the sheet's "
            "column cameras, or restore their calibration."
        )
    size = head_scale[0] / HEAD_SCALE, head_scale[1] / HEAD_SCALE
    poses = np.stack([camera.world_to_camera for camera in cameras.values()])
    meeting = find_meeting(cameras, poses, size)
    if not meeting.plausible:
        raise UserError(_say_implausible(cameras, poses, size))
    _check_copies(cameras, poses, meeting.distance)
    return _find_doubts(cameras, poses, size, meeting)


def find_meeting(
    cameras: Mapping[str, Camera], poses: Float64, size: tuple[float, float]
) -> Meeting:
    """The point that most cameras have nearest to the middle of their frame.

    Args:
        cameras: C, whose intrinsics count.
        poses: (C, 4, 4) world-to-camera, metres.
        size: smallest and largest head, multiples of an adult's.
    """
    low, high = size
    middle, step = _lines_of_sight(cameras)
    rotation = poses[:, :3, :3]
    centres = -np.einsum("cji,cj->ci", rotation, poses[:, :3, 3])
    axes = np.einsum("cji,cj->ci", rotation, middle)
    near, far = DISTANCES[0] * low, DISTANCES[1] * high
    along = centres[:, None] + axes[:, None] * np.geomspace(near, far, STEPS)[:, None]
    points = np.concatenate([along.reshape(-1, 3), _crossings(centres, axes)])
    local = np.einsum("cij,pj->pci", rotation, points) + poses[:, :3, 3]
    depth = local[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = local[..., :2] / depth[..., None] - middle[:, :2] / middle[:, 2:]
        off = np.abs(offset / step).max(axis=-1)
    view = 2 * depth * step.min(axis=1)
    sees = (off < 1) & (depth > near) & (depth < far)
    sees &= (view > VIEWS[0] * low) & (view < VIEWS[1] * high)
    rays = points[:, None] - centres
    rays /= np.maximum(np.linalg.norm(rays, axis=-1, keepdims=True), 1e-9)
    count = np.maximum(sees.sum(axis=1), 1)
    mean = (rays * sees[..., None]).sum(axis=1) / count[:, None]
    spread = np.sqrt(np.maximum(0, 1 - (mean**2).sum(axis=1)))
    miss = np.where(sees, off**2, 1.0).mean(axis=1)
    miss[spread < MIN_SPREAD] = 1.0
    best = int(miss.argmin())
    used = sees[best] if sees[best].any() else np.ones(len(poses), dtype=bool)
    return Meeting(
        float(miss[best]),
        sees[best] & (miss[best] < 1),
        float(np.median(view[best][used])),
        float(np.median(depth[best][used])),
    )


def _lines_of_sight(cameras: Mapping[str, Camera]) -> tuple[Float64, Float64]:
    """Directions (C, 3) to the middle of the frames, of length 1, and tangents (C, 2) from there
    to their edges; camera axes."""
    middle, step = [], []
    for camera in cameras.values():
        size = np.array([camera.width, camera.height])
        ray = np.linalg.solve(camera.intrinsics, [*(size / 2), 1.0])
        middle.append(ray / np.linalg.norm(ray))
        step.append(size / 2 / np.diag(camera.intrinsics)[:2])
    return np.array(middle), np.array(step)


def _crossings(centres: Float64, axes: Float64) -> Float64:
    """(P, 3) midpoints of closest approach of all pairs of lines that are not parallel."""
    first, second = np.triu_indices(len(centres), 1)
    between = centres[second] - centres[first]
    cosine = (axes[first] * axes[second]).sum(axis=1)
    used = cosine**2 < 1 - 1e-6
    first, second, between, cosine = first[used], second[used], between[used], cosine[used]
    by_first = (between * axes[first]).sum(axis=1)
    by_second = (between * axes[second]).sum(axis=1)
    sine = 1 - cosine**2
    start = centres[first] + axes[first] * ((by_first - cosine * by_second) / sine)[:, None]
    end = centres[second] + axes[second] * ((cosine * by_first - by_second) / sine)[:, None]
    return np.asarray((start + end) / 2, dtype=np.float64)


def _say_implausible(
    cameras: Mapping[str, Camera], poses: Float64, size: tuple[float, float]
) -> str:
    """The sentence on cameras that cannot have recorded a head."""
    cause = _find_cause(cameras, poses, size)
    told = (
        f"the calibration cannot be that of cameras around a head: of {len(cameras)} cameras no "
        "more than half see one point near the middle of their frame, from different sides, "
        f"{DISTANCES[0] * size[0]:g} to {DISTANCES[1] * size[1]:g} m away"
    )
    if cause:
        return f"{told}. It would be plausible if its matrices were {cause}: convert them."
    return (
        f"{told}. Its matrices must lead from the world to the camera (x right, y down, z forward) "
        "in metres, and its intrinsics must be those of the images: correct what is otherwise, or "
        "the crop (capture.ingest.crop_origin, crop_size); face.fit.head_scale is for heads of "
        "another size."
    )


def _find_cause(
    cameras: Mapping[str, Camera], poses: Float64, size: tuple[float, float]
) -> str | None:
    """What the matrices must be for the cameras to be plausible: a unit, a meaning, or both."""
    as_given = Reading("", lambda given: given)
    for readings, units in (((as_given,), UNITS), (READINGS, {"": 1.0}), (READINGS, UNITS)):
        found: dict[str, tuple[float, float]] = {}
        for reading, (unit, per_metre) in product(readings, units.items()):
            meeting = find_meeting(cameras, in_unit(reading.to_opencv(poses), per_metre), size)
            if meeting.plausible:
                told = [reading.cause] if reading.cause else []
                told += [f"in {unit}, in place of metres"] if unit else []
                usual = USUAL_VIEW * np.sqrt(size[0] * size[1])
                rank = round(meeting.miss, 2), round(abs(np.log(meeting.view / usual)), 1)
                found.setdefault(", and ".join(told), rank)
        if found:
            return min(found, key=lambda cause: found[cause])
    return None


def _check_copies(cameras: Mapping[str, Camera], poses: Float64, distance: float) -> None:
    """Raise `UserError` if two cameras have the same pose."""
    serials = list(cameras)
    centres = np.stack([camera.centre for camera in cameras.values()])
    for i, j in zip(*np.triu_indices(len(serials), 1), strict=True):
        near = np.linalg.norm(centres[i] - centres[j]) < SAME_PLACE * distance
        if near and np.abs(poses[i, :3, :3] - poses[j, :3, :3]).max() < SAME_TURN:
            raise UserError(
                f"the calibration has cameras {serials[i]} and {serials[j]} at the same place; "
                "restore the pose of the one that is wrong or leave it out with "
                "capture.ingest.cameras."
            )


def _find_doubts(
    cameras: Mapping[str, Camera], poses: Float64, size: tuple[float, float], meeting: Meeting
) -> list[str]:
    """Sentences on what may be meant so, but is seldom."""
    doubts = []
    if len(cameras) < MIN_JUDGES:
        doubts.append(
            f"there are {len(cameras)} cameras: a third is needed to tell which of them is wrong, "
            "so that the fit of the face cannot be judged."
        )
    aside = [serial for serial, sees in zip(cameras, meeting.sees, strict=True) if not sees]
    if aside:
        more = len(aside) - MAX_LISTED
        names = ", ".join(aside[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
        doubts.append(
            f"camera {names} does not have in view what the other cameras look at, "
            f"{meeting.distance:.2f} m away: check its calibration or leave it out with "
            "capture.ingest.cameras."
        )
    for reading in READINGS:
        miss = find_meeting(cameras, reading.to_opencv(poses), size).miss
        if meeting.miss > MIN_DOUBT and MUCH_BETTER * miss < meeting.miss:
            doubts.append(
                "the cameras' axes would meet far better if the calibration's matrices were "
                f"{reading.cause}; check it."
            )
            break
    return doubts
