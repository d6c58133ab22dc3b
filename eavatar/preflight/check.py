"""A subject's inputs, opened before anything long runs: all their faults at once.

The rule `check` stands before every long rule of a subject; `doctor` looks at the same inputs of
all subjects, and at the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from eavatar.backends import MATTING
from eavatar.cameras import Camera
from eavatar.capture.backends.provided import check_first_mask
from eavatar.capture.calibration import check_sizes
from eavatar.capture.captures import open_capture, open_masks
from eavatar.capture.ingest import frame_cameras, in_threads, select_cameras
from eavatar.capture.layouts import check_names, list_sequence_names
from eavatar.capture.matting import without_plates
from eavatar.capture.plain import CROPS
from eavatar.capture.recording import Capture, check_size, check_videos, explain_rate
from eavatar.capture.rig import check_rig
from eavatar.capture.video import CameraFrames, Header, read_raw_image
from eavatar.capture.yuv import HDR_DOUBT
from eavatar.errors import UserError
from eavatar.face.backends.provided import ProvidedLandmarks, read_provided
from eavatar.face.causes import EXCHANGED_GATE, check_exchanged, gather
from eavatar.face.model_arrays import SUPPORTED
from eavatar.face.morphable import (
    MorphableModel,
    describe_morphable_model,
    read_morphable_model,
)
from eavatar.io import atomic
from eavatar.lenses import Lens
from eavatar.preflight.detections import Sight, find_detection_fault, find_odd_cameras
from eavatar.preflight.editions import describe_covered
from eavatar.preflight.findings import Examination
from eavatar.preflight.generators import Deployment, examine_generators
from eavatar.preflight.weights import examine_backbones, examine_backends
from eavatar.prior.backends.provided import read_head
from eavatar.settings import (
    BackendSettings,
    GenerateSettings,
    IngestSettings,
    LandmarkSettings,
    MatteSettings,
    check_patterns,
    select,
)
from eavatar.weights import Net

NEARLY_BLACK = 16  # of 8-bit levels: all that 12 of 16 bits come to

View = tuple[str, str]
"""A sequence and the serial number of a camera."""

MAX_LISTED = 4  # names in a sentence, before "and n more"
MODEL_SOURCE = (
    "Get BFM 2017 or 2009 by the licence form at faces.dmi.unibas.ch (not to be passed on), or "
    "without a form FaceXModel of github.com/ICT-VGL/ICT-FaceKit (MIT licence), gnm_head.npz of "
    "huggingface.co/google/gnm-v3 (Apache-2.0) or FLAME 2023 Open of flame.is.tue.mpg.de "
    "(CC BY 4.0), put it there, or name another file in the setting morphable_model or the sheet's "
    "column of that name."
)


@dataclass(frozen=True)
class Inputs:
    """Where a subject's inputs are, by the sample sheet's columns; None where there is none.

    Attributes:
        capture: raw capture.
        landmarks: folder of provided detections.
        mattes: folder of provided alpha videos.
        prior: a head mesh made elsewhere.
    """

    capture: Path
    landmarks: Path | None
    mattes: Path | None
    prior: Path | None


@dataclass(frozen=True)
class InputSettings:
    """The blocks that say which inputs are needed, and how large heads are.

    Attributes:
        ingest: chooses sequences and cameras.
        matte: names a backend.
        landmarks: names a backend.
        prior: names a backend.
        head_scale: metres of a canonical unit, limits (`face.fit.head_scale`).
    """

    ingest: IngestSettings
    matte: MatteSettings
    landmarks: LandmarkSettings
    prior: GenerateSettings
    head_scale: tuple[float, float]

    @property
    def choices(self) -> tuple[BackendSettings, ...]:
        """The blocks that choose a backend."""
        return self.matte, self.landmarks, self.prior


@dataclass(frozen=True)
class Inventory:
    """What a subject's chosen videos hold.

    Attributes:
        cameras: serial numbers.
        headers: by sequence; without those of which no video is readable.
        prepared: cropped and thinned out in time already.
        calibration: serial number to camera of the full-size image; empty if it is at fault.
        lenses: of the cameras whose images are distorted.
        frames: serial number to camera of the ingested frames, where each camera has a crop of its
            own; else empty.
    """

    cameras: tuple[str, ...]
    headers: Mapping[str, Header]
    prepared: bool
    calibration: Mapping[str, Camera]
    lenses: Mapping[str, Lens]
    frames: Mapping[str, Camera]


def check(
    settings: InputSettings,
    inputs: Inputs,
    morphable_model: Path,
    backbones: Mapping[Net, bool],
    deployment: Deployment,
    covered: Sequence[str],
    output: Path,
) -> Path:
    """Open all inputs and weights that the chosen backends need and write what was found.

    Args:
        settings: the blocks that say what is needed.
        inputs: what there is.
        morphable_model: the subject's.
        backbones: of LPIPS, that are used, and whether the absence of each stops a run.
        deployment: where a generator's environment comes from.
        covered: digests of the parts that the check stands for, see `eavatar.preflight.editions`.
        output: text file, a line for each item.

    Returns:
        ``output``.

    Raises:
        UserError: all faults: what is wrong, where, and what to do.
    """
    found = Examination()
    for name in ("capture", "landmarks", "mattes", "prior"):
        path = getattr(inputs, name)
        if path is not None and not path.exists():
            found.add(name, "missing", f"the {name} {path} does not exist; correct its path.")
    examine_inputs(found, settings, inputs)
    examine_model(found, morphable_model)
    examine_backends(found, [(choice.chosen, choice.own) for choice in settings.choices])
    examine_generators(found, [(settings.prior.chosen, deployment)])
    examine_backbones(found, backbones)
    if found.faults:
        sentences = " ".join(finding.text for finding in found.faults)
        count = len(found.faults)
        raise UserError(sentences if count == 1 else f"{count} inputs are faulty: {sentences}")
    with atomic(output) as temporary:
        temporary.write_text(f"{found.table()}\n\n{describe_covered(covered)}\n")
    return output


def examine_inputs(found: Examination, settings: InputSettings, inputs: Inputs) -> Inventory | None:
    """Look at the capture and at what is provided with it; what the capture holds, if readable.

    A path that does not exist is passed over: whoever gave it says so.

    Args:
        found: receives the findings.
        settings: the blocks that say what is needed.
        inputs: what there is.
    """
    names = None
    if inputs.capture.exists():
        names = found.attempt("capture", None, list_sequence_names, inputs.capture)
    sequences = select(names or [], settings.ingest.sequences, settings.ingest.exclude)
    inventory = None
    if names is not None:
        inventory = _examine_capture(found, settings, inputs.capture, names, sequences)
    for choice in settings.choices:
        if column := choice.chosen.column:
            path = _given(found, getattr(inputs, column), choice)
            if path:
                PROVIDED[column](found, settings, path, sequences, inventory)
        _warn_of_unused(found, inputs, choice)
    return inventory


def examine_model(found: Examination, path: Path) -> MorphableModel | None:
    """Look at a morphable model; the model, if it is readable."""
    item = "morphable model"
    try:
        model = read_morphable_model(path)
    except UserError as error:
        another = not path.exists() or SUPPORTED in str(error)
        text = f"{error} {MODEL_SOURCE}" if another else str(error)
        found.add(item, "wrong" if path.exists() else "missing", text)
        return None
    size = path.stat().st_size / 2**20
    found.add(
        item,
        "ok",
        f"{path}: {len(model.mean)} vertices, {model.identity_basis.shape[2]} identity and "
        f"{model.expression_basis.shape[2]} expression components, {size:.0f} MiB; "
        f"{describe_morphable_model(path)}",
    )
    return model


# --- capture ------------------------------------------------------------------------------------


def _examine_capture(
    found: Examination,
    settings: InputSettings,
    root: Path,
    names: Sequence[str],
    sequences: Sequence[str],
) -> Inventory | None:
    """Look at the calibration, at every camera of the chosen sequences, and at the plates.

    Args:
        found: receives the findings.
        settings: the blocks that say what is needed.
        root: the capture's folder.
        names: all sequences of the capture.
        sequences: the chosen ones.
    """
    item, ingest = "capture", settings.ingest
    found.attempt(item, None, _check_split, ingest, names, sequences)
    capture = found.attempt(item, None, open_capture, root)
    if capture is None:
        return None
    found.attempt(item, None, select_cameras, ingest, capture)  # also misses the colours
    before = len(found.faults)
    _examine_calibration(found, settings, capture)
    calibration = capture.cameras if len(found.faults) == before else {}
    cameras = select(list(capture.cameras), ingest.cameras)
    views = [(sequence, serial) for sequence in sequences for serial in cameras]
    views += _uncalibrated(capture, sequences, ingest)
    headers: dict[View, Header] = {}
    faults = len(found.faults)
    for sequence, serial in views:
        read = found.attempt(sequence, None, check_videos, capture, [sequence], [serial])
        if read:
            headers[sequence, serial] = read[sequence][serial]
    _examine_agreement(found, capture, headers)
    _warn_of_hdr(found, capture, headers)
    _examine_ends(found, capture, list(headers))
    if MATTING[settings.matte.backend].needs_plates:
        _examine_plates(found, capture, cameras)
    usual = _find_usual(headers, lambda view: view[0])
    if len(found.faults) == faults:
        for sequence, header in usual.items():
            size = f"{header.width}×{header.height} px"
            text = f"{len(cameras)} cameras × {header.frames} frames, {size}"
            found.add(sequence, "ok", text)
    frames = frame_cameras(ingest, capture) if capture.crops and calibration else {}
    return Inventory(tuple(cameras), usual, capture.prepared, calibration, capture.lenses, frames)


def _examine_calibration(found: Examination, settings: InputSettings, capture: Capture) -> None:
    """Look whether the calibration is that of cameras around a head."""
    cameras = found.attempt("capture", None, frame_cameras, settings.ingest, capture)
    if not cameras:  # which the choice of cameras has said
        return
    found.attempt("capture", None, check_sizes, capture.cameras, str(capture.root))
    doubts = found.attempt("capture", None, check_rig, cameras, settings.head_scale)
    for doubt in doubts or []:
        found.add("capture", "warning", doubt)
    if capture.crops and not (capture.root / CROPS).exists():
        found.add(
            "capture",
            "warning",
            f"{capture.root} has no {CROPS}: the square in the middle of each image is taken; run "
            "'eavatar find-crops' on it for one around the head.",
        )
    distorted = [serial for serial in cameras if serial in capture.lenses]
    if distorted:
        count = f"{len(distorted)} of {len(cameras)} cameras"
        found.add("lenses", "ok", f"{count} have distortion, which ingest takes out")


def _uncalibrated(capture: Capture, sequences: Sequence[str], ingest: IngestSettings) -> list[View]:
    """A sequence and the serial number of each camera that recorded but has no calibration."""
    first: dict[str, str] = {}
    for sequence in sequences:
        for serial in set(capture.frames.get(sequence, {})) - set(capture.cameras):
            first.setdefault(serial, sequence)
    return [(first[serial], serial) for serial in select(sorted(first), ingest.cameras)]


def _check_split(ingest: IngestSettings, names: Sequence[str], sequences: Sequence[str]) -> None:
    check_patterns("sequences", names, ingest.sequences, ingest.exclude)
    check_names(sequences)
    if not sequences:
        raise UserError(
            f"capture.ingest.sequences {list(ingest.sequences)} (or the sheet's column sequences) "
            f"and exclude {list(ingest.exclude)} leave none of the sequences {list(names)}; "
            "change them."
        )
    held_out = select(sequences, ingest.held_out)
    if not ingest.held_out:  # cameras are, instead: the settings demand it
        return
    if not held_out or len(held_out) == len(sequences):
        which = "no sequence is" if not held_out else "all sequences are"
        raise UserError(
            f"{which} held out for testing: capture.ingest.held_out is {list(ingest.held_out)} and "
            f"the sequences are {list(sequences)}; training needs some and evaluation needs some."
        )


def _find_usual(headers: Mapping[View, Header], group: Callable[[View], Any]) -> dict[Any, Header]:
    """What most views of each group have, and of those the median duration.

    The groups are in the order of their first views.
    """
    groups: dict[Any, list[Header]] = {}
    for view, header in headers.items():
        groups.setdefault(group(view), []).append(header)
    usual = {}
    for key, all_of_it in groups.items():
        common = Counter(all_of_it).most_common(1)[0][0]
        alike = sorted(
            (header for header in all_of_it if header == common), key=lambda header: header.seconds
        )
        usual[key] = alike[(len(alike) - 1) // 2]
    return usual


def _examine_agreement(
    found: Examination, capture: Capture, headers: Mapping[View, Header]
) -> None:
    """Find the videos that differ from most in size, or in their frames' times in a sequence."""
    sizes = {view: Header(header.width, header.height, 0) for view, header in headers.items()}
    usual_sizes = _find_usual(sizes, lambda view: capture.full_size(view[1]))
    of_sequences = _find_usual(headers, lambda view: view[0])
    for (sequence, serial), header in headers.items():
        size, usual = usual_sizes[capture.full_size(serial)], of_sequences[sequence]
        path = capture.frames[sequence][serial].paths[0]
        if (header.width, header.height) != (size.width, size.height):
            found.add(
                sequence,
                "wrong",
                f"{path} has {header.width}×{header.height} pixels but most videos have "
                f"{size.width}×{size.height}; store all at one size.",
            )
        if (header.frames, header.gaps) != (usual.frames, usual.gaps):
            found.add(
                sequence,
                "wrong",
                f"{path} has {header.frames} frames (skipped before: {list(header.gaps)}) but most "
                f"cameras of {sequence} have {usual.frames} (skipped before: {list(usual.gaps)}); "
                "the videos of a sequence must be synchronised: copy it again or leave the camera "
                "out with capture.ingest.cameras or the sheet's column cameras.",
            )
        elif fault := explain_rate(path, header, usual, sequence):
            found.add(sequence, "wrong", fault)


