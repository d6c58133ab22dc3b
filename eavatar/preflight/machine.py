"""What a run needs of the machine: packages, weights, GPU, memory, disk.

Nothing is downloaded. Weights whose checksum is published are read whole, which takes some seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import sysconf
from pathlib import Path

from eavatar.errors import UserError
from eavatar.preflight.check import Footage
from eavatar.preflight.findings import Examination, Status
from eavatar.settings import (
    EvaluateSettings,
    GenerateSettings,
    IngestSettings,
    LandmarkSettings,
    MatteSettings,
    SdfSettings,
    SplatSettings,
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
MOST_CPU_DAYS = 1.0

# Bytes on disk per pixel of an ingested frame. Measured over the demo at 256 pixels and a rendered
# capture at 256 and 640: JPEG of quality 95 0.15 to 0.24, alpha as PNG 0.06 to 0.08, small images
# at the upper ends. Rounded up for the noise of real sensors.
JPEG_BYTES, ALPHA_BYTES = 0.25, 0.08
MODEL_BYTES = 2 * GIB  # models, resume points, pictures and report of a subject

# Published with the models: github.com/danielgatis/rembg/releases.
REMBG_MD5 = {
    "u2net": "60024c5c889badc19c04ad937298a77b",
    "u2net_human_seg": "c09ddc2e0104f800e3e1bb4652583d1f",
    "birefnet-portrait": "c3a64a6abf20250d090cd055f12a3b67",
}
# By the beginnings of the models' names.
REMBG_LICENCES = {
    "u2net": "Apache-2.0", "isnet": "Apache-2.0", "birefnet": "MIT", "bria": "non-commercial use",
}  # fmt: skip
TORCHVISION_LICENCE = "BSD-3-Clause"
FACE_ALIGNMENT_LICENCE = "BSD-3-Clause, of BlazeFace Apache-2.0"
BACKGROUND_MATTING = "https://github.com/PeterL1n/BackgroundMattingV2"
SHA256_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")  # torch.hub's rule for names of weight files


@dataclass(frozen=True)
class Blocks:
    """The settings of a subject that say what is needed; None for a block with a fault."""

    ingest: IngestSettings | None
    matte: MatteSettings | None
    landmarks: LandmarkSettings | None
    prior: GenerateSettings | None
    sdf: SdfSettings | None
    splat: SplatSettings | None
    evaluate: EvaluateSettings | None


def examine_machine(found: Examination, blocks: Sequence[Blocks], kept: int) -> None:
    """Look at packages, weights, GPU and memory that any of the subjects needs.

    Args:
        kept: see `bytes_kept`, of the subject with most.
    """
    mattes = [block.matte for block in blocks if block.matte]
    landmarks = [block.landmarks for block in blocks if block.landmarks]
    splats = [block.splat for block in blocks if block.splat]
    sdfs = [block.sdf for block in blocks if block.sdf]
    examine_packages(found, blocks)
    for model in sorted({matte.rembg_model for matte in mattes if matte.backend == "rembg"}):
        _examine_rembg(found, model)
    chosen = [matte for matte in mattes if matte.backend == "background_matting_v2"]
    for path in sorted({matte.background_matting_weights for matte in chosen}):
        _examine_background_matting(found, path)
    detectors = {block.detector for block in landmarks if block.backend == "face_alignment"}
    for detector in sorted(detectors):
        _examine_face_alignment(found, detector)
    _examine_perceptual(found, splats, [block.evaluate for block in blocks if block.evaluate])
    _examine_gpu(found, sdfs, splats)
    _examine_memory(found, kept)


# --- packages -----------------------------------------------------------------------------------


def examine_packages(found: Examination, blocks: Sequence[Blocks]) -> None:
    """Import what the chosen backends import."""
    needed = {
        "av": "capture", "cv2": "capture", "h5py": "face", "trimesh": "prior", "torch": "train",
        "numba": "train", "safetensors": "train", "skimage": "tables",
    }  # fmt: skip
    for block in blocks:
        if block.matte and block.matte.backend == "rembg":
            needed |= {"onnxruntime": "capture", "rembg": "capture"}
        if block.landmarks and block.landmarks.backend == "face_alignment":
            needed["face_alignment"] = "face"
        if block.splat and block.splat.weights.lpips > 0:
            needed["lpips"] = "train"
        if block.sdf and block.sdf.renderer == "dibr":
            needed["kaolin.render.mesh"] = "sdf.renderer dibr"
    faults = {name: _import_fault(name) for name in needed}
    faults["open3d"] = _open3d_fault()
    faulty = {name: fault for name, fault in faults.items() if fault}
    for name, fault in faulty.items():
        if name.startswith("kaolin"):
            remedy = "install NVIDIA's wheel of kaolin 0.18.0 or set sdf.renderer to splats"
        else:
            remedy = "run `make install`, or let snakemake --use-conda bring it"
        found.add(f"package {name}", "missing", f"{name} cannot be imported ({fault}); {remedy}.")
    if not faulty:
        found.add("packages", "ok", ", ".join(sorted(faults)))


def _import_fault(name: str) -> str | None:
    """Why a package cannot be imported, or None."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # what a package raises on import is its own affair
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _open3d_fault() -> str | None:
    from eavatar.prior.open3d_loader import import_open3d

    try:
        import_open3d()
    except UserError as error:
        return str(error).rstrip(".")
    return None


