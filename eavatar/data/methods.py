"""What a method is asked to draw, and the interface of every method that is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from eavatar.data.frames import FrameSet


@dataclass(frozen=True)
class ViewRequest:
    """One timestep of a sequence in C cameras.

    Attributes:
        sequence: its name.
        timestep: index within the sequence.
        expression: (E,) coefficients, in standard deviations.
        appearance: (K,) that was measured with this expression, in standard deviations, or none.
        gaze: (G,) of both eyes, radians, or none.
        rotation: (3,) axis-angle, radians.
        translation: (3,) metres.
        serials: C serial numbers of the cameras.
        intrinsics: (C, 3, 3) pixels of an image of the method's size.
        world_to_camera: (C, 4, 4).
    """

    sequence: str
    timestep: int
    expression: Tensor
    appearance: Tensor
    gaze: Tensor
    rotation: Tensor
    translation: Tensor
    serials: tuple[str, ...]
    intrinsics: Tensor
    world_to_camera: Tensor

    @classmethod
    def of(cls, frames: FrameSet, timestep: int, cameras: Sequence[int]) -> Self:
        """One of the T timesteps of frames as it was tracked, in some of their cameras."""
        chosen = list(cameras)
        return cls(
            sequence=frames.sequences[timestep],
            timestep=frames.timesteps[timestep],
            expression=frames.expression[timestep],
            appearance=frames.appearance[timestep],
            gaze=frames.gaze[timestep],
            rotation=frames.rotation[timestep],
            translation=frames.translation[timestep],
            serials=tuple(frames.serials[camera] for camera in chosen),
            intrinsics=frames.intrinsics[chosen],
            world_to_camera=frames.world_to_camera[chosen],
        )


class Method(Protocol):
    """Anything that draws a person's timesteps in given cameras."""

    @property
    def image_size(self) -> int:
        """Side of its square images, pixels."""

    @property
    def drivable(self) -> bool:
        """Whether it follows a request's expression; else it draws only what was tracked."""

    def render(self, request: ViewRequest) -> Tensor:
        """Images (C, H, W, 3) in [0, 1] on white, on the device of the request."""
