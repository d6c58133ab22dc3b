"""The avatar: neutral Gaussians, generator and upsampler as one model, its file, and rendering it.

``model.safetensors`` holds all tensors, ``model.yaml`` the settings and sizes that made them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from eavatar.avatar.drivers import Drivers, expression_weights
from eavatar.avatar.gaussians import Arrangement, Generated, Generator, NeutralGaussians
from eavatar.avatar.torso import Torso
from eavatar.avatar.upsample import make_upsampler
from eavatar.errors import UserError
from eavatar.io import atomic, require
from eavatar.rendering.splatting import splat
from eavatar.settings import SplatSettings, read_yaml, validate


@dataclass(frozen=True)
class Sizes:
    """What stage I decided, beside its tensors.

    Attributes:
        expression: E coefficients. feature, colour: channels. width: units of the drivers.
        near, far: squared distances between which expression gives way to pose, canonical units².
        deform_scale: largest displacement per axis, canonical units.
        scale: canonical units to metres.
    """

    expression: int
    feature: int
    colour: int
    width: int
    near: float
    far: float
    deform_scale: float
    scale: float


@dataclass(frozen=True)
class Coarse:
    """Splatted features of several views, before the upsampler.

    Attributes:
        features: (C, h, w, K) on white, the first three RGB.
        generated: the Gaussians.
        pairs: () of a Gaussian and a tile, see `eavatar.rendering.splatting.splat`.
    """

    features: Tensor
    generated: Generated
    pairs: Tensor


@dataclass(frozen=True)
class Picture:
    """An avatar in several views.

    Attributes:
        fine: (C, H, W, 3) final colours, not clamped.
        coarse, generated, pairs: as in `Coarse`.
    """

    fine: Tensor
    coarse: Tensor
    generated: Generated
    pairs: Tensor


class Avatar(nn.Module):
    """A subject's head, driven by expression and pose.

    Args:
        settings: of stage II. sizes: of stage I.
        drivers: stage I's colour and deformation networks. torso: its blend of head and torso.
        neutral: the Gaussians. landmarks: (68, 3) of the neutral face, canonical.
    """

    landmarks: Tensor

    def __init__(
        self,
        settings: SplatSettings,
        sizes: Sizes,
        drivers: Drivers,
        torso: Torso,
        neutral: NeutralGaussians,
        landmarks: Tensor,
    ):
        super().__init__()
        self.settings, self.sizes = settings, sizes
        self.neutral = neutral
        self.generator = Generator(
            drivers,
            torso,
            sizes.expression,
            sizes.feature,
            settings.width,
            sizes.deform_scale,
            settings.attribute_scale,
        )
        self.upsampler = make_upsampler(
            settings.upsampler, sizes.colour, settings.upsampler_width, settings.upsampling
        )
        self.register_buffer("landmarks", landmarks)
        self._arrangement: Arrangement | None = None

    @property
    def mixed_precision(self) -> bool:
        """Whether the networks run in bfloat16."""
        return self.settings.run.mixed_precision and self.landmarks.is_cuda

    @property
    def arrangement(self) -> Arrangement:
        """Driver weights and neighbour graph of the present set, made when first needed."""
        if self._arrangement is None:
            sizes, control = self.sizes, self.settings.control
            self._arrangement = Arrangement.of(
                self.neutral.anchors,
                self.landmarks,
                sizes.near,
                sizes.far,
                control,
            )
        return self._arrangement

    @torch.no_grad()
    def set_changed(self, optimiser: Optimizer | None = None) -> None:
        """Put the Gaussians in order and forget the arrangement; to be called after any change.

        In order of the expression's falling share, each driver works on one piece of the set.
        """
        near, far = self.sizes.near, self.sizes.far
        weights = expression_weights(self.neutral.anchors, self.landmarks, near, far)
        order = weights.argsort(descending=True, stable=True)
        self.neutral.change(order, optimiser=optimiser)
        self._arrangement = None

    def draw(
        self,
        expression: Tensor,
        pose: Tensor,
        intrinsics: Tensor,
        world_to_camera: Tensor,
        height: int,
        width: int,
        capacity: int | None = None,
    ) -> Coarse:
        """Generate the Gaussians of one timestep once and splat them in C views.

        Args:
            expression: (E,). pose: (6,) axis-angle in radians, translation in metres.
            intrinsics: (C, 3, 3) of the final image, pixels. world_to_camera: (C, 4, 4).
            height, width: of the final image, pixels.
            capacity: see `eavatar.rendering.splatting.splat`.
        """
        factor = self.settings.upsampling
        self.generator.mixed_precision = self.mixed_precision
        generated = self.generator(
            self.neutral,
            self.arrangement,
            self.settings.control,
            expression,
            pose,
            self.sizes.scale,
        )
        drawn = splat(
            generated.gaussians,
            world_to_camera,
            torch.cat([intrinsics[:, :2] / factor, intrinsics[:, 2:]], dim=1),
            width // factor,
            height // factor,
            background=intrinsics.new_ones(self.sizes.colour),
            capacity=capacity,
            with_depth=False,
        )
        return Coarse(drawn.features, generated, drawn.pairs)

    def upsample(self, features: Tensor) -> Tensor:
        """Splatted features (C, h, w, K) to final colours (C, H, W, 3), not clamped."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.mixed_precision):
            return self.upsampler(features).float()

    def forward(
        self,
        expression: Tensor,
        pose: Tensor,
        intrinsics: Tensor,
        world_to_camera: Tensor,
        height: int,
        width: int,
        capacity: int | None = None,
    ) -> Picture:
        """Draw and upsample; arguments as of `draw`."""
        coarse = self.draw(expression, pose, intrinsics, world_to_camera, height, width, capacity)
        fine = self.upsample(coarse.features)
        return Picture(fine, coarse.features, coarse.generated, coarse.pairs)

    @torch.no_grad()
    def render(
        self,
        expression: Tensor,
        rotation: Tensor,
        translation: Tensor,
        intrinsics: Tensor,
        world_to_camera: Tensor,
    ) -> Tensor:
        """Images (C, H, W, 3) in [0, 1] on white, of the size the avatar was trained at.

        Args:
            expression: (E,). rotation: (3,) axis-angle, radians. translation: (3,) metres.
            intrinsics: (C, 3, 3) of the final image, pixels. world_to_camera: (C, 4, 4).
        """
        pose, size = torch.cat([rotation, translation]), self.settings.image_size
        return self(expression, pose, intrinsics, world_to_camera, size, size).fine.clamp(0, 1)

    def resize(self, count: int) -> None:
        """Make room for so many Gaussians, whose values are loaded next."""
        for tensor in (*self.neutral.parameters(), self.neutral.anchors):
            tensor.data = tensor.data.new_zeros(count, tensor.shape[1])
        self._arrangement = None