# --- weights ------------------------------------------------------------------------------------


def _examine_rembg(found: Examination, model: str) -> None:
    from eavatar.capture.rembg_session import RELEASE, find_model

    item = f"weights {model}"
    licences = [name for start, name in REMBG_LICENCES.items() if model.startswith(start)]
    licence = licences[0] if licences else "see the release"
    try:
        path = find_model(model)
    except UserError as error:
        found.add(item, "missing", f"{error} Its licence: {licence}.")
        return
    published = REMBG_MD5.get(model)
    if published and _digest(path, hashlib.md5) != published:
        found.add(
            item,
            "warning",
            f"{path} is not the published file (MD5 {published}): it is damaged, or your own; get "
            f"it from {RELEASE}, or set MODEL_CHECKSUM_DISABLED=1 if it is your own.",
        )
        return
    checked = "MD5 as published" if published else "no checksum is published"
    found.add(item, "ok", _describe(path, f"{checked}; {licence}"))


def _examine_background_matting(found: Examination, path: Path) -> None:
    item = "weights BackgroundMattingV2"
    if not path.is_file():
        found.add(
            item,
            "missing",
            f"{path} does not exist; get a TorchScript file (MIT licence) from "
            f"{BACKGROUND_MATTING}, put it there or name it in "
            "capture.matte.background_matting_weights, or set capture.matte.backend to plate.",
        )
        return
    found.add(item, "ok", _describe(path, "no checksum is published"))


def _examine_face_alignment(found: Examination, detector: str) -> None:
    from eavatar.face.network import weights_folder, weights_of

    avoid = "set face.landmarks.backend to provided and give landmarks in the sample sheet"
    for weight in weights_of(detector):
        path = weights_folder() / weight.name
        source = f"{weight.url} ({FACE_ALIGNMENT_LICENCE})"
        _examine_named(found, path, source, avoid, "missing", "warning")


def _examine_perceptual(
    found: Examination, splats: Iterable[SplatSettings], tables: Iterable[EvaluateSettings]
) -> None:
    """The backbones of LPIPS; only where it is required their absence stops a run."""
    if _import_fault("torch"):
        return  # a finding already
    from eavatar.training.perceptual import BACKBONES, SITE, Net, weights_path

    required: set[tuple[Net, bool]] = {
        ("vgg", block.lpips_required) for block in splats if block.weights.lpips > 0
    }
    required |= {(block.lpips_net, block.lpips_required) for block in tables}
    for net in sorted({net for net, _ in required}):
        avoid = "set lpips_required to false to do without"
        gone: Status = "missing" if (net, True) in required else "warning"
        source = f"{SITE}/{BACKBONES[net]} ({TORCHVISION_LICENCE})"
        _examine_named(found, weights_path(net), source, avoid, gone, "wrong")


