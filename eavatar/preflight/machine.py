"""What a run needs of the machine: packages, weights, GPU, memory, disk.

Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from os import sysconf
from pathlib import Path

from eavatar.backends import RENDERERS, UPSAMPLERS, Backend
from eavatar.preflight.check import Inventory
from eavatar.preflight.findings import Examination
from eavatar.preflight.generators import Deployment, examine_generators
from eavatar.preflight.weights import Choice, examine_backbones, examine_backends
from eavatar.settings import (
    EvaluateSettings,
    FitSettings,
    GenerateSettings,
    HavatarSettings,
    IngestSettings,
    LandmarkSettings,
    MatteSettings,
    PriorRunSettings,
    SdfSettings,
    SplatSettings,
    required_backbones,
)

GIB = 2**30
MEMORY_BESIDE_FRAMES = 4 * GIB  # of a training process; 1.5 at the demo's sizes, measured
PIXEL_BYTES = 4  # of a kept pixel: colour and alpha
CGROUP = Path("/sys/fs/cgroup/memory.max")

# What `config/config.yaml` is made for: stage II at 2048 pixels on a card sold as 24 GB.
GPU_MEMORY = 23 * GIB
GPU_IMAGE_SIZE = 2048
# Stage II of the demo without a GPU, rendered pixels per second on two cores, measured.
CPU_PIXELS_PER_SECOND = 1e6
MAX_CPU_DAYS = 1.0

# Bytes on disk per pixel of an ingested frame. Measured over the demo at 256 pixels and a rendered
# capture at 256 and 640: JPEG of quality 95 0.15 to 0.24, masks as PNG 0.06 to 0.08, small images
# at the upper ends. Rounded up for the noise of real sensors.
JPEG_BYTES, MASK_BYTES = 0.25, 0.08
MODEL_BYTES = 2 * GIB  # models, resume points, images and report of a subject

# What every run imports; backends add theirs.
PACKAGES = ("av", "cv2", "h5py", "trimesh", "torch", "numba", "safetensors", "skimage")


@dataclass(frozen=True)
class Blocks:
    """The settings of a subject that say what is needed; None for a block with a fault, and for
    a baseline's where that is not trained."""

    ingest: IngestSettings | None
    matte: MatteSettings | None
    landmarks: LandmarkSettings | None
    fit: FitSettings | None
    prior: GenerateSettings | None
    prior_run: PriorRunSettings | None
    sdf: SdfSettings | None
    splat: SplatSettings | None
    havatar: HavatarSettings | None
    evaluate: EvaluateSettings | None

    def choices(self) -> list[Choice]:
        """The backends that are chosen, with their own settings."""
        blocks = (self.matte, self.landmarks, self.prior)
        choices = [(block.chosen, block.own) for block in blocks if block]
        if self.sdf:
            choices.append((RENDERERS[self.sdf.renderer], None))
        if self.splat:
            choices.append((UPSAMPLERS[self.splat.upsampler], None))
        return choices


def examine_machine(
    found: Examination, blocks: Sequence[Blocks], kept: int, use_conda: bool = False
) -> None:
    """Look at packages, weights, generators, GPU and memory that any of the subjects needs.

    Args:
        found: receives the findings.
        blocks: the settings of each subject.
        kept: see `bytes_kept`, of the subject with most.
        use_conda: whether Snakemake makes the environments of the rules.
    """
    choices = list(dict.fromkeys(choice for block in blocks for choice in block.choices()))
    splats = [block.splat for block in blocks if block.splat]
    _examine_packages(found, [backend for backend, _ in choices], splats)
    examine_backends(found, choices)
    priors = [(b.prior.chosen, b.prior_run) for b in blocks if b.prior and b.prior_run]
    examine_generators(found, [(chosen, Deployment(run, use_conda)) for chosen, run in priors])
    tables = [block.evaluate for block in blocks if block.evaluate]
    baselines = [block.havatar for block in blocks if block.havatar]
    examine_backbones(found, required_backbones([*splats, *baselines], tables))
    _examine_gpu(found, [backend for backend, _ in choices], splats)
    _examine_memory(found, kept)


# --- packages -----------------------------------------------------------------------------------


def _examine_packages(
    found: Examination, backends: Sequence[Backend], splats: Sequence[SplatSettings]
) -> None:
    """Import what every run imports, and what the chosen backends do."""
    remedies = dict.fromkeys(PACKAGES, Backend.install)
    if any(block.weights.lpips > 0 for block in splats):
        remedies["lpips"] = Backend.install
    for backend in backends:
        remedies |= dict.fromkeys(backend.packages, f"{backend.install}, or {backend.instead}")
    faults = {name: _import_fault(name) for name in remedies}
    for name, fault in faults.items():
        if fault:
            remedy = remedies.get(name, Backend.install)
            text = f"{name} cannot be imported ({fault}); {remedy}."
            found.add(f"package {name}", "missing", text)
    if not any(faults.values()):
        found.add("packages", "ok", ", ".join(sorted(faults)))


