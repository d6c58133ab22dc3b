"""A subject in the layout that Gaussian Head Avatar's official code trains on.

    images/<number>/{image,mask,visible}[_lowres]_<camera>.jpg    three channels
    cameras/<number>/camera_<camera>.npz   extrinsic (3, 4), intrinsic (3, 3)
    params/<number>/params.npz    id_coeff (1, I), exp_coeff (1, E), scale (1,), pose (1, 6)
    params/<number>/lmk_3d.npy    (66, 3) world, metres
    params/<number>/vertices.npy  (V, 3) world, metres
    background/image_<camera>.jpg
    sequences/<sequence>.txt      the numbers of its timesteps; not read by GHA, but by eavatar
    held_out/                     the same five folders for the held-out sequences
    frames.csv                    number, folder, sequence, timestep, split

Its loader trains on every folder in ``images/``, so the held-out timesteps are in a folder of their
own; their numbers continue those of the training timesteps. What differs between the two codes:

- Images have the ingested size and intrinsics count its pixels. The released settings expect 2048;
  at another size set ``original_resolution`` there. The low-res copies have 256 pixels.
- The crop is as ingested, and the principal point not in its middle. GHA's loader shifts the image
  by whole pixels to centre it, which its rasteriser needs.
- ``extrinsic`` is OpenCV, world to camera. ``pose`` is axis-angle and translation; a row vector of
  canonical space goes to (x · scale) Rᵀ + t, as here.
- The 66 landmarks are the 68 without 48 and 54, the corners of the outer lips.
- The loader adds every hundredth vertex to the landmarks and cannot do without ``vertices.npy``,
  which needs the morphable model. Theirs has 35,709 vertices, another model another number.
- The coefficients' number is the fit's; set the network sizes there to match.
- A frame whose mask failed is marked invisible everywhere, which excludes it from GHA's losses; a
  timestep without any usable frame is left out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from eavatar.arrays import Float32, Image
from eavatar.cameras import Camera
from eavatar.data.frames import read_usable
from eavatar.data.images import read_colour, read_grey, resize_area
from eavatar.errors import UserError
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.io import (
    Identity,
    Tracking,
    atomic,
    read_arrays,
    read_cameras,
    write_image,
    write_rows,
)
from eavatar.landmark_indices import OUTER_LIP_CORNERS
from eavatar.results import Results
from eavatar.threads import make_pool

LOWRES_SIZE = 256  # stage I of GHA
HELD_OUT = "held_out"
JPEG_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 95)


@dataclass(frozen=True)
class ExportedTimestep:
    """A row of ``frames.csv``.

    Attributes:
        number: name of the timestep's folders, at least four digits.
        folder: ``.`` or ``held_out``, in which they are.
        sequence: its name.
        timestep: index in the sequence.
        split: ``train`` or ``test``.
    """

    number: int
    folder: str
    sequence: str
    timestep: int
    split: str

    def place(self, output: Path, kind: str) -> Path:
        """The timestep's folder in ``images``, ``cameras`` or ``params``."""
        return output / self.folder / kind / f"{self.number:04d}"


@dataclass(frozen=True)
class ExportSource:
    """What the timesteps of a subject share.

    Attributes:
        capture: ``results/<subject>/capture``.
        cameras: by serial number.
        visible: by serial number, (S, S).
        failed: number of the timestep and serial number of the frames whose mask failed.
        identity: of the fit.
        tracking: by sequence.
        model: the one that was fitted, or None.
    """

    capture: Path
    cameras: dict[str, Camera]
    visible: dict[str, Image]
    failed: frozenset[tuple[int, str]]
    identity: Identity
    tracking: dict[str, Tracking]
    model: MorphableModel | None


