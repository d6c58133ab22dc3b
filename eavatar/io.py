"""The contract files between stages: one dataclass and one read/write pair for each.

Reading checks every shape and type and raises `UserError` with the file's name; writing goes
to a temporary name beside the target and is renamed, so that a file that exists is complete.
Dimensions: T timesteps, C cameras, L = 68 landmarks, E expression and I identity coefficients,
V vertices, F faces.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eavatar import landmark_indices
from eavatar.arrays import Float32, Image, Int64
from eavatar.cameras import Camera
from eavatar.errors import UserError, explain_refusal
from eavatar.lenses import Lens, read_lens
from eavatar.transforms import Similarity

if TYPE_CHECKING:
    import pandas as pd

# What NumPy raises for a file of arrays that is damaged or something else.
DAMAGED_ARRAY = (
    OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, SyntaxError, RuntimeError,
    MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

LANDMARKS = landmark_indices.COUNT
BACKGROUND = "background.jpg"  # beside a camera's masks: the set behind the person
MAX_PREFIX = 200  # letters; names have up to 255, and a temporary one more than its file's
FORMAT = 1  # of the JSON files below; one that names none has this one
FORMAT_KEY = "format"  # the number's, beside the serial numbers in cameras.json
ALIGNMENT_FORMAT = 2  # of prior/alignment.json; 1 had a fitness and no confidence


@contextmanager
def refusals_told(path: Path) -> Iterator[None]:
    """Within, a file is written; what the file system refuses is a sentence that names it.

    Raises:
        UserError: the disk is full, may not be written, or another refusal of the file system.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of writers in other languages, each has types of its own
        refusal = explain_refusal(error, path)
        if refusal is None:
            raise
        raise refusal from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path with the same suffix, renamed to ``path`` if the block succeeds.

    Raises:
        UserError: as `refusals_told`.
    """
    temporary = None
    try:
        with refusals_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{path.stem[:MAX_PREFIX]}."
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_image(path: Path, image: Image, parameters: Sequence[int] = ()) -> Path:
    """Write an image (H, W[, 3]) BGR in the format of the path's suffix.

    Args:
        path: the file.
        image: the pixels.
        parameters: of OpenCV's encoder.

    Returns:
        ``path``.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(encode_image(path.suffix, image, parameters))
    return path


def encode_image(suffix: str, image: Image, parameters: Sequence[int] = ()) -> bytes:
    """The content of an image file. OpenCV's own writer keeps quiet about a full disk."""
    import cv2

    _, encoded = cv2.imencode(suffix, image, parameters)
    return encoded.tobytes()


def require(path: Path, what: str) -> Path:
    """``path`` if it exists, else a `UserError` that says what is missing, and what to do."""
    if not path.exists():
        raise UserError(f"{what} is missing: {path} does not exist; {_advice(path)}.")
    return path


def _advice(path: Path) -> str:
    """What to do about a file that is not there."""
    if "results" not in path.parts[:-2]:
        return "check the path"
    subject = path.parts[path.parts.index("results") + 1]
    return f"`snakemake --cores all results/{subject}/metrics.csv` makes what a subject lacks"


def read_table(path: Path, what: str, names: Sequence[str]) -> pd.DataFrame:
    """A ``.csv`` of ours in which only empty fields are none.

    Args:
        path: the file.
        what: it is, for the message.
        names: columns of text: a sequence "001" keeps its zeros, and a camera may be called "NA".

    Raises:
        UserError: the file is missing, or no table with the columns of text.
    """
    import pandas as pd

    columns, given = dict.fromkeys(names, str), require(path, what)
    try:
        table = pd.read_csv(given, dtype=columns, keep_default_na=False, na_values=[""])
    except ValueError as error:  # pandas' own errors and those of the encoding are such
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what} is damaged: {path} ({reason}); remove it and run again."
        ) from error
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(
            f"{what} is damaged: {path} has no column '{missing[0]}'; remove it and run again."
        )
    return table


