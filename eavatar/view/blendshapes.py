"""An avatar without networks: neutral Gaussians and K linear blendshapes of them.

The Gaussians of a timestep are approximated by x_0 + Σ_k c_k b_k, with x_0 those of the neutral
expression at the mean pose of the training. The blendshapes b_k are the principal components about
x_0 of what the networks make of some timesteps, each at its own expression and pose: the
least-squares fit among all linear ones. Colours are those under the lamps, see
`eavatar.avatar.shading`.

They move and colour. Rotations, scales and opacities stay neutral: with them, images of held-out
timesteps come 0.4 to 0.9 dB nearer to the networks' (the embedded subject, with and without
appearance, and an ICT-FaceKit head) for more than twice the numbers. Colours gain 0.2 to 3.6 dB.

Letters: N Gaussians, K components, T timesteps; a row has 6 numbers, position and RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.avatar.torso import Torso
from eavatar.errors import UserError
from eavatar.io import Timestep
from eavatar.rendering.splatting import Gaussians, splat

# Of position and RGB in the fit: the range of a colour counts as much as 3 cm of displacement. With
# a tenth of that to a third, the images of three avatars are 0.2 dB less near, in the mean.
WEIGHTS = (1.0, 1.0, 1.0, 0.3, 0.3, 0.3)
MIN_STRENGTH = 1e-5  # of a component / the strongest: less is rounding
MAX_COMPONENTS = 64  # a page has two layers of a texture for each, and phones have 256


@dataclass(frozen=True)
class LinearAvatar:
    """Neutral Gaussians and their blendshapes, in canonical space.

    Attributes:
        neutral: (N, 6) position and RGB in [0, 1] of the neutral expression.
        quaternions: (N, 4) wxyz of length 1.
        scales: (N, 3) logarithms of canonical units.
        opacities: (N,) in [0, 1].
        head_weights: (N,) of the head, see `eavatar.avatar.torso`.
        components: (K, N, 6) that are added to ``neutral``, per standard deviation.
    """

    neutral: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    head_weights: Tensor
    components: Tensor

    @property
    def strengths(self) -> Tensor:
        """(K,) how much each component changes, in the unit of displacements."""
        norms: Tensor = _weighted(self.components).norm(dim=1)
        return norms

    def deform(self, coefficients: Tensor) -> Tensor:
        """(N, 6) position and RGB of coefficients (K,)."""
        moved = self.neutral + torch.einsum("k,knr->nr", coefficients, self.components)
        return torch.cat([moved[:, :3], moved[:, 3:].clamp(0, 1)], dim=1)

    def project(self, rows: Tensor) -> Tensor:
        """Coefficients (K,) whose Gaussians come nearest to rows (N, 6): the smallest of these."""
        basis = _weighted(self.components)
        # Of timesteps that are alike, some components change nothing.
        products = (basis @ basis.T).double()
        inverse = torch.linalg.pinv(products, rtol=MIN_STRENGTH**2, hermitian=True)
        along = basis @ _weighted(rows - self.neutral)
        found: Tensor = (inverse @ along.double()).float()
        return found

    def to_world(self, coefficients: Tensor, torso: Torso, pose: Tensor, scale: float) -> Gaussians:
        """The Gaussians (Eq. 8) of coefficients (K,) and a pose (6,); the features are RGB."""
        rows = self.deform(coefficients)
        means, quaternions = torso.to_world(
            rows[:, :3], self.quaternions, self.head_weights, pose, scale
        )
        return Gaussians(
            means, quaternions, scale * torch.exp(self.scales), self.opacities, rows[:, 3:]
        )


@torch.no_grad()
def distil(avatar: Avatar, timesteps: Sequence[Timestep], count: int) -> LinearAvatar:
    """The linear avatar with K blendshapes that comes nearest to the networks, on their device.

    Args:
        avatar: which the networks drive.
        timesteps: to which it is fitted.
        count: K.
    Raises:
        UserError: there are fewer timesteps than blendshapes.
    """
    most = min(len(timesteps), MAX_COMPONENTS)
    if not 1 <= count <= most:
        raise UserError(
            f"{count} blendshapes cannot be fitted to {len(timesteps)} timesteps; name a "
            f"number from 1 to {most}."
        )
    torso = avatar.generator.torso
    expression = torch.zeros(avatar.settings.head.expression_size, device=avatar.device)
    neutral = avatar.deform(expression, torso.rest_pose)
    rows = torch.stack([_rows(avatar, *_driving(avatar, step)) for step in timesteps])
    neutral_rows = _rows(avatar, expression, torso.rest_pose)
    return LinearAvatar(
        neutral_rows,
        neutral.quaternions,
        neutral.scales,
        torch.sigmoid(neutral.opacities),
        torso.head_weight(avatar.neutral.anchors),
        principal_components(rows, neutral_rows, count),
    )


def principal_components(rows: Tensor, neutral: Tensor, count: int) -> Tensor:
    """The components (K, N, 6) about the neutral that leave least of the rows, strongest first.

    A coefficient's mean square over the timesteps is 1, and its largest absolute value positive.

    Args:
        rows: (T, N, 6).
        neutral: (N, 6).
        count: K, at most T.
    """
    offsets = _weighted(rows - neutral)
    # The T×T matrix of inner products in place of the 6N×6N covariance.
    vectors = torch.linalg.eigh((offsets @ offsets.T).double())[1].flip(1)[:, :count].float()
    extremes = vectors.gather(0, vectors.abs().argmax(dim=0)[None])
    found = (vectors * extremes.sign()).T @ offsets / len(rows) ** 0.5
    components: Tensor = found.reshape(count, *neutral.shape) / neutral.new_tensor(WEIGHTS)
    return components


@torch.no_grad()
def follow(avatar: Avatar, linear: LinearAvatar, timesteps: Sequence[Timestep]) -> Tensor:
    """Coefficients (T, K) that come nearest to what the networks make of the timesteps."""
    found = [linear.project(_rows(avatar, *_driving(avatar, step))) for step in timesteps]
    return torch.stack(found)


@torch.no_grad()
def measure_psnr(
    avatar: Avatar, linear: LinearAvatar, timesteps: Sequence[Timestep], cameras: CameraBatch
) -> list[float]:
    """PSNR (dB) of each timestep over all cameras: linear against networks, before the upsampler.

    Args:
        avatar: of the networks.
        linear: that stands for it.
        timesteps: that drive both, the linear avatar by their projections.
        cameras: of the final images, whose sides are multiples of the upsampling.
    """
    values = []
    for step, row in zip(timesteps, follow(avatar, linear, timesteps), strict=True):
        expression, pose = _driving(avatar, step)
        expected = avatar.draw(expression, pose, cameras).features[..., :3]
        error = draw_linear(avatar, linear, row, pose, cameras) - expected
        values.append(-10 * float(error.square().mean().log10()))
    return values


def draw_linear(
    avatar: Avatar, linear: LinearAvatar, coefficients: Tensor, pose: Tensor, cameras: CameraBatch
) -> Tensor:
    """Images (C, h, w, 3) on white of a linear avatar, in the size of coarse images.

    Args:
        avatar: of the networks.
        linear: that stands for it.
        coefficients: (K,).
        pose: (6,).
        cameras: as of `measure_psnr`.
    """
    coarse = cameras.resize(max(cameras.width, cameras.height) // avatar.settings.upsampling)
    gaussians = linear.to_world(coefficients, avatar.generator.torso, pose, avatar.settings.scale)
    white = coefficients.new_ones(3)
    views = coarse.world_to_camera, coarse.intrinsics, coarse.width, coarse.height
    low_pass = avatar.settings.low_pass
    return splat(gaussians, *views, background=white, low_pass=low_pass).features


def _driving(avatar: Avatar, step: Timestep) -> tuple[Tensor, Tensor]:
    """What `Avatar.draw` takes of a timestep."""
    expression, rotation, translation = (
        torch.as_tensor(value, dtype=torch.float32, device=avatar.device)
        for value in (step.driving, step.rotation, step.translation)
    )
    return expression, torch.cat([rotation, translation])


def _rows(avatar: Avatar, expression: Tensor, pose: Tensor) -> Tensor:
    """(N, 6) canonical position and RGB, under the lamps, of what `Avatar.draw` takes."""
    gaussians, generator = avatar.deform(expression, pose), avatar.generator
    weights = generator.torso.head_weight(avatar.neutral.anchors)
    features = generator.shade(gaussians.colours, avatar.arrangement, weights, pose)
    return torch.cat([gaussians.points, features[:, :3]], dim=1)


def _weighted(rows: Tensor) -> Tensor:
    """Rows (…, N, 6) in the unit of displacements, flat: (…, 6N)."""
    return (rows * rows.new_tensor(WEIGHTS)).flatten(-2)