def _warn_of_hdr(found: Examination, capture: Capture, headers: Mapping[View, Header]) -> None:
    """Tell of videos whose colours are not what they would be on a screen."""
    wide = [view for view, header in headers.items() if header.hdr]
    if wide:
        sequence, serial = wide[0]
        path, transfer = capture.frames[sequence][serial].paths[0], headers[wide[0]].hdr
        found.add(
            "capture",
            "warning",
            f"{len(wide)} of {len(headers)} videos have a high dynamic range, the first {path} "
            f"({transfer}): their {HDR_DOUBT}.",
        )


def _examine_ends(found: Examination, capture: Capture, clips: Sequence[View]) -> None:
    """Decode the first and last frame of videos, given by sequence and serial number."""

    def fault(clip: View) -> str | None:
        try:
            decode_ends(capture.frames[clip[0]][clip[1]])
        except UserError as error:
            return str(error)
        return None

    sentences = in_threads(fault, clips, f"first and last frames {found.subject}".strip())
    for (sequence, _), sentence in zip(clips, sentences, strict=True):
        if sentence:
            found.add(sequence, "wrong", sentence)


def decode_ends(clip: CameraFrames) -> None:
    """Decode the first frame and the last; of a video also what the last depends on.

    Raises:
        UserError: one of them cannot be decoded, or both are images of fewer bits than their files.
    """
    if not clip.is_video:
        _check_depth([clip.paths[0], clip.paths[-1]])
        return
    path = clip.paths[0]
    with closing(clip.decode()) as frames:  # type: ignore[type-var]
        next(frames)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            last = max((entry.timestamp for entry in stream.index_entries), default=0)
            container.seek(last, stream=stream)
            whole = [not frame.is_corrupt for frame in container.decode(stream)]
    except av.FFmpegError as error:
        raise UserError(
            f"the last frame of {path} cannot be decoded ({error.strerror}); copy it again from "
            "its source."
        ) from error
    if not whole or not whole[-1]:
        raise UserError(f"the last frame of {path} is damaged; copy it again from its source.")


