"""The avatar: neutral Gaussians, generator and upsampler as one model, and rendering it.

Letters: T timesteps, C cameras, E expression and A appearance coefficients, K colour channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.drivers import Drivers, expression_weights
from eavatar.avatar.gaussians import (
    Arrangement,
    CanonicalGaussians,
    Generated,
    Generator,
    NeutralGaussians,
)
from eavatar.avatar.prediction import predict
from eavatar.avatar.prepared import PreparedNetworks, prepare_networks
from eavatar.avatar.torso import Torso
from eavatar.avatar.upsample import make_upsampler
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.io import LANDMARKS, Timestep
from eavatar.rendering.splatting import LOW_PASS, splat
from eavatar.settings import ControlSettings, SdfSettings, Settings, SplatSettings, UpsamplerName


class HeadSettings(Settings):
    """What stage I decided, beside its tensors; the names are those of `SdfSettings`."""

    expression_size: int = Field(ge=1, description="expression coefficients")
    gaze_size: int = Field(0, ge=0, le=2, description="angles of the gaze, after these")
    appearance_size: int = Field(0, ge=0, description="appearance coefficients, after both")
    feature_size: int = Field(ge=1, description="channels of the feature of a Gaussian")
    colour_size: int = Field(ge=3, description="channels of its colour; the first three RGB")
    width: int = Field(ge=1, description="units of a hidden layer of the drivers")
    near: float = Field(description="full expression control below, squared distance, dm²")
    far: float = Field(description="full pose control beyond, squared distance, dm²")
    deform_scale: float = Field(description="largest displacement per axis, canonical units")

    @classmethod
    def of(
        cls,
        settings: SdfSettings,
        expression_size: int,
        appearance_size: int = 0,
        gaze_size: int = 0,
    ) -> Self:
        """What the settings of a training of stage I leave behind."""
        kept = settings.model_dump(include=set(cls.model_fields))
        return cls(
            expression_size=expression_size,
            gaze_size=gaze_size,
            appearance_size=appearance_size,
            **kept,
        )

    @property
    def driving_size(self) -> int:
        """Numbers that drive a timestep: expression, gaze and appearance."""
        return self.expression_size + self.gaze_size + self.appearance_size

    def make_drivers(self) -> Drivers:
        """Networks of these sizes that have learned nothing."""
        return Drivers(self.driving_size, self.feature_size, self.colour_size, self.width)


class AvatarSettings(Settings):
    """What drawing an avatar needs to know beside its tensors; names as of `SplatSettings`."""

    head: HeadSettings
    scale: float = Field(gt=0, description="canonical units to metres")
    image_size: int = Field(ge=1, description="side of the images trained on, pixels")
    upsampling: int = Field(ge=1, description="final size / size of the splatted features")
    low_pass: float = Field(LOW_PASS, gt=0, description="of the splatting, its pixels²")
    shading: bool = Field(False, description="colours change with the head's rotation")
    upsampler: UpsamplerName = Field(description="which network")
    upsampler_width: int = Field(ge=1, description="its channels")
    width: int = Field(ge=1, description="units of a hidden layer of the attribute networks")
    attribute_scale: float = Field(description="factor of the attribute residuals")
    control: ControlSettings

    @classmethod
    def of(cls, settings: SplatSettings, head: HeadSettings, scale: float) -> Self:
        """What the settings of a training of stage II leave behind."""
        kept = settings.model_dump(include=set(cls.model_fields))
        return cls(head=head, scale=scale, **kept)


@dataclass(frozen=True)
class CameraBatch:
    """C cameras that see images of one size.

    Attributes:
        intrinsics: (C, 3, 3) of the final image, pixels.
        world_to_camera: (C, 4, 4) rigid, metres.
        height: of the final image, pixels.
        width: of the final image, pixels.
    """

    intrinsics: Tensor
    world_to_camera: Tensor
    height: int
    width: int

    @classmethod
    def of(cls, cameras: Sequence[Camera], device: torch.device) -> Self:
        """The cameras as tensors on a device.

        Raises:
            UserError: there is none, or their images are of different sizes.
        """
        sizes = sorted({(camera.width, camera.height) for camera in cameras})
        if len(sizes) != 1:
            found = ", ".join(f"{width}×{height}" for width, height in sizes) or "none"
            raise UserError(
                f"the cameras to draw must have one image size, not {found}; give them one with "
                "Camera.resize, or draw them one by one."
            )
        (width, height), *_ = sizes

        def stack(matrices: list[NDArray[np.float64]]) -> Tensor:
            return torch.as_tensor(np.stack(matrices), dtype=torch.float32, device=device)

        return cls(
            stack([camera.intrinsics for camera in cameras]),
            stack([camera.world_to_camera for camera in cameras]),
            height,
            width,
        )

    def resize(self, longer: int) -> CameraBatch:
        """The same views in images whose longer side has so many pixels."""
        factor = longer / max(self.width, self.height)
        if factor == 1:
            return self
        width, height = round(factor * self.width), round(factor * self.height)
        scales = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return CameraBatch(scales[:, None] * self.intrinsics, self.world_to_camera, height, width)


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
class AvatarImages:
    """An avatar in several views.

    Attributes:
        fine: (C, H, W, 3) final colours, not clamped.
        coarse: as of `Coarse.features`.
        generated: as of `Coarse`.
        pairs: as of `Coarse`.
    """

    fine: Tensor
    coarse: Tensor
    generated: Generated
    pairs: Tensor


class Avatar(nn.Module):
    """A subject's head, driven by expression and pose.

    Args:
        settings: what drawing needs beside the tensors.
        drivers: stage I's colour and deformation networks.
        torso: stage I's blend of head and torso.
        neutral: the Gaussians.
        landmarks: (68, 3) of the neutral face, canonical.
        base: stage I's base motion; None for none.
        mixed_precision: run the networks in bfloat16 where the device is CUDA.
    """

    landmarks: Tensor
    appearance_by_expression: Tensor

    def __init__(
        self,
        settings: AvatarSettings,
        drivers: Drivers,
        torso: Torso,
        neutral: NeutralGaussians,
        landmarks: Tensor,
        base: BaseMotion | None = None,
        *,
        mixed_precision: bool = True,
    ):
        super().__init__()
        head = settings.head
        self.settings, self.neutral = settings, neutral
        self.generator = Generator(
            drivers,
            torso,
            head.driving_size,
            head.feature_size,
            settings.width,
            head.deform_scale,
            settings.attribute_scale,
            base,
            settings.shading,
        )
        self.upsampler = make_upsampler(
            settings.upsampler, head.colour_size, settings.upsampler_width, settings.upsampling
        )
        self.register_buffer("landmarks", landmarks)
        shape = head.appearance_size, 1 + head.expression_size
        self.register_buffer(
            "appearance_by_expression", torch.zeros(shape), persistent=shape[0] > 0
        )
        self._mixed_precision = mixed_precision
        self._arrangement: Arrangement | None = None
        self._prepared: PreparedNetworks | None = None

    @classmethod
    def blank(
        cls, settings: AvatarSettings, gaussians: int, base: BaseMotion | None = None
    ) -> Self:
        """An avatar with so many Gaussians whose tensors are loaded next."""
        neutral = NeutralGaussians.empty(gaussians, settings.head.feature_size)
        drivers = settings.head.make_drivers()
        return cls(settings, drivers, Torso(), neutral, torch.zeros(LANDMARKS, 3), base)

    @property
    def device(self) -> torch.device:
        """Where the avatar is, and draws."""
        return self.landmarks.device

    @property
    def mixed_precision(self) -> bool:
        """Whether the networks run in bfloat16; set it to choose, it counts on CUDA only."""
        return self._mixed_precision and self.landmarks.is_cuda

    @mixed_precision.setter
    def mixed_precision(self, value: bool) -> None:
        if value != self._mixed_precision:
            self._prepared = None
        self._mixed_precision = value

    @property
    def arrangement(self) -> Arrangement:
        """Driver weights and neighbour graph of the present set, made when first needed."""
        if self._arrangement is None:
            head, control = self.settings.head, self.settings.control
            self._arrangement = Arrangement.of(
                self.neutral.anchors,
                self.landmarks,
                head.near,
                head.far,
                control,
                self.generator.base,
                self.settings.shading,
            )
        return self._arrangement

    def prepare(self) -> Self:
        """Have what only depends on the Gaussians computed once, for frames without gradients.

        To be called where the avatar is only drawn: until it is moved to a device, sorted, resized
        or gets another precision, changes of its tensors are not seen. With gradients, all is
        computed as ever. It takes memory for each Gaussian, see `eavatar.avatar.prepared`.

        Returns:
            The avatar.
        """
        if self._prepared is None:
            self.generator.mixed_precision = self.mixed_precision
            from_neutral = self.settings.control.from_neutral
            self._prepared = prepare_networks(
                self.generator, self.neutral, self.arrangement, from_neutral
            )
        return self

    def _prepared_now(self) -> PreparedNetworks | None:
        return None if torch.is_grad_enabled() else self._prepared

    def _forget(self) -> None:
        """Forget what was made for the Gaussians as they have been."""
        self._arrangement, self._prepared = None, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, … do: the arrangement is made again, where the avatar now is."""
        self._forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def sort_by_expression_weight(self) -> Tensor:
        """Sort the Gaussians, the largest weight first, and invalidate the neighbour graph.

        To be called after any change of the set. In this order each driver works on one piece.

        Returns:
            (N,) the former index of each, for what others keep for them.
        """
        head = self.settings.head
        weights = expression_weights(self.neutral.anchors, self.landmarks, head.near, head.far)
        order = weights.argsort(descending=True, stable=True)
        self.neutral.reorder(order)
        self._forget()
        return order

    def draw(
        self,
        expression: Tensor,
        pose: Tensor,
        cameras: CameraBatch,
        capacity: int | None = None,
    ) -> Coarse:
        """Generate the Gaussians of one timestep once and splat them in C views.

        An image whose sides are no multiples of the upsampling is drawn up to the next ones.

        Args:
            expression: (E + G + A,); without the appearance (E + G,), then it is predicted from
                the expression; without the gaze, too (E,), then it is straight.
            pose: (6,) axis-angle in radians, translation in metres.
            cameras: of the final images.
            capacity: see `eavatar.rendering.splatting.splat`.
        Raises:
            UserError: the expression has another number of coefficients.
        """
        return self.splat(self.generate(expression, pose), cameras, capacity)

    def splat(
        self, generated: Generated, cameras: CameraBatch, capacity: int | None = None
    ) -> Coarse:
        """The features of generated Gaussians in C views; arguments as of `draw`."""
        factor, intrinsics = self.settings.upsampling, cameras.intrinsics
        drawn = splat(
            generated.gaussians,
            cameras.world_to_camera,
            torch.cat([intrinsics[:, :2] / factor, intrinsics[:, 2:]], dim=1),
            math.ceil(cameras.width / factor),
            math.ceil(cameras.height / factor),
            background=intrinsics.new_ones(generated.gaussians.features.shape[-1]),
            capacity=capacity,
            low_pass=self.settings.low_pass,
        )
        return Coarse(drawn.features, generated, drawn.pairs)

    def generate(self, expression: Tensor, pose: Tensor) -> Generated:
        """The Gaussians of one timestep in world space; arguments and errors as of `deform`."""
        self.generator.mixed_precision = self.mixed_precision
        generated: Generated = self.generator(
            self.neutral,
            self.arrangement,
            self.settings.control,
            self.complete(expression),
            pose,
            self.settings.scale,
            self._prepared_now(),
        )
        return generated

    def deform(self, expression: Tensor, pose: Tensor) -> CanonicalGaussians:
        """The Gaussians of one timestep before the head pose moves them; arguments as of `draw`.

        Raises:
            UserError: the expression has another number of coefficients.
        """
        self.generator.mixed_precision = self.mixed_precision
        return self.generator.deform(
            self.neutral,
            self.arrangement,
            self.settings.control,
            self.complete(expression),
            pose,
            self._prepared_now(),
        )

    def complete(self, driving: Tensor) -> Tensor:
        """(E + G + A,) of an expression as of `draw`.

        Raises:
            UserError: the expression has another number of coefficients.
        """
        head = self.settings.head
        if driving.shape == (head.driving_size,):
            return driving
        if driving.shape == (head.expression_size,):
            driving = nn.functional.pad(driving, (0, head.gaze_size))
        if driving.shape == (head.expression_size + head.gaze_size,):
            expression = driving[: head.expression_size]
            return torch.cat([driving, predict(self.appearance_by_expression, expression)])
        own = f" and {head.appearance_size} of its appearance" if head.appearance_size else ""
        raise UserError(
            f"the expression to draw has the shape {tuple(driving.shape)}, but the avatar has "
            f"{head.expression_size} coefficients{own}; use the tracking that it was trained with."
        )

    def upsample(self, features: Tensor) -> Tensor:
        """Splatted features (C, h, w, K) to final colours (C, H, W, 3), not clamped."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.mixed_precision):
            fine: Tensor = self.upsampler(features).float()
            return fine

    def forward(
        self,
        expression: Tensor,
        pose: Tensor,
        cameras: CameraBatch,
        capacity: int | None = None,
    ) -> AvatarImages:
        """Draw and upsample; arguments as of `draw`. Differentiable, unlike `render`."""
        coarse = self.draw(expression, pose, cameras, capacity)
        fine = self.upsample(coarse.features)[:, : cameras.height, : cameras.width]
        return AvatarImages(fine, coarse.features, coarse.generated, coarse.pairs)

    @torch.no_grad()
    def render(
        self,
        timesteps: Timestep | Iterable[Timestep],
        cameras: Camera | Iterable[Camera] | Mapping[str, Camera],
    ) -> Tensor:
        """Images in [0, 1] on white, at the size of the cameras' images.

        The networks have learned what an image looks like whose longer side has
        ``settings.image_size`` pixels. So the image is drawn at that size, and resampled where the
        camera wants another: splatted at other sizes, Gaussians that close a surface at one leave
        holes or swell (measured at the size of the demo, 256: drawn at half the size 4.4 dB less,
        at twice the size 0.9 dB less than resampled).

        Args:
            timesteps: one, or T of them: a `Tracking`, a slice of it, a list.
            cameras: one, or C of one image size: a list, or what `read_cameras` gives.
        Returns:
            (H, W, 3) float32 on the avatar's device. Several cameras add an axis C in front, then
            several timesteps an axis T: up to (T, C, H, W, 3).
        Raises:
            UserError: there is no timestep or camera, image sizes differ, or the timesteps have
                another number of coefficients than the avatar.
        """
        steps = [timesteps] if isinstance(timesteps, Timestep) else list(timesteps)
        if not steps:
            raise UserError("there is no timestep to draw; give at least one.")
        if isinstance(cameras, Mapping):
            cameras = list(cameras.values())
        views = [cameras] if isinstance(cameras, Camera) else list(cameras)
        batch = CameraBatch.of(views, self.device)
        images = torch.stack([self._image(step, batch) for step in steps])
        if isinstance(cameras, Camera):
            images = images[:, 0]
        return images[0] if isinstance(timesteps, Timestep) else images

    def _image(self, timestep: Timestep, cameras: CameraBatch) -> Tensor:
        """(C, H, W, 3) in [0, 1], drawn at the size of the training."""
        expression, rotation, translation = (
            torch.as_tensor(value, dtype=torch.float32, device=self.device)
            for value in (timestep.driving, timestep.rotation, timestep.translation)
        )
        trained = cameras.resize(self.settings.image_size)
        fine = self(expression, torch.cat([rotation, translation]), trained).fine
        if trained is not cameras:
            size = (cameras.height, cameras.width)
            planes = fine.permute(0, 3, 1, 2)
            fine = interpolate(planes, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        image: Tensor = fine.clamp(0, 1)
        return image

    def resize(self, count: int) -> None:
        """Change the number of Gaussians, whose values are loaded next."""
        for tensor in (*self.neutral.parameters(), self.neutral.anchors):
            tensor.data = tensor.data.new_zeros(count, tensor.shape[1])
        self._forget()