def check_finite(avatar: Avatar) -> None:
    """Raise `UserError` if a tensor of the model is not finite: such a model is never saved."""
    for name, tensor in avatar.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"stage II: {name} is not finite after training; lower splat.learning_rates."
            )


def write_avatar(folder: Path, avatar: Avatar) -> Path:
    """Write ``model.yaml`` and then ``model.safetensors``; returns the latter.

    Raises:
        UserError: the model holds values that are not finite.
    """
    check_finite(avatar)
    content: dict[str, Any] = {
        "sizes": asdict(avatar.sizes) | {"gaussians": len(avatar.neutral)},
        "settings": avatar.settings.model_dump(mode="json"),
    }
    with atomic(folder / "model.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    tensors = {name: value.cpu().contiguous() for name, value in avatar.state_dict().items()}
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    return folder / "model.safetensors"


def read_avatar(folder: Path) -> Avatar:
    """Read a trained avatar from ``splat/<variant>``.

    Raises:
        UserError: a file is missing, unreadable, or the two do not belong together.
    """
    path, description = folder / "model.safetensors", folder / "model.yaml"
    content = read_yaml(require(description, "the avatar's description"))
    try:
        sizes = dict(content["sizes"])
        count = int(sizes.pop("gaussians"))
        settings = validate(SplatSettings, content["settings"], str(description))
        avatar = _blank(settings, Sizes(**sizes), count)
        avatar.load_state_dict(load_file(require(path, "the avatar's model")))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} holds no avatar of this version: {reason}.") from error
    return avatar.eval()


def _blank(settings: SplatSettings, sizes: Sizes, count: int) -> Avatar:
    drivers = Drivers(sizes.expression, sizes.feature, sizes.colour, sizes.width)
    neutral = NeutralGaussians.empty(count, sizes.feature)
    return Avatar(settings, sizes, drivers, Torso(), neutral, torch.zeros(68, 3))