def export_gha(
    results: Path, morphable_model: Path | None = None, output: Path | None = None
) -> Path:
    """Write a subject for Gaussian Head Avatar; ``frames.csv`` comes last.

    Args:
        results: ``results/<subject>``.
        morphable_model: what the face was fitted with, for ``vertices.npy``.
        output: a new or empty folder; ``results/<subject>/gha`` if None.

    Returns:
        the folder written.

    Raises:
        UserError: the output is not empty, a contract file is missing or malformed, or the
            morphable model is not the one of the fit.
    """
    subject = Results.open(results)
    capture, output = subject.capture, output or results / "gha"
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; name a new folder for the export or empty it.")
    timesteps, failed = _list_timesteps(capture)
    source = _read_source(capture, subject.face, morphable_model, timesteps, failed)
    for folder in sorted({each.folder for each in timesteps}):
        _write_plates(source, output / folder / "background")
    for name in source.tracking:
        _write_list([each for each in timesteps if each.sequence == name], output)
    with make_pool() as pool:
        work = pool.map(lambda each: _write_timestep(source, each, output), timesteps)
        list(tqdm(work, "export", total=len(timesteps), unit="timestep"))
    write_rows(output / "frames.csv", timesteps)
    return output


def _list_timesteps(capture: Path) -> tuple[list[ExportedTimestep], frozenset[tuple[int, str]]]:
    """The timesteps to export, the training sequences first.

    Args:
        capture: ``results/<subject>/capture``.

    Returns:
        The timesteps, and number and serial number of the frames whose mask failed.
    """
    serials = tuple(read_cameras(capture / "cameras.json"))
    timesteps: list[ExportedTimestep] = []
    failed = set()
    for split, folder in (("train", "."), ("test", HELD_OUT)):
        keys, usable = read_usable(capture, split, serials)
        for (sequence, index), cameras in zip(keys, usable, strict=True):
            number = len(timesteps)
            timesteps.append(ExportedTimestep(number, folder, sequence, index, split))
            failed |= {(number, s) for s, fine in zip(serials, cameras, strict=True) if not fine}
    return timesteps, frozenset(failed)


def _read_source(
    capture: Path,
    face: Path,
    morphable_model: Path | None,
    timesteps: list[ExportedTimestep],
    failed: frozenset[tuple[int, str]],
) -> ExportSource:
    """What the timesteps of a subject share, checked to belong together.

    Args:
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        morphable_model: what the face was fitted with, or None.
        timesteps: to export.
        failed: number of the timestep and serial number of the frames whose mask failed.
    """
    cameras = read_cameras(capture / "cameras.json")
    names = sorted({each.sequence for each in timesteps})
    identity = read_arrays(Identity, face / "identity.npz")
    tracking = {name: read_arrays(Tracking, face / "tracking" / f"{name}.npz") for name in names}
    for each in timesteps:
        if each.timestep >= len(tracking[each.sequence]):
            raise UserError(
                f"{face}/tracking/{each.sequence}.npz lacks timestep {each.timestep} of the "
                "ingested frames; fit the face again."
            )
    model = None if morphable_model is None else read_morphable_model(morphable_model)
    if model is not None:
        _check_model(model, identity, tracking, f"{morphable_model}")
    visible = {
        serial: read_grey(capture / "visible" / f"{serial}.png", "calibrate") for serial in cameras
    }
    return ExportSource(capture, cameras, visible, failed, identity, tracking, model)


def _check_model(
    model: MorphableModel, identity: Identity, tracking: dict[str, Tracking], where: str
) -> None:
    """Raise `UserError` if the fit has more coefficients than the model components."""
    fitted = len(identity.identity), next(iter(tracking.values())).expression.shape[1]
    held = model.identity_basis.shape[2], model.expression_basis.shape[2]
    if fitted[0] > held[0] or fitted[1] > held[1]:
        raise UserError(
            f"{where} has {held[0]} identity and {held[1]} expression components but the face was "
            f"fitted with {fitted[0]} and {fitted[1]}; name the morphable model of the fit."
        )