def _examine_named(
    found: Examination, path: Path, source: str, avoid: str, gone: Status, differs: Status
) -> None:
    """A weight file that may have the first digits of its SHA-256 in its name.

    Args:
        source: its address and licence.
        avoid: what to do instead of having the file.
        gone: the status if it does not exist.
        differs: the status if its name promises another file; a warning where it is only by custom
            that names hold such digits.
    """
    item = f"weights {path.name}"
    if not path.is_file():
        found.add(
            item, gone, f"{path} does not exist; download {source} to that place, or {avoid}."
        )
        return
    published = SHA256_IN_NAME.search(path.name)
    if published and not _digest(path, hashlib.sha256).startswith(published[1]):
        found.add(
            item,
            differs,
            f"{path} is damaged or another file: its SHA-256 does not begin with {published[1]} as "
            f"its name says; download {source} again, or {avoid}.",
        )
        return
    checked = "SHA-256 as its name says" if published else "no checksum is published"
    found.add(item, "ok", _describe(path, checked))


def _digest(path: Path, algorithm: Callable[[], hashlib._Hash]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _describe(path: Path, checked: str) -> str:
    return f"{path}, {path.stat().st_size / 2**20:.1f} MiB, {checked}"


# --- GPU, memory, disk --------------------------------------------------------------------------


def _examine_gpu(
    found: Examination, sdfs: Sequence[SdfSettings], splats: Sequence[SplatSettings]
) -> None:
    """Whether there is a GPU, has the memory of the profile, or can be done without.

    The need grows with the pixels of the image: 23 GiB at 2048².
    """
    if _import_fault("torch"):
        return
    import torch

    if not torch.cuda.is_available():
        if any(block.renderer == "dibr" for block in sdfs):
            text = "sdf.renderer dibr needs CUDA and there is no CUDA device; set it to splats."
            found.add("GPU", "missing", text)
        pixels = max((b.steps * b.views_per_step * b.image_size**2 for b in splats), default=0)
        days = pixels / CPU_PIXELS_PER_SECOND / 86400
        text = f"no CUDA device; stage II takes about {days:.2g} days on two cores"
        if days > MOST_CPU_DAYS:
            text += (
                ": use a machine with a GPU and a CUDA build of torch, or the sizes of "
                "config/demo.yaml in the column settings."
            )
        found.add("GPU", "missing" if days > MOST_CPU_DAYS else "ok", text)
        return
    properties = torch.cuda.get_device_properties(0)
    size = max((block.image_size for block in splats), default=0)
    need, has = GPU_MEMORY * (size / GPU_IMAGE_SIZE) ** 2, properties.total_memory
    text = f"{properties.name}, {has / GIB:.0f} GiB; {need / GIB:.0f} are expected to be needed"
    if has < need:
        text += "; lower splat.views_per_step or splat.image_size."
    found.add("GPU", "ok" if has >= need else "warning", text)


def _examine_memory(found: Examination, kept: int) -> None:
    """Whether the host has room for the frames that training keeps, and for itself."""
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


def count_frames(ingest: IngestSettings, footage: Footage, done: Path | None = None) -> int:
    """Frames that will be ingested, of all cameras.

    Args:
        done: ``results/<subject>/capture``; sequences that it holds with masks are left out.
    """
    every = 1 if footage.prepared else ingest.every
    timesteps = sum(
        -(-header.frames // every)
        for name, header in footage.headers.items()
        if done is None or not (done / "masks" / f"{name}.csv").exists()
    )
    return timesteps * len(footage.cameras)


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

    Each frame has image_size² pixels of 0.25 bytes as JPEG and 0.08 bytes as alpha mask (see
    `JPEG_BYTES`). Models, resume points, pictures and report add 2 GiB whatever the capture. At
    2048² and 43,000 frames, a whole NeRSemble subject, this is 57 GiB.
    """
    return round(frames * ingest.image_size**2 * (JPEG_BYTES + ALPHA_BYTES)) + MODEL_BYTES


def examine_disk(found: Examination, results: Path, need: int) -> None:
    """Whether the disk of the results folder has room for what will be written."""
    existing = next(path for path in (results, *results.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / GIB:.1f} GiB free in {existing}; the run writes about {need / GIB:.1f} GiB"
    if free < need:
        text += (
            "; free some, put results/ on a larger disk, or lower capture.ingest.image_size or "
            "raise capture.ingest.every."
        )
    found.add("disk", "ok" if free >= need else "wrong", text)