# --- arrays -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Landmarks:
    """``face/landmarks/<sequence>.npz``: 2-D detections in the pixels of the ingested frames.

    Attributes:
        cameras: (C,) serial numbers.
        points: (T, C, L, 2) pixels, pixel i covers [i, i + 1).
        confidence: (T, C, L) in [0, 1]; 0 = not seen.
    """

    cameras: NDArray[np.str_]
    points: Float32
    confidence: Float32


@dataclass(frozen=True)
class Identity:
    """``face/identity.npz``: what all timesteps of a subject share.

    Attributes:
        identity: (I,) identity coefficients, in standard deviations.
        scale: () canonical units to metres (about 0.1).
        landmarks: (L, 3) landmarks of the neutral face, canonical.
    """

    identity: Float32
    scale: Float32
    landmarks: Float32


@dataclass(frozen=True)
class ExpressionBasis:
    """``face/expression_basis.npz``: what expression makes of ``face/neutral.ply``.

    Attributes:
        basis: (V, 3, E) displacements of its vertices, canonical, a standard deviation each.
    """

    basis: Float32


@dataclass(frozen=True)
class Timestep:
    """What drives an avatar at one timestep.

    Attributes:
        expression: (E,) expression coefficients, in standard deviations.
        rotation: (3,) axis-angle, radians.
        translation: (3,) metres.
        appearance: (K,) appearance coefficients that were measured, or none: then an avatar that
            is driven by them, too, predicts them from the expression.
        gaze: (2,) yaw to the subject's left and pitch up of both eyes, radians, or none: then an
            avatar whose eyes move has them straight.
    """

    expression: Float32
    rotation: Float32
    translation: Float32
    appearance: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    gaze: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def driving(self) -> Float32:
        """(E + G + K,) expression, gaze and appearance, side by side."""
        return np.concatenate([self.expression, self.gaze, self.appearance])

    def with_expression(self, expression: ArrayLike) -> Timestep:
        """The same pose with other expression coefficients (E,), and no appearance measured."""
        values = np.asarray(expression, dtype=np.float32)
        return replace(self, expression=values, appearance=values[:0])


@dataclass(frozen=True)
class Tracking:
    """``face/tracking/<sequence>.npz``: the fit of each timestep; ``x_w = scale · R x_c + t``.

    It is a sequence of T timesteps: ``tracking[3]`` is one, ``tracking[10:20]`` a shorter tracking.

    Attributes:
        expression: (T, E) expression coefficients, in standard deviations.
        rotation: (T, 3) axis-angle, radians.
        translation: (T, 3) metres.
        landmarks: (T, L, 3) world, metres.
        reprojection_error: (T, C) mean distance to the detections, pixels; NaN where none was seen.
        appearance: (T, K) appearance coefficients, in standard deviations; K = 0 if none were
            measured.
        gaze: (T, G) yaw to the subject's left and pitch up of both eyes, radians; G = 2, or 0 if
            it was not measured.
    """

    expression: Float32
    rotation: Float32
    translation: Float32
    landmarks: Float32
    reprojection_error: Float32
    appearance: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    gaze: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        empty = np.zeros((len(self.expression), 0), np.float32)
        for name in ("appearance", "gaze"):
            if getattr(self, name).size == 0:
                object.__setattr__(self, name, empty)

    @property
    def driving(self) -> Float32:
        """(T, E + G + K) expression, gaze and appearance, side by side."""
        return np.concatenate([self.expression, self.gaze, self.appearance], axis=1)

    def with_expression(self, expression: ArrayLike) -> Tracking:
        """The same poses with other expression coefficients (T, E), and no appearance measured."""
        values = np.asarray(expression, dtype=np.float32)
        return replace(self, expression=values, appearance=values[:, :0])

    @property
    def poses(self) -> Float32:
        """(T, 6) rotation, axis-angle, then translation, metres."""
        return np.concatenate([self.rotation, self.translation], axis=1)

    def __len__(self) -> int:
        return len(self.expression)

    @overload
    def __getitem__(self, index: int) -> Timestep: ...

    @overload
    def __getitem__(self, index: slice) -> Tracking: ...

    def __getitem__(self, index: int | slice) -> Timestep | Tracking:
        if isinstance(index, slice):
            return Tracking(*(getattr(self, each.name)[index] for each in fields(self)))
        return Timestep(
            self.expression[index],
            self.rotation[index],
            self.translation[index],
            self.appearance[index],
            self.gaze[index],
        )

    def __iter__(self) -> Iterator[Timestep]:
        return (self[index] for index in range(len(self)))