def _write_list(timesteps: list[ExportedTimestep], output: Path) -> None:
    """Write the numbers of one sequence's timesteps."""
    with atomic(
        output / timesteps[0].folder / "sequences" / f"{timesteps[0].sequence}.txt"
    ) as temporary:
        temporary.write_text("".join(f"{each.number:04d}\n" for each in timesteps))


def _write_plates(source: ExportSource, folder: Path) -> None:
    """Write the background plates that the capture has."""
    for serial in source.cameras:
        path = source.capture / "plates" / f"{serial}.png"
        if path.is_file():  # a capture need not have plates, and GHA reads none for training
            _write_jpeg(folder / f"image_{serial}.jpg", read_colour(path, "calibrate"))


def _write_timestep(source: ExportSource, exported: ExportedTimestep, output: Path) -> None:
    """Write images, cameras and parameters of one timestep."""
    images, cameras = exported.place(output, "images"), exported.place(output, "cameras")
    for serial, camera in source.cameras.items():
        _write_frame(source, exported, serial, images)
        with atomic(cameras / f"camera_{serial}.npz") as temporary:
            extrinsic = camera.world_to_camera[:3]
            np.savez(temporary, extrinsic=extrinsic, intrinsic=camera.intrinsics)
    params = exported.place(output, "params")
    tracking, timestep = source.tracking[exported.sequence], exported.timestep
    pose = tracking.poses[timestep]
    with atomic(params / "params.npz") as temporary:
        np.savez(
            temporary,
            id_coeff=source.identity.identity[None],
            exp_coeff=tracking.expression[timestep, None],
            scale=source.identity.scale.reshape(1),
            pose=pose[None],
        )
    landmarks = np.delete(tracking.landmarks[timestep], OUTER_LIP_CORNERS, axis=0)
    _write_array(params / "lmk_3d.npy", landmarks)
    if source.model is not None:
        expression = tracking.expression[timestep]
        world = _fitted_vertices(source.model, source.identity, expression, pose)
        _write_array(params / "vertices.npy", world)


def _write_array(path: Path, array: Float32) -> None:
    with atomic(path) as temporary:
        np.save(temporary, array)


def _write_frame(
    source: ExportSource, exported: ExportedTimestep, serial: str, folder: Path
) -> None:
    """Write image, mask and visibility of one camera's frame at both sizes."""
    place = Path(exported.sequence, serial, f"{exported.timestep:05d}")
    colour_path = (source.capture / place).with_suffix(".jpg")
    mask = read_grey((source.capture / "masks" / place).with_suffix(".png"))
    visible = source.visible[serial]
    if (exported.number, serial) in source.failed:
        visible = np.zeros_like(visible)
    colour = read_colour(colour_path)
    small = min(LOWRES_SIZE, len(colour))
    for name, image in (("image", colour), ("mask", mask), ("visible", visible)):
        _write_jpeg(folder / f"{name}_lowres_{serial}.jpg", resize_area(image, small))
    for name, image in (("mask", mask), ("visible", visible)):
        _write_jpeg(folder / f"{name}_{serial}.jpg", image)
    shutil.copyfile(colour_path, folder / f"image_{serial}.jpg")  # coding it again would lose


def _fitted_vertices(
    model: MorphableModel, identity: Identity, expression: Float32, pose: Float32
) -> Float32:
    """(V, 3) vertices of the fit at one timestep, world, metres.

    Args:
        model: that was fitted.
        identity: of the fit.
        expression: (E,).
        pose: (6,) axis-angle and translation.
    """
    basis = model.expression_basis[..., : len(expression)]
    canonical = model.vertices(identity.identity) + basis @ expression
    rotation, _ = cv2.Rodrigues(pose[:3].astype(np.float64))
    return (identity.scale * canonical @ rotation.T + pose[3:]).astype(np.float32)


def _write_jpeg(path: Path, image: Image) -> None:
    """Write (S, S, 3) BGR, or (S, S) as three equal channels, which GHA's loader indexes."""
    colour = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    write_image(path, colour, JPEG_QUALITY)
