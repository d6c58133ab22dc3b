"""The user's own mesh, in whatever frame it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eavatar.backends import PriorBackend
from eavatar.errors import UserError
from eavatar.io import Mesh, read_mesh
from eavatar.meshes import check_extent

if TYPE_CHECKING:
    from eavatar.prior.generate import PriorJob

FORMATS = (".ply", ".obj", ".glb")


def take_provided(job: PriorJob) -> Mesh:
    """The mesh as it is.

    Raises:
        UserError: there is none, or as `read_head`.
    """
    mesh = job.mesh
    if mesh is None:
        raise UserError(
            "prior.generate.source is 'provided' but no mesh is given; name a .ply, .obj or .glb "
            "file for this subject in the sample sheet, or choose the source 'template'."
        )
    return read_head(mesh)


def read_head(path: Path) -> Mesh:
    """A mesh that may be a head's.

    Raises:
        UserError: it is of another format, damaged, or spans no volume.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is no prior mesh: its name must end in {', '.join(FORMATS)}.")
    return check_extent(read_mesh(path), path)


BACKEND = PriorBackend(
    name="provided",
    run=take_provided,
    instead="set prior.generate.source to template",
    column="prior",
)