Record = TypeVar("Record", Landmarks, Identity, ExpressionBasis, Tracking)

SHAPES: dict[type, dict[str, tuple[str | int, ...]]] = {
    Landmarks: {
        "cameras": ("C",),
        "points": ("T", "C", LANDMARKS, 2),
        "confidence": ("T", "C", LANDMARKS),
    },
    Identity: {"identity": ("I",), "scale": (), "landmarks": (LANDMARKS, 3)},
    ExpressionBasis: {"basis": ("V", 3, "E")},
    Tracking: {
        "expression": ("T", "E"),
        "rotation": ("T", 3),
        "translation": ("T", 3),
        "landmarks": ("T", LANDMARKS, 3),
        "reprojection_error": ("T", "C"),
        "appearance": ("T", "K"),
        "gaze": ("T", "G"),
    },
}


def check_shapes(record: object, where: str) -> None:
    """Raise `UserError` unless the arrays of a contract dataclass have their documented shapes."""
    sizes: dict[str, int] = {}
    for name, expected in SHAPES[type(record)].items():
        shape = getattr(record, name).shape
        wanted = tuple(
            sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in expected
        )
        fits = len(shape) == len(wanted) and all(
            isinstance(axis, str) or axis == size for axis, size in zip(wanted, shape, strict=True)
        )
        if not fits:
            text = ", ".join(str(axis) for axis in wanted)
            raise UserError(f"{where}: array '{name}' has shape {shape}, expected ({text}).")
        sizes |= {a: s for a, s in zip(expected, shape, strict=True) if isinstance(a, str)}


