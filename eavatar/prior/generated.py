"""What the backends have in common whose mesh a generator makes, in an environment of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from eavatar.errors import UserError
from eavatar.io import Mesh, read_mesh
from eavatar.settings import Seed, Settings

if TYPE_CHECKING:
    from eavatar.prior.generate import PriorJob

PROGRAMS = Path(__file__).parent / "generators"


class GeneratorSettings(Settings):
    """What every generator is asked."""

    weights: Path = Field(
        description="folder of the published weights, or their name in Hugging Face's cache"
    )
    seed: Seed = Field(description="another one is another mesh")
    neck: float = Field(
        gt=0, description="images are cut this far below the chin, dm; the shoulders begin at 0.6"
    )


def find_weights(named: Path) -> Path:
    """The folder of weights that a setting names.

    A name such as ``microsoft/TRELLIS-image-large`` stands for the latest download of it in Hugging
    Face's cache, unless there is a folder of that path.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser()
    cached = home / "hub" / f"models--{str(named).replace('/', '--')}"
    latest = cached / "refs" / "main"
    if named.is_dir() or not latest.is_file():
        return named
    return cached / "snapshots" / latest.read_text().strip()


def open_safetensors(path: Path) -> None:
    """Raise `UserError` unless a file of tensors is as long as its header says."""
    whole = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size)) if size < whole else {}
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if not ends or 8 + size + max(ends) != whole:
        raise UserError("it is cut off, or no file of tensors")


def take_generated(job: PriorJob) -> Mesh:
    """The mesh that the generator has made.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if job.mesh is None:
        source = job.settings.source
        raise UserError(
            f"prior.generate.source is '{source}', but its mesh is not given; make it with "
            f"run_{source}.py from what prepare-prior wrote (docs/prior.md) and name it with "
            "--mesh, or set prior.generate.source to template."
        )
    return read_mesh(job.mesh)