def _check_depth(paths: Sequence[Path]) -> None:
    """Raise `UserError` if images cannot be read, or use the lowest of 16 bits alone."""
    brightest = max(int(read_raw_image(path).max()) for path in paths)
    stored = np.asarray(cv2.imread(str(paths[0]), cv2.IMREAD_UNCHANGED))
    if brightest < NEARLY_BLACK and stored.dtype == np.uint16 and stored.any():
        raise UserError(
            f"{paths[0]} has 16 bits but no value above {stored.max()}, as of a camera of fewer "
            "bits; multiply the values of all images so that white is 65535."
        )


def _examine_plates(found: Examination, capture: Capture, cameras: Sequence[str]) -> None:
    item, faults = "plates", len(found.faults)
    bare = [serial for serial in cameras if serial not in capture.plates]
    if bare:
        folders = {path.parent for path in capture.plates.values()}
        folder = folders.pop() if folders else capture.root / "sequences" / "BACKGROUND"
        found.add(
            item,
            "missing",
            f"{folder} has no background plate for camera {_some(bare)} (image_<camera>.jpg); "
            f"restore it or choose capture.matte.backend {without_plates()}.",
        )
    for serial in sorted(set(cameras) - set(bare)):
        path = capture.plates[serial]
        image = found.attempt(item, path, read_raw_image, path)
        if image is not None:
            size = (image.shape[1], image.shape[0])
            found.attempt(item, None, check_size, path, *size, capture.full_size(serial))
    if len(found.faults) == faults:
        found.add(item, "ok", f"{len(cameras)} background plates")