def write_arrays(path: Path, record: Landmarks | Identity | ExpressionBasis | Tracking) -> Path:
    """Write one of the array contracts as ``.npz`` without pickles."""
    check_shapes(record, str(path))
    arrays = {each.name: np.asarray(getattr(record, each.name)) for each in fields(record)}
    arrays = {k: v if v.dtype.kind == "U" else v.astype(np.float32) for k, v in arrays.items()}
    with atomic(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    return path


def read_arrays(kind: type[Record], path: Path) -> Record:
    """Read and check one of the array contracts.

    Raises:
        UserError: the file is missing, is not an ``.npz`` of plain arrays, lacks an array or has
            one of the wrong shape.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
    require(path, f"the {words} file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except DAMAGED_ARRAY as error:
        raise UserError(f"{path} is not a readable .npz file of plain arrays: {error}.") from error
    optional = {each.name for each in fields(kind) if each.default_factory is not MISSING}
    missing = [each.name for each in fields(kind) if each.name not in arrays.keys() | optional]
    if missing:
        raise UserError(f"{path} lacks the array '{missing[0]}'; it holds {sorted(arrays)}.")
    record = kind(**{name: arrays[name] for name in SHAPES[kind] if name in arrays})
    check_shapes(record, str(path))
    return record


# --- CSV --------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write a ``.csv`` whose columns are the fields of a dataclass.

    Args:
        path: the file.
        rows: instances of one dataclass, at least one.

    Returns:
        ``path``.
    """
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([each.name for each in fields(rows[0])])
        writer.writerows(astuple(row) for row in rows)
    return path


@dataclass(frozen=True, order=True)
class Failure:
    """A row of ``results/failed.csv``: a job that failed.

    Attributes:
        subject: whose job it was, or "all".
        rule: which job.
        sentence: why, as far as it is known.
        log: the job's log.
    """

    subject: str
    rule: str
    sentence: str
    log: str


def read_failures(path: Path) -> list[Failure]:
    """Read a ``failed.csv``.

    Raises:
        UserError: it is missing, or its columns are others.
    """
    with require(path, "what has failed").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [each.name for each in fields(Failure)]:
            raise UserError(f"{path} has columns {reader.fieldnames}; run Snakemake again.")
        return [Failure(**row) for row in reader]


def read_tracking(path: str | Path) -> Tracking:
    """Read ``face/tracking/<sequence>.npz``; arguments and errors as of `read_arrays`."""
    return read_arrays(Tracking, Path(path))


# --- JSON -------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file, indented."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    return path


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file, or a `UserError` that names it."""
    try:
        # Some editors begin a file with a mark.
        return json.loads(require(path, what).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {what} must be restored.") from error


def check_format(content: Mapping[str, Any], known: int, path: Path) -> None:
    """Raise `UserError` unless a file has the format that this version reads."""
    found = content.get(FORMAT_KEY, 1)
    if found != known:
        raise UserError(
            f"{path} has format {found}, but this version of eavatar reads format {known}; use the "
            "version that wrote it, or make the file anew."
        )


def write_cameras(
    path: Path, cameras: Mapping[str, Camera], lenses: Mapping[str, Lens] | None = None
) -> Path:
    """Write ``capture/cameras.json``: serial number to camera, after crop and resize.

    Args:
        path: the file.
        cameras: by serial number.
        lenses: of the raw images that had distortion, for `read_lenses`.
    """
    content: dict[str, Any] = {FORMAT_KEY: FORMAT}
    content |= {
        serial: {
            "intrinsics": camera.intrinsics.tolist(),
            "world_to_camera": camera.world_to_camera.tolist(),
            "width": camera.width,
            "height": camera.height,
        }
        for serial, camera in sorted(cameras.items())
    }
    for serial, lens in (lenses or {}).items():
        content[serial]["distortion"] = list(lens.coefficients)
    return write_json(path, content)


def read_cameras(path: str | Path) -> dict[str, Camera]:
    """Read ``capture/cameras.json``: serial number to camera, sorted by serial number.

    Raises:
        UserError: the file is missing, malformed, or of an unknown format.
    """
    path, cameras = Path(path), {}
    content = read_json(path, "the camera file")
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a camera file: it holds no mapping of serial numbers.")
    check_format(content, FORMAT, path)
    content.pop(FORMAT_KEY, None)
    for serial, entry in sorted(content.items()):
        try:
            intrinsics = np.array(entry["intrinsics"], dtype=np.float64)
            world_to_camera = np.array(entry["world_to_camera"], dtype=np.float64)
            camera = Camera(intrinsics, world_to_camera, int(entry["width"]), int(entry["height"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: camera {serial} is malformed ({error!r}).") from error
        if intrinsics.shape != (3, 3) or world_to_camera.shape != (4, 4):
            raise UserError(
                f"{path}: camera {serial} needs 3×3 intrinsics and 4×4 world_to_camera."
            )
        cameras[serial] = camera
    return cameras


def read_lenses(path: Path) -> dict[str, Lens]:
    """The lenses of raw images by serial number, from ``capture/full_cameras.json``.

    Those without distortion are left out; all are, if there is no such file.

    Raises:
        UserError: as `read_cameras`.
    """
    if not path.exists():
        return {}
    content = read_json(path, "the camera file")
    cameras = read_cameras(path)
    found = {
        serial: read_lens(camera, content[serial].get("distortion"), f"{path}: camera {serial}")
        for serial, camera in cameras.items()
    }
    return {serial: lens for serial, lens in found.items() if lens}


@dataclass(frozen=True)
class Sequences:
    """``capture/sequences.json``: which of the ingested sequences are used, and for what.

    Others may lie beside them, left from an earlier choice: no stage looks for sequences itself.

    Attributes:
        train: names of those that are trained on, sorted.
        test: of those that are held out, sorted; of novel views alone, the same as ``train``.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted, each once."""
        return tuple(sorted({*self.train, *self.test}))


def write_sequences(path: Path, sequences: Sequences) -> Path:
    """Write ``capture/sequences.json``."""
    chosen = {"train": sorted(sequences.train), "test": sorted(sequences.test)}
    return write_json(path, {"format": FORMAT, **chosen})


def read_sequences(path: Path) -> Sequences:
    """Read ``capture/sequences.json``; `UserError` if it is missing or malformed."""
    content = read_json(path, "the list of sequences")
    try:
        check_format(content, FORMAT, path)
        lists = [content["train"], content["test"]]
        if not all(isinstance(name, str) for names in lists for name in names):
            raise TypeError("a name is no text")
        return Sequences(*(tuple(names) for names in lists))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of sequences ({error!r}).") from error


@dataclass(frozen=True)
class Alignment:
    """``prior/alignment.json``: how the prior mesh was brought into canonical space.

    Attributes:
        transform: generator's frame to canonical space.
        residual: mean distance of prior and fitted face, from each to the other, canonical units.
        confidence: that the transform is right, in [0, 1] (`eavatar.prior.confidence`).
        accepted: whether the confidence sufficed; stage I does without a prior that was not.
    """

    transform: Similarity
    residual: float
    confidence: float
    accepted: bool


def write_alignment(path: Path, alignment: Alignment) -> Path:
    """Write ``prior/alignment.json``."""
    content = {
        "format": ALIGNMENT_FORMAT,
        "scale": alignment.transform.scale,
        "rotation": alignment.transform.rotation.tolist(),
        "translation": alignment.transform.translation.tolist(),
        "residual": alignment.residual,
        "confidence": alignment.confidence,
        "accepted": alignment.accepted,
    }
    return write_json(path, content)


def read_alignment(path: Path) -> Alignment:
    """Read ``prior/alignment.json``; `UserError` if it is missing or malformed."""
    content = read_json(path, "the alignment file")
    try:
        check_format(content, ALIGNMENT_FORMAT, path)
        rotation, translation = np.array(content["rotation"]), np.array(content["translation"])
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise ValueError("rotation must be 3×3 and translation 3")
        transform = Similarity(float(content["scale"]), rotation, translation)
        measured = float(content["residual"]), float(content["confidence"])
        if not isinstance(content["accepted"], bool):
            raise TypeError("accepted must be true or false")
        return Alignment(transform, *measured, content["accepted"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not an alignment file ({error!r}).") from error


# --- meshes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh; counter-clockwise faces seen from outside.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int64.
        colours: (V, 3) in [0, 1], or None.
    """

    vertices: Float32
    faces: Int64
    colours: Float32 | None = None


def write_mesh(path: Path, mesh: Mesh) -> Path:
    """Write a mesh as binary ``.ply``."""
    import trimesh

    colours = None if mesh.colours is None else (mesh.colours * 255).round().astype(np.uint8)
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)
    with atomic(path) as temporary:
        shape.export(temporary, file_type="ply")
    return path


def read_mesh(path: Path) -> Mesh:
    """Read a ``.ply``, ``.obj`` or ``.glb`` mesh; a scene becomes one mesh.

    Raises:
        UserError: the file is missing, cannot be parsed, or holds no triangle or one of vertices
            that are not there.
    """
    import trimesh

    require(path, "the mesh")
    try:
        shape: Any = trimesh.load(path, force="mesh", process=False)
    except Exception as error:  # each of trimesh's parsers raises types of its own
        reason = " ".join(str(error).split()).rstrip(".!")
        raise UserError(f"{path} cannot be read as a mesh ({reason}); write it again.") from error
    if len(getattr(shape, "faces", ())) == 0:
        raise UserError(f"{path} holds no triangles; a mesh with faces is needed.")
    if not 0 <= shape.faces.min() <= shape.faces.max() < len(shape.vertices):
        raise UserError(f"{path} has faces of vertices that are not there; write it again.")
    colours: Float32 | None = None
    if shape.visual.kind == "vertex":
        colours = np.divide(shape.visual.vertex_colors[:, :3], 255, dtype=np.float32)
    vertices = np.asarray(shape.vertices, dtype=np.float32)
    return Mesh(vertices, np.asarray(shape.faces, dtype=np.int64), colours)
