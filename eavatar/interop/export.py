"""A trained subject in files of others: Gaussians, the surface of stage I, and the tracking.

``docs/export.md`` says what each holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eavatar.avatar.files import load_avatar
from eavatar.avatar.torso import Torso
from eavatar.errors import UserError
from eavatar.interop.avatar_splats import (
    PlainSplats,
    find_widening,
    to_canonical,
    to_pose,
    turn_upside_down,
)
from eavatar.interop.fine_tuning import fine_tune
from eavatar.interop.head_mesh import HeadMesh
from eavatar.interop.mesh_files import write_animation, write_mesh_glb
from eavatar.interop.splat_files import WRITERS
from eavatar.interop.tracking_files import write_tracking
from eavatar.io import (
    Identity,
    Timestep,
    Tracking,
    read_arrays,
    read_cameras,
    read_tracking,
    write_mesh,
)
from eavatar.results import Results

FORMATS = (
    *(f"gaussians{suffix}" for suffix in WRITERS),
    *("mesh.ply", "mesh.glb", "tracking.npz", "tracking.csv"),
)
IN_ONE_FILE = {"mesh.glb", "tracking.npz", "tracking.csv"}  # also of a sequence


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        format: one of `FORMATS`.
        output: a file of that suffix, or a folder for a file of each timestep.
        variant: of the avatar or of stage I; None as of `eavatar.results.Results.model`.
        sequence: a tracked one; None for the neutral expression at the mean pose.
        timestep: of the sequence; None for all.
        world: leave all in world space, in place of canonical space.
        unfiltered: Gaussians as trained, drawn right at the coarse size alone.
        fine_tune: see `eavatar.interop.fine_tuning`.
    """

    format: str
    output: Path
    variant: str | None = None
    sequence: str | None = None
    timestep: int | None = None
    world: bool = False
    unfiltered: bool = False
    fine_tune: bool = False


def export(folder: Path, options: ExportOptions) -> Path:
    """Write a subject's Gaussians, mesh or tracking in a format of others.

    Args:
        folder: ``results/<subject>``.
        options: what to write, and where to.

    Returns:
        The file, or the folder of files ``<timestep:05d>.<suffix>``.

    Raises:
        UserError: an option is unknown or does not go with another, sequence, timestep or variant
            are unknown, nothing is trained yet, or the output cannot be written.
    """
    _check(options)
    results = Results.open(folder)
    kind, suffix = options.format.split(".")
    if kind == "tracking":
        _write_tracking(results, options)
    elif kind == "mesh":
        _write_meshes(results, options)
    else:
        _write_gaussians(results, options, f".{suffix}")
    print(options.output)
    return options.output


def _check(options: ExportOptions) -> None:
    """Raise `UserError` for options that mean nothing, before anything is read."""
    form, output, suffix = options.format, options.output, Path(options.format).suffix
    if form not in FORMATS:
        raise UserError(f"--format '{form}' is unknown; name one of: {', '.join(FORMATS)}.")
    if options.sequence is None and options.timestep is not None:
        raise UserError("--timestep counts in a sequence; name one with --sequence.")
    if options.sequence is None and form.startswith("tracking"):
        raise UserError(f"--format {form} is of a sequence; name one with --sequence.")
    if (options.unfiltered or options.fine_tune) and not form.startswith("gaussians"):
        raise UserError(
            f"--unfiltered and --fine-tune are of Gaussians; leave them out for {form}."
        )
    whole = options.sequence is not None and options.timestep is None
    wanted = "" if whole and form not in IN_ONE_FILE else suffix
    if output.suffix != wanted:
        kind = f"a file that ends in {suffix}" if wanted else "a folder, without a suffix"
        raise UserError(f"{output} cannot hold this export; name {kind}.")
    if output.exists() and output.is_dir() == bool(wanted):
        kind = "folder" if output.is_dir() else "file"
        raise UserError(f"{output} is a {kind} already; choose another name.")