# --- what is provided ---------------------------------------------------------------------------


def _given(found: Examination, path: Path | None, choice: BackendSettings) -> Path | None:
    """The path of the column that a backend needs; a finding if the column is empty."""
    backend, setting = choice.chosen, choice.registry.setting
    if path is None:
        found.add(
            str(backend.column),
            "missing",
            f"{setting} is '{backend.name}', but the sample sheet's column '{backend.column}' is "
            "empty; fill it in or choose another value for the setting.",
        )
        return None
    return path if path.exists() else None


def _warn_of_unused(found: Examination, inputs: Inputs, choice: BackendSettings) -> None:
    """A finding for each input that another backend than the chosen one would read."""
    columns = {backend.column for backend in choice.registry.values()}
    for column in sorted(filter(None, columns - {choice.chosen.column})):
        path = getattr(inputs, column)
        if path is not None:
            found.add(
                column,
                "warning",
                f"{path} is not used, as {choice.registry.setting} is '{choice.chosen.name}'; an "
                "overlay named by --configfile goes before those of the sample sheet.",
            )


def _examine_mattes(
    found: Examination,
    settings: InputSettings,
    folder: Path,
    sequences: Sequence[str],
    inventory: Inventory | None,
) -> None:
    """Look at provided alpha: a video for each view, as long as the colour video."""
    item = "mattes"
    mattes = found.attempt(item, folder, open_masks, folder)
    if mattes is None:
        return
    faults = len(found.faults)
    if inventory is not None and mattes.prepared != inventory.prepared:
        which = "is" if mattes.prepared else "is not"
        found.add(
            item,
            "wrong",
            f"{folder} {which} cropped and thinned out in time already, unlike the capture; give "
            "masks of the capture's own images.",
        )
        return
    for sequence in sequences or mattes.frames:
        clips = mattes.frames.get(sequence, {})
        cameras = list(clips) if inventory is None else inventory.cameras
        gone = [serial for serial in cameras if serial not in clips]
        if gone or not clips:
            found.add(
                item,
                "missing",
                f"{folder}/{sequence} has no alpha of camera {_some(gone) or 'any'} "
                f"({sequence}/cam_<camera>.mp4); restore it or choose another value for "
                "capture.matte.backend.",
            )
        for serial in sorted(set(cameras) & set(clips)):
            colour = inventory.headers.get(sequence) if inventory else None
            full = inventory.calibration.get(serial) if inventory else None
            found.attempt(item, None, _check_matte, clips[serial], full, colour)
    if len(found.faults) == faults:
        found.add(item, "ok", f"{folder}: {len(sequences)} sequences")


