"""Backends: the interchangeable ways to do one step, each described by one record.

A kind of backend has a package with a module for each, named like the setting's value that chooses
it: ``capture.matte.backend: rembg`` is ``eavatar/capture/backends/rembg.py``. The module holds the
record `BACKEND` and what it refers to. Settings, checks before a run, `doctor` and the workflow
ask the records, so that a new backend is a new module and nothing else in the package.

The workflow reads the records where only its own packages are installed: such a module imports
what is heavy (OpenCV, PyTorch, …) in the functions that need it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class WeightFile:
    """A file of network weights; it is never downloaded behind the user's back.

    Attributes:
        path: where it is looked for.
        source: where it can be had.
        licence: of the weights.
        digest: published, the algorithm and the first digits or all, as in ``sha256:619a3168``.
        note: what else helps a user whose file is missing or another one.
        restriction: what speaks against commercial use all the same; empty if nothing does.
        open: reads the file by itself, without its backend's packages where that can be; any error
            is the file's fault. None if only the backend's `load` can tell.
    """

    path: Path
    source: str
    licence: str
    digest: str | None = None
    note: str = ""
    restriction: str = ""
    open: Callable[[Path], object] | None = None


def _no_weights(settings: Any) -> tuple[WeightFile, ...]:
    return ()


def _nothing(settings: Any) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to do a step.

    Attributes:
        name: the setting's value that chooses it.
        run: does the work; arguments and result are those of its kind.
        instead: what to do without it: the end of a sentence like "…, or set x to y".
        settings: class of its own settings, the sub-block of its name; None if it has none.
        weights: the files it reads, given its own settings. May raise `UserError`.
        load: opens all of them as `run` does, given its own settings; `UserError` if that fails.
            The checks before a run call it where the files exist.
        packages: modules it imports that not every run needs.
        install: how to get them, an imperative.
        gpu: whether it cannot do without a GPU, uses one where there is one, or never does.
        column: of the sample sheet, whose file or folder it needs.
    """

    name: str
    run: Callable[..., Any]
    instead: str
    settings: type[BaseModel] | None = None
    weights: Callable[[Any], tuple[WeightFile, ...]] = _no_weights
    load: Callable[[Any], object] = _nothing
    packages: tuple[str, ...] = ()
    install: str = "run `make install`, or let snakemake --use-conda bring it"
    gpu: Literal["needed", "used", "unused"] = "unused"
    column: str | None = None


@dataclass(frozen=True, kw_only=True)
class MattingBackend(Backend):
    """Frames to masks: ``run(shot: Shot) -> Iterator[Image]`` (see `eavatar.capture.matting`).

    Attributes:
        needs_plates: it compares frames with the image of the empty set.
    """

    needs_plates: bool = False


@dataclass(frozen=True, kw_only=True)
class LandmarkBackend(Backend):
    """Frames to landmarks: ``run(job: LandmarkJob) -> (points, confidence)``.

    See `eavatar.face.landmarks`.
    """


@dataclass(frozen=True)
class WantedView:
    """An image of the head that a generator is shown, if a camera is there for it.

    Attributes:
        name: front, left, back or right; the subject's sides.
        yaw: degrees from where the face looks to where the camera should be, positive to the
            subject's left.
        tolerance: degrees from there within which a camera will do.
    """

    name: str
    yaw: float
    tolerance: float


@dataclass(frozen=True)
class Generator:
    """A program that makes a mesh from images, in an environment of its own.

    The environment is made from ``envs/<name of the backend>.yaml``.

    Attributes:
        program: script for the environment's interpreter, see `eavatar.prior.generators.process`.
        views: the images that it is shown, given its own settings; the first must be there.
        memory: GiB of GPU memory that its authors ask for.
        licence: what a user must know before choosing it.
        restriction: what of it speaks against commercial use; empty if nothing does.
    """

    program: Path
    views: Callable[[Any], tuple[WantedView, ...]]
    memory: float
    licence: str
    restriction: str = ""


@dataclass(frozen=True, kw_only=True)
class PriorBackend(Backend):
    """A fitted face to a head mesh: ``run(job: PriorJob) -> Mesh``.

    See `eavatar.prior.generate`.

    Attributes:
        generator: whose mesh ``run`` takes over; None for a backend that does its work in ``run``.
    """

    generator: Generator | None = None


@dataclass(frozen=True, kw_only=True)
class UpsamplerBackend(Backend):
    """``run(channels, width, factor) -> nn.Module``, see `eavatar.avatar.upsample`.

    Attributes:
        factors: final size / feature size that it can make; any if empty.
    """

    factors: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RendererBackend(Backend):
    """Stage I's renderer: ``run(device) -> function`` that draws as `render_surface` does.

    Attributes:
        capturable: its calls can be captured in a CUDA graph.
    """

    capturable: bool = False


Kind = TypeVar("Kind", bound=Backend)


class Registry(Mapping[str, Kind]):
    """The backends of one kind by name; a module is imported when its record is asked for.

    Args:
        setting: dotted name of the setting that chooses one.
        package: dotted name of the package whose modules they are.

    Attributes:
        added: backends from elsewhere, of a user's own code for example.
    """

    def __init__(self, setting: str, package: str):
        self.setting, self.package = setting, package
        self.added: dict[str, Kind] = {}

    def __iter__(self) -> Iterator[str]:
        for module in pkgutil.iter_modules(import_module(self.package).__path__):
            yield module.name
        yield from self.added

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Kind:
        if name in self.added:
            return self.added[name]
        if name not in list(self):
            raise KeyError(name)
        backend: Kind = import_module(f"{self.package}.{name}").BACKEND
        return backend

    def check(self, name: str) -> str:
        """The name itself, as a validator of settings; an error that lists the choices."""
        if name not in self:
            raise PydanticCustomError("choice", f"it must be one of {', '.join(self)}")
        return name


MATTING: Registry[MattingBackend] = Registry("capture.matte.backend", "eavatar.capture.backends")
LANDMARKS: Registry[LandmarkBackend] = Registry("face.landmarks.backend", "eavatar.face.backends")
PRIORS: Registry[PriorBackend] = Registry("prior.generate.source", "eavatar.prior.backends")
UPSAMPLERS: Registry[UpsamplerBackend] = Registry("splat.upsampler", "eavatar.avatar.upsamplers")
RENDERERS: Registry[RendererBackend] = Registry("sdf.renderer", "eavatar.sdf.renderers")