def _write_tracking(results: Results, options: ExportOptions) -> None:
    tracking = _read_tracking(results, options)
    scale = float(read_arrays(Identity, results.face / "identity.npz").scale)
    write_tracking(options.output, tracking, scale, options.timestep or 0)


def _write_meshes(results: Results, options: ExportOptions) -> None:
    head = HeadMesh.read(results.model("sdf", options.variant))
    size = head.stage.head.expression_size
    timesteps = _list_timesteps(results, options, size, head.stage.torso)
    if options.format == "mesh.ply":
        _write_each(
            options, timesteps, lambda path, each: write_mesh(path, head.at(each, options.world))
        )
    elif options.sequence is not None and options.timestep is None:
        write_animation(options.output, head, timesteps, options.world)
    else:
        metres = 1.0 if options.world else head.scale
        write_mesh_glb(options.output, head.at(timesteps[0], options.world), metres)


def _write_gaussians(results: Results, options: ExportOptions, suffix: str) -> None:
    avatar = load_avatar(results.avatar(options.variant)).prepare()
    size, torso = avatar.settings.head.expression_size, avatar.generator.torso
    timesteps = _list_timesteps(results, options, size, torso)
    widening = 0.0
    if not options.unfiltered:
        widening = find_widening(avatar, read_cameras(results.cameras))
    splats = PlainSplats(avatar, widening)
    corrections = None
    if options.fine_tune:
        corrections = fine_tune(splats, results.capture, results.face)

    def write(path: Path, timestep: Timestep) -> Path:
        gaussians = splats(timestep)
        if corrections is not None:
            gaussians = corrections(gaussians)
        if not options.world:
            unit = 1.0 if suffix == ".glb" else avatar.settings.scale  # glTF's is the metre
            gaussians = to_canonical(gaussians, to_pose(timestep).to(avatar.device), unit)
            if suffix == ".ply":  # viewers take it to have y down
                gaussians = turn_upside_down(gaussians)
        return WRITERS[suffix](path, gaussians)

    _write_each(options, timesteps, write)


def _write_each(
    options: ExportOptions, timesteps: Sequence[Timestep], write: Callable[[Path, Timestep], Path]
) -> None:
    """One file, or a file of each timestep in a folder."""
    suffix = Path(options.format).suffix
    if options.output.suffix:
        write(options.output, timesteps[0])
        return
    for number, timestep in enumerate(tqdm(timesteps, desc="export", unit="timestep")):
        write(options.output / f"{number:05d}{suffix}", timestep)


def _list_timesteps(
    results: Results, options: ExportOptions, expressions: int, torso: Torso
) -> Sequence[Timestep]:
    """Those of the sequence, or the neutral one at the mean pose of the training.

    Args:
        results: of the subject.
        options: of the export.
        expressions: coefficients that the model has.
        torso: of the model.
    """
    if options.sequence is None:
        pose = torso.rest_pose.cpu().numpy()
        return [Timestep(np.zeros(expressions, np.float32), pose[:3], pose[3:])]
    tracking = _read_tracking(results, options)
    if tracking.expression.shape[1] != expressions:
        raise UserError(
            f"the tracking of {options.sequence} has {tracking.expression.shape[1]} expression "
            f"coefficients and the model {expressions}; train it again with the present tracking."
        )
    return list(tracking)


def _read_tracking(results: Results, options: ExportOptions) -> Tracking:
    """Of the sequence, or of its one timestep."""
    path = results.tracking(options.sequence or "")
    tracking, index = read_tracking(path), options.timestep
    if len(tracking) == 0:
        raise UserError(f"{path} holds no timestep; track the sequence again.")
    if index is None:
        return tracking
    if not 0 <= index < len(tracking):
        raise UserError(
            f"{options.sequence} has no timestep {index}; its timesteps are 0 to "
            f"{len(tracking) - 1}."
        )
    return tracking[index : index + 1]
