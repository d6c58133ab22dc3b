"""What the programs share that make a mesh with a generative model.

Such a program is a script for the interpreter of an environment of its own, whose Python and
packages differ from ours. These files import nothing of this package: only the standard library of
Python 3.10, NumPy, Pillow and, once they run, what the environment brings::

    <python> run_<generator>.py --request request.json --mesh mesh.ply --record generation.json
    <python> run_<generator>.py --probe

The request is what `prepare_prior` wrote; the record repeats it and adds what came of it. The
second call prints a line of JSON on what the program runs on, and makes nothing. The first one is
ended after ``--minutes``, if they are given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMAT = 1
GIB = 2**30
PACKAGES = (
    "torch",
    "xformers",
    "spconv-cu118",
    "spconv",
    "spconv-triton",
    "kaolin",
    "hy3dgen",
    "numpy",
)
INSTEAD = "or set prior.generate.source to template"


class Refusal(Exception):
    """One sentence on why there is no mesh, and what to do."""


@dataclass(frozen=True)
class Surface:
    """A triangle mesh.

    Attributes:
        vertices: (V, 3) float.
        faces: (F, 3) integer.
        colours: (V, 3) RGB in [0, 1], or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray | None = None


@dataclass(frozen=True)
class Generator:
    """A generative model, as its program runs it.

    Attributes:
        name: for sentences.
        environment: the file that its environment is made from.
        modules: imported before anything else, so that what is missing is told at once.
        memory: GiB of GPU memory that its authors ask for.
        load: the model, from the request and a torch device.
        make: the mesh, from the model, the request and the images by name.
    """

    name: str
    environment: str
    modules: tuple[str, ...]
    memory: float
    load: Callable[[dict[str, Any], Any], Any]
    make: Callable[[Any, dict[str, Any], dict[str, Image.Image]], Surface]