def _check_matte(clip: CameraFrames, full: Camera | None, colour: Header | None) -> None:
    """Raise `UserError` unless a mask's video has the size and frames of the colour video.

    The first frame and the last are decoded.

    Args:
        clip: the masks of a view.
        full: camera of the full-size image; None if it is not known.
        colour: what the view's colour video holds; None if that is not known.
    """
    header, path = clip.header(), clip.paths[0]
    if full:
        check_size(path, header.width, header.height, (full.width, full.height))
    # Images have no times, and who mattes frame by frame writes videos of even ones.
    if colour and (header.frames != colour.frames or header.gaps not in ((), colour.gaps)):
        raise UserError(
            f"{path} has {header.frames} frames (skipped before: {list(header.gaps)}) but the "
            f"colour videos have {colour.frames} (skipped before: {list(colour.gaps)}); give the "
            "masks of this recording, one for each of its frames."
        )
    decode_ends(clip)
    with closing(clip.decode()) as frames:  # type: ignore[type-var]
        check_first_mask(path, next(frames)[1])


def _examine_landmarks(
    found: Examination,
    settings: InputSettings,
    folder: Path,
    sequences: Sequence[str],
    inventory: Inventory | None,
) -> None:
    """Look at provided landmarks: a file for each sequence, of the faces in its videos."""
    item, faults = "landmarks", len(found.faults)
    sequences = sequences or [path.stem for path in sorted(folder.glob("*.npz"))]
    for sequence in sequences:
        path = folder / f"{sequence}.npz"
        content = found.attempt(item, path, read_provided, path)
        if content is None or inventory is None or sequence not in inventory.headers:
            continue
        serials, points, _ = content
        frames = inventory.headers[sequence].frames
        if len(points) != frames:
            found.add(
                item,
                "wrong",
                f"{path} covers {len(points)} video frames, but the videos of {sequence} have "
                f"{frames}; give landmarks of this recording, one row for each of its frames.",
            )
            continue
        gone = [serial for serial in inventory.cameras if serial not in serials]
        if gone:
            text = f"{path} has no landmarks of camera {_some(gone)}; the fit does without them."
            found.add(item, "warning" if len(gone) < len(inventory.cameras) else "wrong", text)
        if inventory.calibration:
            _examine_detections(found, settings, path, content, inventory)
    if len(found.faults) == faults:
        found.add(item, "ok", f"{folder}: {len(sequences)} files")


