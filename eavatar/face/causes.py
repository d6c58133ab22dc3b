"""Why detections do not bear out a fit: what would make the cameras agree.

Other meanings of the calibration are tried on a few timesteps, by how much of the detections then
agree with one point for each landmark. Letters: T timesteps, C cameras, L landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from eavatar.arrays import Float64, Int64
from eavatar.cameras import Camera
from eavatar.conventions import HEAD_SCALE, READINGS, find_unit
from eavatar.errors import UserError
from eavatar.face.triangulation import geman_mcclure, project_points, triangulate

EXCHANGED_GATE = 0.01  # of a frame's side: two cameras' views differ by more than detections err
TIMESTEPS = 6  # that are looked at, those that most cameras see
CHOSEN = slice(None, None, 4)  # landmarks: 17 of all parts of a face
MIN_AGREEMENT = 0.5  # of a right calibration; with a third of outliers it is about 0.55
MAX_DOUBTFUL = 0.6  # a right calibration has 0.8; another meaning of it at most 0.45
MIN_GAIN = 0.2  # in agreement; neighbouring cameras gain less by an exchange
MAX_OWN = 0.5  # of a camera's agreement with another's calibration, that with its own
MIN_WITNESSES = 3
MAX_EXCHANGED = 16  # cameras of which all pairs are tried; of more, there are enough to outvote two
MAX_SEQUENCES = 3  # in which an explanation is looked for
MAX_LISTED = 4


@dataclass(frozen=True)
class Evidence:
    """Detections of some timesteps, by all cameras.

    Attributes:
        points: (T, C, L, 2) pixels.
        confidence: (T, C, L), 0 = not seen.
        cameras: (C,) indices of the calibrated cameras.
        gate: pixels at which a detection counts a quarter.
    """

    points: Float64
    confidence: Float64
    cameras: Int64
    gate: float

    def agreement(self, projections: Float64) -> tuple[float, float]:
        """The sum of the weights with which detections agree, and that of their confidences.

        Args:
            projections: (all cameras, 3, 4).
        """
        chosen = self.confidence * ((self.confidence > 0).sum(axis=1, keepdims=True) >= 2)
        views = projections[self.cameras]
        _, weights = triangulate(views, self.points, self.confidence, self.gate)
        return float(weights.sum()), float(chosen.sum())

    def crossed(self, projections: Float64) -> tuple[Float64, Float64]:
        """How the detections of each camera agree with the calibration of each other one.

        Args:
            projections: (N, 3, 4) of all cameras.

        Returns:
            (N, N) sums of weights, of a camera's detections by the calibrations, and (N,) sums of
            confidences.
        """
        count = len(projections)
        world, support = triangulate(
            projections[self.cameras], self.points, self.confidence, self.gate
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # what nobody saw is at the origin
            pixels, depth = project_points(projections, world)
        sums, total = np.zeros((count, count)), np.zeros(count)
        for place, camera in enumerate(self.cameras):
            used = self.confidence[:, place] * (support > 0)
            squared = ((pixels - self.points[:, place, None]) ** 2).sum(axis=-1)
            weight = np.where(depth > 0, geman_mcclure(squared, self.gate)[1], 0.0)
            sums[camera] = np.einsum("tl,tdl->d", used, weight)
            total[camera] = used.sum()
        return sums, total


def gather(
    points: Float64, confidence: Float64, cameras: Int64, gate: float, timesteps: int = TIMESTEPS
) -> Evidence:
    """The timesteps of a sequence that most cameras see, spread over time; see `Evidence`."""
    seen = (confidence > 0).any(axis=2).sum(axis=1)
    parts = np.array_split(np.arange(len(points)), min(timesteps, len(points)))
    used = [int(part[seen[part].argmax()]) for part in parts]
    return Evidence(points[used][:, :, CHOSEN], confidence[used][:, :, CHOSEN], cameras, gate)


def check_agreement(cameras: Mapping[str, Camera], evidence: Sequence[Evidence]) -> list[str]:
    """Check that the detections of most cameras agree, as the calibration is.

    Args:
        cameras: by serial number.
        evidence: of the sequences.

    Returns:
        the cameras that most others outvote, the worst first.

    Raises:
        UserError: as `check_exchanged` and `check_readings`.
    """
    serials, projections = list(cameras), _projections(cameras, _poses(cameras))
    check_exchanged(serials, projections, evidence)
    check_readings(cameras, evidence)
    return _find_outvoted(serials, projections, evidence)


def check_exchanged(
    serials: Sequence[str], projections: Float64, evidence: Sequence[Evidence]
) -> None:
    """Check that no camera's detections agree with the calibration of another one.

    Args:
        serials: of the N cameras.
        projections: (N, 3, 4) world metres to pixels.
        evidence: of the sequences.

    Raises:
        UserError: they do, and not with their own.
    """
    found = _find_exchanged(serials, projections, evidence)
    if not found:
        return
    (first, second), *_ = found.items()
    if found.get(second) == first:
        raise UserError(
            f"the calibrations or the videos of cameras {first} and {second} are exchanged: what "
            "each shows fits the other's calibration; give each its own."
        )
    raise UserError(
        f"what camera {first} shows fits the calibration of camera {second}, not its own: give it "
        f"its own calibration and its own video, which may be a copy of that of {second}, or leave "
        "it out with capture.ingest.cameras."
    )


def _find_exchanged(
    serials: Sequence[str], projections: Float64, evidence: Sequence[Evidence]
) -> dict[str, str]:
    """The cameras whose detections agree with another one's calibration, and which that is.

    None where fewer than `MIN_WITNESSES` agree with their own: two agree on anything.
    """
    crossed = [each.crossed(projections) for each in evidence]
    total = np.sum([part for _, part in crossed], axis=0)
    agreement = np.sum([sums for sums, _ in crossed], axis=0) / np.maximum(total, 1e-9)[:, None]
    if (np.diag(agreement) > MIN_AGREEMENT).sum() < MIN_WITNESSES:
        return {}
    return {
        serials[camera]: serials[row.argmax()]
        for camera, row in enumerate(agreement)
        if row.max() > MIN_AGREEMENT and row[camera] < MAX_OWN * row.max()
    }


def check_readings(cameras: Mapping[str, Camera], evidence: Sequence[Evidence]) -> None:
    """Check that the detections do not agree far better in another meaning of the calibration.

    Args:
        cameras: by serial number.
        evidence: of the sequences.

    Raises:
        UserError: they do; the sentence says in which.
    """
    poses, evidence = _poses(cameras), evidence[:: -(-len(evidence) // MAX_SEQUENCES)]
    given = _agreement(cameras, poses, evidence)
    if given > MAX_DOUBTFUL:
        return
    found: dict[str, float] = {}
    for reading in READINGS:
        text = f"if the calibration's matrices were {reading.cause}: convert them"
        agreement = _agreement(cameras, reading.to_opencv(poses), evidence)
        found[text] = max(agreement, found.get(text, 0.0))
    serials = list(cameras)
    for first, second in combinations(range(len(serials)), 2):
        if len(serials) > MAX_EXCHANGED:
            break
        order = np.arange(len(serials))
        order[[first, second]] = second, first
        names = f"{serials[first]} and {serials[second]}"
        text = f"if cameras {names} were exchanged: give each its own calibration"
        found[text] = _agreement(cameras, poses[order], evidence)
    best = max(found, key=lambda text: found[text])
    if found[best] > max(MIN_AGREEMENT, given + MIN_GAIN):
        raise UserError(
            f"{given:.0%} of the detections in different cameras agree, but {found[best]:.0%} "
            f"would {best}."
        )


def check_scale(scale: float, head_scale: tuple[float, float]) -> None:
    """Check that a head can be as large as that.

    Args:
        scale: metres of a canonical unit.
        head_scale: its limits.

    Raises:
        UserError: no head is; the sentence names the unit that would be right, if there is one.
    """
    low, high = head_scale
    if low <= scale <= high:
        return
    unit = find_unit(scale / HEAD_SCALE)
    cause = (
        f"the calibration seems to be in {unit}: convert it to metres"
        if unit
        else "likely causes are a calibration that is not in metres (structure from motion gives "
        "any unit) and intrinsics of images of another size or zoom"
    )
    raise UserError(
        f"the head would have a scale of {scale:.3g} m per unit of the morphable model, but "
        f"face.fit.head_scale admits {low:g} to {high:g}: {cause}."
    )


def missing_face(path: Path, others: bool, outvoted: Sequence[str]) -> UserError:
    """The error of a sequence without a face.

    Args:
        path: its detections.
        others: whether other sequences have one.
        outvoted: cameras that disagree with most.
    """
    causes = (
        "exclude the sequence (capture.ingest.exclude), or look whether its videos are of the same "
        "person, time and rig as the others"
        if others
        else say_causes(outvoted)
    )
    return UserError(f"{path} has no face that two cameras see at once: {causes}.")


def say_causes(outvoted: Sequence[str]) -> str:
    """What to check where the cameras do not agree and no other meaning explains it."""
    first = f", first of camera {', '.join(outvoted)}," if outvoted else ""
    return (
        f"check that the calibration{first} is that of this recording, in metres and OpenCV's "
        "axes, that its intrinsics are those of the images, that the cameras are synchronised, and "
        "that landmarks made elsewhere are those of these videos"
    )


def _find_outvoted(
    serials: Sequence[str], projections: Float64, evidence: Sequence[Evidence]
) -> list[str]:
    """The cameras that agree less than half as much as most, the worst first."""
    crossed = [each.crossed(projections) for each in evidence]
    total = np.sum([part for _, part in crossed], axis=0)
    own = np.sum([np.diag(sums) for sums, _ in crossed], axis=0) / np.maximum(total, 1e-9)
    limit = MAX_OWN * np.median(own[total > 0]) if (total > 0).any() else 0.0
    return [serials[i] for i in np.argsort(own) if total[i] > 0 and own[i] < limit][:MAX_LISTED]


def _agreement(
    cameras: Mapping[str, Camera], poses: Float64, evidence: Sequence[Evidence]
) -> float:
    """The part of the detections, by weight, that agree; 0 to 1."""
    projections = _projections(cameras, poses)
    sums = np.sum([each.agreement(projections) for each in evidence], axis=0)
    return float(sums[0] / max(sums[1], 1e-9))


def _poses(cameras: Mapping[str, Camera]) -> Float64:
    return np.stack([camera.world_to_camera for camera in cameras.values()])


def _projections(cameras: Mapping[str, Camera], poses: Float64) -> Float64:
    return np.stack([camera.intrinsics for camera in cameras.values()]) @ poses[:, :3]