def main(generator: Generator, arguments: Sequence[str] | None = None) -> int:
    """Run a generator's program; the exit status, 2 after a refusal."""
    parser = argparse.ArgumentParser(description=f"Make a mesh from images with {generator.name}.")
    parser.add_argument("--probe", action="store_true", help="print what it runs on, and stop")
    for name in ("--request", "--mesh", "--record"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--minutes", type=float, help="after which it is ended; never if not given")
    options = parser.parse_args(arguments)
    files = options.request, options.mesh, options.record
    if not options.probe and None in files:
        parser.error("--request, --mesh and --record are needed, or --probe alone")
    try:
        if options.minutes is not None:
            return _run_for(options.minutes, *files)
        _import(generator)
        if options.probe:
            print(json.dumps(describe_machine()))
        else:
            _run(generator, *files)
    except Refusal as error:
        # The form of our verbs, by which a log's last sentence is found.
        print(f"eavatar run-generator: {error}", file=sys.stderr)
        return 2
    return 0


def _run_for(minutes: float, *files: Path) -> int:
    """Run this program as a process group, which is ended with its time or with this process.

    From outside, as a program that hangs in a driver's call hears nothing from its own Python.
    """
    named = zip(("--request", "--mesh", "--record"), map(str, files), strict=True)
    command = [sys.executable, sys.argv[0], *(word for pair in named for word in pair)]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(minutes * 60)
    except subprocess.TimeoutExpired as error:
        raise Refusal(
            f"there was no mesh within {minutes:g} minutes, and the generator was ended; if it "
            "was still at work, give it more (at the end of snakemake's command: --set-resources "
            f"run_generator:runtime={2 * minutes:g}), {INSTEAD}."
        ) from error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _leave(number: int, _: object) -> None:
    """End this process after a signal, by way of what it has to clean up."""
    sys.exit(128 + number)


def _import(generator: Generator) -> None:
    """Import what the generator needs, CUDA extensions with it."""
    for name in generator.modules:
        try:
            import_module(name)
        except Exception as error:  # what a package raises on import is its own affair
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Refusal(
                f"{name} cannot be imported by {sys.executable} ({reason}); make the environment "
                f"of {generator.environment} anew (docs/prior.md), {INSTEAD}."
            ) from error


def describe_machine() -> dict[str, Any]:
    """Versions, and the GPU if there is one."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {"python": platform.python_version(), "packages": packages}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = round(properties.total_memory / GIB, 1)
        return {**found, "device": properties.name, "gpu_memory_gib": memory}
    return {**found, "device": "CPU", "gpu_memory_gib": None}


def _run(generator: Generator, request_path: Path, mesh_path: Path, record_path: Path) -> None:
    """Load, make, check, write."""
    import torch

    request, images = _read_request(request_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times = [time.perf_counter()]
    try:
        model = generator.load(request, device)
    except Exception as error:
        raise _explain_loading(generator, request, error) from error
    times.append(time.perf_counter())
    try:
        surface = generator.make(model, request, images)
    except Exception as error:
        raise _explain_run(generator, request, error) from error
    times.append(time.perf_counter())
    check_surface(generator, request, surface)
    run = describe_run(times)
    mesh = describe_surface(surface)
    record = {"format": FORMAT, "asked": request, "mesh": mesh, "run": run}
    _write(mesh_path, encode_ply(surface))
    _write(record_path, (json.dumps(record, indent=2) + "\n").encode())
    counts = f"{len(surface.vertices)} vertices, {len(surface.faces)} faces"
    print(f"{generator.name}: {counts} in {run['seconds']:.0f} s", file=sys.stderr)


def _read_request(path: Path) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """The request, and its images by name."""
    try:
        request = json.loads(path.read_text())
        images: dict[str, Image.Image] = {
            view["name"]: Image.open(path.parent / view["image"]) for view in request["views"]
        }
        for image in images.values():
            image.load()  # at once, so that a damaged one is told here
    except Exception as error:  # what Pillow raises on a damaged image is its own affair
        raise Refusal(
            f"the request {path}, or an image that it names, cannot be read ({_reason(error)}); "
            "run prepare-prior again."
        ) from error
    return request, images


def describe_run(times: Sequence[float]) -> dict[str, Any]:
    """On what it ran, how long, and in how much GPU memory.

    Args:
        times: at the start, when the model was loaded, and when the mesh was made; seconds.
    """
    import torch

    peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
    loading, making = (round(end - start, 1) for start, end in pairwise(times))
    return {
        **describe_machine(),
        "peak_gpu_memory_gib": peak and round(peak, 2),
        "seconds_loading": loading,
        "seconds": making,
    }


# --- what goes wrong ----------------------------------------------------------------------------


def _explain_loading(generator: Generator, request: dict[str, Any], error: Exception) -> Refusal:
    if _out_of_memory(error):
        return _memory_refusal(generator, request)
    traceback.print_exception(error)
    return Refusal(
        f"the weights in {request['weights']} cannot be loaded ({_reason(error)}); get what "
        f"`eavatar doctor` lists as missing, {INSTEAD}."
    )


def _explain_run(generator: Generator, request: dict[str, Any], error: Exception) -> Refusal:
    import torch

    if _out_of_memory(error):
        return _memory_refusal(generator, request)
    traceback.print_exception(error)
    reason = _reason(error)
    if not torch.cuda.is_available():
        return Refusal(
            f"it stopped ({reason}) without a GPU: {sys.executable} sees no CUDA device, and one "
            f"with {generator.memory:g} GiB is needed; run it where there is one, {INSTEAD}."
        )
    if "no kernel image" in str(error):
        return Refusal(
            f"the packages of {generator.environment} have no code for this GPU, "
            f"{torch.cuda.get_device_name()} ({reason}); use an older GPU or newer builds of "
            f"them, {INSTEAD}."
        )
    return Refusal(
        f"it stopped ({reason}; more above); try another prior.generate.{request['source']}.seed, "
        f"{INSTEAD}."
    )


def _out_of_memory(error: Exception) -> bool:
    """Whether torch, or an extension in words of its own, found too little GPU memory."""
    import torch

    words = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in words


def _memory_refusal(generator: Generator, request: dict[str, Any]) -> Refusal:
    import torch

    has = ""
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        has = f" ({name}: {free / GIB:.1f} of {whole / GIB:.1f} GiB are free now)"
    return Refusal(
        f"GPU memory ran out{has}; {generator.memory:g} GiB are needed: stop what else uses it "
        f"(nvidia-smi), choose another GPU with CUDA_VISIBLE_DEVICES, {INSTEAD}."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": .")


def check_surface(generator: Generator, request: dict[str, Any], surface: Surface) -> None:
    """Refuse what is no mesh.

    Raises:
        Refusal: it has no faces, vertices that are not finite, or faces of vertices that are not
            there.
    """
    fault = ""
    if len(surface.faces) == 0 or len(surface.vertices) == 0:
        fault = "it is empty"
    elif not np.isfinite(surface.vertices).all():
        bad = int((~np.isfinite(surface.vertices)).any(axis=1).sum())
        fault = f"{bad} of its {len(surface.vertices)} vertices are not finite"
    elif surface.faces.min() < 0 or surface.faces.max() >= len(surface.vertices):
        fault = "its faces name vertices that are not there"
    if fault:
        images = ", ".join(view["image"] for view in request["views"])
        raise Refusal(
            f"what was made is no mesh: {fault}; look whether {images} show the head, try another "
            f"prior.generate.{request['source']}.seed, {INSTEAD}."
        )


# --- what is written ----------------------------------------------------------------------------


def describe_surface(surface: Surface) -> dict[str, Any]:
    """Its numbers; watertight is a mesh whose every edge has two faces."""
    edges = np.sort(surface.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges.astype(np.int64), axis=0, return_counts=True)
    return {
        "vertices": len(surface.vertices),
        "faces": len(surface.faces),
        "watertight": bool((counts == 2).all()),
        "low": surface.vertices.min(axis=0).round(4).tolist(),
        "high": surface.vertices.max(axis=0).round(4).tolist(),
    }


def encode_ply(surface: Surface) -> bytes:
    """A binary ``.ply`` file."""
    fields: list[tuple[str, str]] = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    columns = list(surface.vertices.T)
    if surface.colours is not None:
        fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
        columns += list((surface.colours.clip(0, 1) * 255).round().T)
    vertices = np.empty(len(surface.vertices), dtype=fields)
    for (name, _), column in zip(fields, columns, strict=True):
        vertices[name] = column
    faces = np.empty(len(surface.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, surface.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {kinds[kind]} {name}" for name, kind in fields]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return ("\n".join(header) + "\n").encode() + vertices.tobytes() + faces.tobytes()


def _write(path: Path, content: bytes) -> None:
    """Write a file that exists only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Refusal(f"{path} cannot be written ({error.strerror}).") from error
