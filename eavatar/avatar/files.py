"""The model files of all trainings: tensors in ``model.safetensors``, the rest in ``model.yaml``.

    format    number of this layout
    avatar    stage II: `AvatarSettings`, what drawing needs
    head      stage I: `HeadSettings`, what stage II needs
    nerface, havatar   of `eavatar.baselines`: likewise, what drawing needs
    seen      stage I: `Seen`, so that nobody takes a camera for held out that it knows
    training  the settings of the training: a record for people that no code reads

A setting of the training may come and go. One that drawing needs and that is new must get its value
for older files here; ``tests/stored`` holds files that every later version reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.drivers import Drivers
from eavatar.avatar.model import Avatar, AvatarSettings, HeadSettings
from eavatar.avatar.torso import Torso
from eavatar.device import choose_device
from eavatar.errors import UserError
from eavatar.io import atomic, check_format, require
from eavatar.results import Results
from eavatar.settings import Settings, read_yaml, validate

FORMAT = 1
MODEL = "model.safetensors"

Description = TypeVar("Description", bound=Settings)
Model = TypeVar("Model", bound=nn.Module)

KINDS = {  # of models, by the block that describes one
    "avatar": "avatar (splat/<variant>)",
    "head": "stage I model (sdf/<variant>)",
    "nerface": "NeRFace model (nerface/<variant>)",
    "havatar": "HAvatar model (havatar/<variant>)",
}


class Seen(Settings):
    """What stage I was trained on."""

    cameras: tuple[str, ...] = Field(description="serial numbers")


@dataclass(frozen=True)
class StageOne:
    """What stage I has learned: ``sdf/<variant>/model.safetensors`` and ``model.yaml``.

    Attributes:
        head: sizes, and where expression gives way to pose.
        drivers: colour and deformation networks.
        torso: the blend of head and torso.
        landmarks: (68, 3) of the neutral face, canonical.
        vertices: (S, 3) of the neutral surface, canonical.
        features: (S, F) of its vertices, in (-1, 1).
        geometry: tensors of the network of the signed distance (Eq. 14), for which later stages
            have no use.
        base: what the expression moves before the drivers; None for nothing.
    """

    head: HeadSettings
    drivers: Drivers
    torso: Torso
    landmarks: Tensor
    vertices: Tensor
    features: Tensor
    geometry: Mapping[str, Tensor]
    base: BaseMotion | None = None


def write_stage_one(
    folder: Path, stage: StageOne, training: Settings, cameras: Sequence[str]
) -> Path:
    """Write ``model.yaml`` and then ``model.safetensors``; returns the latter.

    Args:
        folder: of both.
        stage: what was learned.
        training: the settings of the training.
        cameras: serial numbers of those that were trained on.

    Raises:
        UserError: a value is not finite; nothing is written then.
    """
    tensors = {
        **_above("geometry.", stage.geometry),
        **_above("drivers.", stage.drivers.state_dict()),
        **_above("torso.", stage.torso.state_dict()),
        **_above("base.", stage.base.state_dict() if stage.base else {}),
        "neutral_landmarks": stage.landmarks,
        "surface.positions": stage.vertices,
        "surface.features": stage.features,
    }
    blocks = {"head": stage.head, "seen": Seen(cameras=tuple(cameras)), "training": training}
    return write_model(folder, blocks, tensors, rates="sdf.learning_rate")


def read_stage_one(folder: Path) -> StageOne:
    """Read what `write_stage_one` wrote to ``sdf/<variant>``.

    Raises:
        UserError: a file is missing, unreadable, of an unknown format, or does not fit the other.
    """
    description = _read_description(folder, "head")
    head = validate(HeadSettings, description, str(folder / "model.yaml"))
    drivers, torso = head.make_drivers(), Torso()
    with _fitting(folder):
        tensors = _read_tensors(folder)
        drivers.load_state_dict(_below("drivers.", tensors))
        torso.load_state_dict(_below("torso.", tensors))
        return StageOne(
            head,
            drivers,
            torso,
            tensors["neutral_landmarks"],
            tensors["surface.positions"],
            tensors["surface.features"],
            _below("geometry.", tensors),
            _read_base("base.", tensors, head),
        )


def read_seen_cameras(folder: Path) -> tuple[str, ...]:
    """The serial numbers of the cameras that a stage I was trained on.

    Raises:
        UserError: ``model.yaml`` is missing or does not say.
    """
    path = require(folder / "model.yaml", "the description of the model")
    content = read_yaml(path)
    if "seen" not in content:
        raise UserError(
            f"{path} does not say which cameras it was trained on, as it was written by an "
            "earlier version; run `train_sdf` again."
        )
    return validate(Seen, content["seen"], str(path)).cameras


def write_avatar(folder: Path, avatar: Avatar, training: Settings) -> Path:
    """Write ``model.yaml`` and then ``model.safetensors``; returns the latter.

    Raises:
        UserError: a value is not finite; nothing is written then.
    """
    blocks = {"avatar": avatar.settings, "training": training}
    return write_model(folder, blocks, avatar.state_dict(), rates="splat.learning_rates")


def read_avatar(folder: Path) -> Avatar:
    """Read a trained avatar from ``splat/<variant>``, on the CPU.

    Raises:
        UserError: a file is missing, unreadable, of an unknown format, or does not fit the other.
    """
    description = _read_description(folder, "avatar")
    settings = validate(AvatarSettings, description, str(folder / "model.yaml"))
    with _fitting(folder):
        tensors = _read_tensors(folder)
        base = _read_base("generator.base.", tensors, settings.head)
        avatar = Avatar.blank(settings, len(tensors["neutral.positions"]), base)
        unlimited = _above("generator.seen.", avatar.generator.seen.state_dict())
        avatar.load_state_dict(unlimited | tensors)  # older avatars know no range
    return avatar.eval()


def load_avatar(
    path: str | Path, variant: str | None = None, device: str | torch.device | None = None
) -> Avatar:
    """Load a trained avatar to draw with it.

    Args:
        path: a subject's results folder (``results/<subject>``), or that of an avatar in it
            (``results/<subject>/splat/<variant>``).
        variant: which avatar of a results folder; the only one if not given, or ``full``.
        device: where it is to draw; a GPU if there is one.

    Raises:
        UserError: there is no such avatar, or it cannot be read.
    """
    folder = Path(path)
    if not (folder / "model.yaml").exists():
        folder = Results.open(folder).avatar(variant)
    return read_avatar(folder).to(device or choose_device())


def write_model(
    folder: Path, blocks: Mapping[str, Settings], tensors: Mapping[str, Tensor], rates: str
) -> Path:
    """Write ``model.yaml`` of some blocks and then ``model.safetensors``; returns the latter.

    Args:
        folder: of both.
        blocks: by name.
        tensors: by name.
        rates: the setting of the learning rates, for a sentence.
    Raises:
        UserError: a value is not finite; nothing is written then.
    """
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise UserError(
                f"the model is not saved to {folder}: '{name}' holds values that are not finite; "
                "train again, which goes on from the last checkpoint; if it ends so once more, "
                f"look at images, masks and tracking, and if these are right lower {rates}."
            )
    content: dict[str, Any] = {"format": FORMAT}
    content |= {name: block.model_dump(mode="json") for name, block in blocks.items()}
    with atomic(folder / "model.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    with atomic(folder / MODEL) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
    return folder / MODEL


def read_model(
    folder: Path, block: str, kind: type[Description], make: Callable[[Description], Model]
) -> Model:
    """Read what `write_model` wrote, on the CPU.

    Args:
        folder: of both files.
        block: of ``model.yaml`` that describes the model; a name in `KINDS`.
        kind: of that block.
        make: the model of a description, whose tensors are loaded next.
    Raises:
        UserError: a file is missing, unreadable, of an unknown format, or does not fit the other.
    """
    model = make(validate(kind, _read_description(folder, block), str(folder / "model.yaml")))
    with _fitting(folder):
        model.load_state_dict(_read_tensors(folder))
    return model.eval()


def _read_description(folder: Path, block: str) -> Any:
    """The part of ``model.yaml`` that code reads: the block of a name in `KINDS`.

    Raises:
        UserError: the file is missing, damaged, of an unknown format, or has no such block.
    """
    path = require(folder / "model.yaml", "the description of the model")
    content = read_yaml(path)
    if "format" not in content:
        content = _without_format(content)
    check_format(content, FORMAT, path)
    if block not in content:
        raise UserError(f"{path} describes no {KINDS[block]}; name the folder of one.")
    described = content[block]
    if not isinstance(described, dict):
        raise UserError(f"{path} is damaged: '{block}' is no mapping; train the model again.")
    if block == "avatar":  # older avatars were trained with the output itself
        _mapping(described.get("control")).setdefault("from_neutral", False)
    return described


def _without_format(content: Mapping[str, Any]) -> dict[str, Any]:
    """A description from before there were formats, ``sizes`` and ``settings``, as of format 1."""
    sizes, settings = ({**_mapping(content.get(name))} for name in ("sizes", "settings"))
    for name in ("expression", "feature", "colour"):
        sizes[f"{name}_size"] = sizes.pop(name, None)
    head = {name: sizes[name] for name in HeadSettings.model_fields if name in sizes}
    if "scale" not in sizes:
        return {"head": head}
    kept = {name: settings[name] for name in AvatarSettings.model_fields if name in settings}
    return {"avatar": kept | {"head": head, "scale": sizes["scale"]}}


def _mapping(value: Any) -> dict[str, Any]:
    """A value of a description; of a damaged one, which `validate` tells, an empty mapping."""
    return value if isinstance(value, dict) else {}


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of ``model.safetensors`` by name."""
    return load_file(require(folder / MODEL, "the model"))


def _read_base(prefix: str, tensors: Mapping[str, Tensor], head: HeadSettings) -> BaseMotion | None:
    """The base motion whose tensors have names with a prefix; None where a model has none."""
    own = _below(prefix, tensors)
    if not own:
        return None
    sizes = len(own["vertices"]), len(own["faces"]), head.expression_size, head.gaze_size
    base = BaseMotion.empty(*sizes)
    base.load_state_dict(own)
    return base


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Turn what goes wrong where tensors do not fit the description into one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}/model.safetensors does not fit its model.yaml ({reason}); train it again."
        ) from error


def _above(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