def _examine_detections(
    found: Examination,
    settings: InputSettings,
    path: Path,
    content: ProvidedLandmarks,
    inventory: Inventory,
) -> None:
    """Look whether provided landmarks fit crop and calibration, and make a face."""
    serials = content[0]
    shared = [serial for serial in inventory.cameras if serial in serials]
    if not shared:
        return
    columns = [serials.index(serial) for serial in shared]
    points, confidence = (part[:, columns].astype(np.float64) for part in content[1:])
    for place, serial in enumerate(shared):
        if lens := inventory.lenses.get(serial):
            points[:, place] = lens.undistort_points(points[:, place])
    cameras = [inventory.calibration[serial] for serial in shared]
    header = inventory.headers[path.stem]
    origin, side = settings.ingest.crop_origin, settings.ingest.crop_size
    stored = (header.width, header.height)
    if inventory.frames:
        frames = [inventory.frames[serial] for serial in shared]
        for place, (whole, frame) in enumerate(zip(cameras, frames, strict=True)):
            points[:, place] = whole.map_pixels(points[:, place], frame)
        cameras, stored = frames, (frames[0].width, frames[0].height)
    if inventory.prepared or inventory.frames:
        origin, side = (0, 0), cameras[0].width
    sight = Sight(cameras, origin, side, settings.ingest.image_size, stored, settings.head_scale)
    evidence = gather(points, confidence, np.arange(len(shared)), EXCHANGED_GATE * side)
    try:
        check_exchanged(shared, sight.projections, [evidence])
    except UserError as error:
        if str(error) not in {finding.text for finding in found.findings}:  # of another sequence
            found.add("landmarks", "wrong", str(error))
        return
    fault = find_detection_fault(sight, points, confidence)
    if fault:
        first = inventory.calibration[shared[0]]
        full = f"{first.width}×{first.height}"
        text = (
            f"{path}: {fault}; give points in pixels of the uncropped {full} images, in iBUG order."
        )
        found.add("landmarks", "wrong", text)
        return
    odd = [shared[camera] for camera in find_odd_cameras(sight, points, confidence)]
    if odd:
        text = f"{path}: camera {_some(odd)} contradicts the others; the fit will not heed it."
        found.add("landmarks", "warning", text)


def _examine_prior(
    found: Examination,
    settings: InputSettings,
    mesh: Path,
    sequences: Sequence[str],
    inventory: Inventory | None,
) -> None:
    """Look at a provided head mesh."""
    head = found.attempt("prior", mesh, read_head, mesh)
    if head:
        found.add("prior", "ok", f"{mesh}: {len(head.vertices)} vertices")


# By the sheet's column: how what it names is looked at.
PROVIDED = {
    "mattes": _examine_mattes,
    "landmarks": _examine_landmarks,
    "prior": _examine_prior,
}


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
