"""Captures in the layouts of NeRSemble.

v2 (github.com/tobias-kirschstein/nersemble-data); a capture is one participant's folder:

    calibration/camera_params.json        world_2_cam per serial number, one shared intrinsics;
                                          ours: distortion, OpenCV's, shared or per serial number
    calibration/color_calibration.json    (3, terms) colour matrix per serial number
    sequences/<sequence>/images/cam_<serial>.mp4    or as `eavatar.capture.video` says
    sequences/BACKGROUND/image_<serial>.jpg    plates without the subject (optional)

Benchmark (github.com/tobias-kirschstein/nersemble-benchmark), <download>/nvs/<participant>: as v2
but for intrinsics per serial number, 1100×1604 images, no colour calibration, and masks in
sequences/<sequence>/alpha_maps/cam_<serial>.mp4. Held-out cameras are calibrated but have no
video. Written from the published description and downloader; no download was read here. That the
intrinsics refer to the 1100×1604 pixels is our reading, which the check of the principal point
guards. The monocular benchmark (512×512 crops of one camera) is no multi-view capture and refused.

v1 (github.com/tobias-kirschstein/nersemble); a capture is <download>/camera_params/<participant>,
the one folder that a participant has once:

    camera_params/<participant>/camera_params.json    as in v2
    color_correction/<participant>/<serial>.npy       affine (3 or 4, 4), see `colour.Affine`
    sequence_<sequence>_part-<n>/<participant>/<sequence>/cam_<serial>.mp4
    sequence_BACKGROUND_part-1/<participant>/BACKGROUND/image_<serial>.jpg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eavatar.cameras import Camera
from eavatar.capture.calibration import (
    finite_matrix,
    read_camera,
    read_intrinsics,
    refuse_unknown,
)
from eavatar.capture.colour import TERMS, Affine, Colour, Polynomial
from eavatar.capture.layouts import BACKGROUND, find_v1, list_v1_folders
from eavatar.capture.recording import Capture, FramesBySequence
from eavatar.capture.video import list_cameras, list_plates
from eavatar.errors import UserError
from eavatar.io import DAMAGED_ARRAY, read_json
from eavatar.lenses import Lens, read_lens

FULL_SIZE = (2200, 3208)  # the pixels that NeRSemble's intrinsics refer to
BENCHMARK_SIZE = (1100, 1604)


def read_v2(root: Path) -> Capture:
    """A participant of NeRSemble v2; `UserError` where it is malformed."""
    cameras, lenses = _read_cameras(root / "calibration" / "camera_params.json", FULL_SIZE)
    colours = _read_polynomials(root / "calibration" / "color_calibration.json", cameras)
    plates = list_plates([root / "sequences" / BACKGROUND])
    frames = _list_frames(root, "images")
    return Capture(root, cameras, colours, frames, plates, {}, {}, lenses=lenses)


def read_benchmark(root: Path) -> Capture:
    """A participant of the benchmark for novel views; `UserError` where it is malformed."""
    frames = _list_frames(root, "images")
    recorded = {serial for by_serial in frames.values() for serial in by_serial}
    path = root / "calibration" / "camera_params.json"
    stored, lenses = _read_cameras(path, BENCHMARK_SIZE)
    cameras = {serial: c.resize(*FULL_SIZE) for serial, c in stored.items() if serial in recorded}
    lenses = {serial: lens.resize(*FULL_SIZE) for serial, lens in lenses.items()}
    if not cameras:
        raise UserError(f"{root}: no camera has both a calibration and a video; download it again.")
    masks = _list_frames(root, "alpha_maps")
    return Capture(root, cameras, None, frames, {}, masks, {}, lenses=lenses)


def read_benchmark_cameras(root: Path) -> dict[str, Camera]:
    """All cameras of a participant of the benchmark, in pixels of its images; also those whose
    videos are kept back. `UserError` where the calibration is malformed."""
    return _read_cameras(root / "calibration" / "camera_params.json", BENCHMARK_SIZE)[0]


def read_v1(root: Path) -> Capture:
    """A participant of NeRSemble v1; `UserError` where it is malformed."""
    root = find_v1(root)
    cameras, lenses = _read_cameras(root / "camera_params.json", FULL_SIZE)
    folders = list_v1_folders(root)
    plates = list_plates(folders.pop(BACKGROUND, []))
    if not folders:
        raise UserError(
            f"{root.parent.parent} holds no video of participant {root.name} "
            f"(sequence_<sequence>_part-<n>/{root.name}/<sequence>/cam_<serial>.mp4)."
        )
    frames = {name: list_cameras(parts) for name, parts in folders.items()}
    colours = _read_affines(root.parent.parent / "color_correction" / root.name, cameras)
    return Capture(root, cameras, colours, frames, plates, {}, {}, lenses=lenses)


def _list_frames(root: Path, kind: str) -> FramesBySequence:
    """The videos of all sequences in the folders of one kind: images or alpha_maps."""
    folders = sorted(path for path in root.glob(f"sequences/*/{kind}") if path.is_dir())
    if not folders:
        raise UserError(
            f"{root / 'sequences'} holds no sequence (<sequence>/{kind}/cam_<serial>.mp4)."
        )
    return {folder.parent.name: list_cameras([folder]) for folder in folders}


def _read_cameras(path: Path, size: tuple[int, int]) -> tuple[dict[str, Camera], dict[str, Lens]]:
    """The cameras of camera_params.json, and the lenses of those with distortion.

    Intrinsics and distortion are shared or by serial number.
    """
    content = read_json(path, "the camera calibration")
    table = content.get("world_2_cam") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} lacks the table 'world_2_cam' of serial numbers and matrices.")
    refuse_unknown(content, ("world_2_cam", "intrinsics", "distortion"), path)
    cameras, lenses = {}, {}
    for serial, rows in sorted(table.items()):
        where = f"{path}: camera {serial}"
        intrinsics = read_intrinsics(_own(content, "intrinsics", serial, where), *size, where)
        camera = cameras[serial] = read_camera(intrinsics, rows, *size, where)
        lens = read_lens(camera, _own(content, "distortion", serial, where), where)
        if lens:
            lenses[serial] = lens
    return cameras, lenses


def _own(content: Mapping[str, Any], key: str, serial: str, where: str) -> Any:
    """What a camera has of something shared or by serial number."""
    given = content.get(key)
    if not isinstance(given, dict):
        return given
    if serial not in given:
        raise UserError(f"{where}: the table '{key}' lacks it; restore the file.")
    return given[serial]


def _read_polynomials(path: Path, cameras: Mapping[str, Camera]) -> dict[str, Colour]:
    if not path.exists():
        return {}
    content = read_json(path, "the colour calibration")
    if not isinstance(content, dict):
        raise UserError(f"{path} is no table of serial numbers and colour matrices; restore it.")
    colours: dict[str, Colour] = {}
    for serial in cameras:
        rows = content.get(serial)
        if rows is None:
            raise UserError(f"{path} lacks camera {serial}.")
        first = rows[0] if isinstance(rows, list) and rows else None
        terms = len(first) if isinstance(first, list) else 0
        if terms not in TERMS:
            raise UserError(
                f"{path}: the colour matrix of camera {serial} has {terms} columns, expected one "
                f"of {', '.join(map(str, TERMS))}; restore the file."
            )
        colours[serial] = Polynomial(finite_matrix(rows, (3, terms), f"{path}: camera {serial}"))
    return colours


def _read_affines(folder: Path, cameras: Mapping[str, Camera]) -> dict[str, Colour]:
    if not folder.is_dir():
        return {}
    return {serial: _read_affine(folder / f"{serial}.npy") for serial in cameras}


def _read_affine(path: Path) -> Affine:
    if not path.is_file():
        raise UserError(f"the colour correction of a camera is missing: {path} does not exist.")
    try:
        with path.open("rb") as file:  # np.load would also take a zip archive for an array
            content = np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise UserError(f"{path} is no readable array; copy it again from its source.") from error
    rows = content.shape[0] if getattr(content, "ndim", 0) == 2 else 3
    return Affine(finite_matrix(content, (4 if rows == 4 else 3, 4), str(path))[:3])