def _import_fault(name: str) -> str | None:
    """Why a package cannot be imported, or None."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # what a package raises on import is its own affair
        return " ".join(str(error).split()) or type(error).__name__
    return None


# --- GPU, memory, disk --------------------------------------------------------------------------


def _examine_gpu(
    found: Examination, backends: Sequence[Backend], splats: Sequence[SplatSettings]
) -> None:
    """Whether there is a GPU, has the memory of the profile, or can be done without.

    The need grows with the pixels of the image: 23 GiB at 2048².
    """
    if _import_fault("torch"):
        return
    import torch

    if not torch.cuda.is_available():
        for backend in backends:
            if backend.gpu == "needed":
                text = f"{backend.name} needs CUDA and there is no CUDA device; {backend.instead}."
                found.add("GPU", "missing", text)
        pixels = max((b.steps * b.views_per_step * b.image_size**2 for b in splats), default=0)
        days = pixels / CPU_PIXELS_PER_SECOND / 86400
        text = f"no CUDA device; stage II takes about {describe_days(days)} on two cores"
        if days > MAX_CPU_DAYS:
            text += (
                ": use a machine with a GPU and a CUDA build of torch, or the sizes of "
                "config/demo.yaml in the column settings."
            )
        found.add("GPU", "missing" if days > MAX_CPU_DAYS else "ok", text)
        return
    properties = torch.cuda.get_device_properties(0)
    size = max((block.image_size for block in splats), default=0)
    need, has = GPU_MEMORY * (size / GPU_IMAGE_SIZE) ** 2, properties.total_memory
    text = f"{properties.name}, {has / GIB:.0f} GiB; {need / GIB:.0f} are expected to be needed"
    if has < need:
        text += "; lower splat.views_per_step or splat.image_size."
    found.add("GPU", "ok" if has >= need else "warning", text)


def describe_days(days: float) -> str:
    """A duration in days, hours or minutes, whichever is the largest with two of them or more."""
    for name, length in (("days", 1), ("hours", 1 / 24)):
        if days >= 2 * length:
            return f"{days / length:.2g} {name}"
    return f"{days * 24 * 60:.2g} minutes"


def _examine_memory(found: Examination, kept: int) -> None:
    """Whether the host has memory for the frames that training keeps, and for itself."""
    has = sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
    if CGROUP.is_file() and CGROUP.read_text().strip().isdecimal():  # else "max": no limit
        has = min(has, int(CGROUP.read_text()))
    need = kept + MEMORY_BESIDE_FRAMES
    text = (
        f"{has / GIB:.1f} GiB; training keeps up to {kept / GIB:.1f} GiB of frames and needs "
        f"about {MEMORY_BESIDE_FRAMES / GIB:.0f} GiB beside them"
    )
    if has < need:
        text += (
            "; lower sdf.run.image_memory_gb and splat.run.image_memory_gb: frames are then read "
            "again, and a training that has begun goes on."
        )
    found.add("memory", "ok" if has >= need else "wrong", text)


def count_frames(ingest: IngestSettings, inventory: Inventory, done: Path | None = None) -> int:
    """Frames that will be ingested, of all cameras.

    Args:
        ingest: the subject's settings.
        inventory: what its videos hold.
        done: ``results/<subject>/capture``; sequences that it holds with masks are left out.
    """
    every = 1 if inventory.prepared else ingest.every
    timesteps = sum(
        -(-header.frames // every)
        for name, header in inventory.headers.items()
        if done is None or not (done / "masks" / f"{name}.csv").exists()
    )
    return timesteps * len(inventory.cameras)


def bytes_kept(blocks: Blocks, frames: int) -> int:
    """Host memory for a subject's frames: `image_memory_gb`, or all of them if they take less."""
    stages = [stage for stage in (blocks.sdf, blocks.splat) if stage]
    budgets = [
        min(stage.run.image_memory_gb * GIB, PIXEL_BYTES * stage.image_size**2 * frames)
        for stage in stages
    ]
    return round(max(budgets, default=0))


def bytes_to_write(ingest: IngestSettings, frames: int) -> int:
    """An estimate of what a run of a subject will write, for frames that are still to be ingested.

    Each frame has image_size² pixels of 0.25 bytes as JPEG and 0.08 bytes as mask (see
    `JPEG_BYTES`). Models, resume points, images and report add 2 GiB whatever the capture. At
    2048² and 43,000 frames, a whole NeRSemble subject, this is 57 GiB.
    """
    return round(frames * ingest.image_size**2 * (JPEG_BYTES + MASK_BYTES)) + MODEL_BYTES


def examine_disk(found: Examination, results: Path, need: int) -> None:
    """Whether the disk of the results folder can take what will be written."""
    existing = next(path for path in (results, *results.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / GIB:.1f} GiB free in {existing}; the run writes about {need / GIB:.1f} GiB"
    if free < need:
        text += (
            "; free some, put results/ on a larger disk, or lower capture.ingest.image_size or "
            "raise capture.ingest.every."
        )
    found.add("disk", "ok" if free >= need else "wrong", text)
