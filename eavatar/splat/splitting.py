"""Splitting: a Gaussian is replaced by two children along its longest axis.

Which ones: by displacement, more where expressions move the surface most (Sec. 3.2), those whose
raw expression displacement has exceeded τ_split since the last split. Interval, offset and cap are
not in the paper. Or by error, those that the errors of the images fall on, which is not in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from eavatar.avatar.gaussians import NeutralGaussians
from eavatar.settings import SplitSettings
from eavatar.training.surgery import replace_rows
from eavatar.transforms import quaternion_to_matrix

OFFSET = 0.5  # of a child from its parent, in standard deviations along the longest axis
SHRINK = math.sqrt(1 - OFFSET**2)  # the two children together have the parent's variance


def choose_parents(
    displacements: Tensor, scales: Tensor, settings: SplitSettings, first_count: int
) -> Tensor:
    """Which Gaussians to split (N,) bool: above τ_split, the largest first where the cap binds.

    Args:
        displacements: (N,) largest raw expression displacement since the last split.
        scales: (N, 3) logarithms.
        settings: threshold and cap.
        first_count: number of Gaussians that the cap refers to.
    """
    allowed = max(int(settings.cap * first_count) - len(displacements), 0)
    wanted = displacements > settings.threshold
    sizes = scales.amax(dim=1).masked_fill(~wanted, -torch.inf)
    parents = torch.zeros_like(wanted)
    parents[sizes.topk(min(allowed, int(wanted.sum()))).indices] = True
    return parents


def choose_by_error(errors: Tensor, fraction: float, most: int) -> Tensor:
    """Which Gaussians to split (N,) bool: those with the largest errors, as far as there is room.

    Args:
        errors: (N,) that fall on each.
        fraction: of the Gaussians to split.
        most: number of Gaussians that there may be afterwards.
    """
    room = max(most - len(errors), 0)
    count = min(int(fraction * len(errors)), room, int((errors > 0).sum()))
    parents = torch.zeros(len(errors), dtype=torch.bool, device=errors.device)
    parents[errors.topk(count).indices] = True
    return parents


@torch.no_grad()
def split(neutral: NeutralGaussians, parents: Tensor, optimiser: Optimizer) -> None:
    """Replace each parent by two children, in place; the children come last.

    Args:
        neutral: the Gaussians.
        parents: (N,) bool.
        optimiser: of their parameters, see `eavatar.training.surgery.replace_rows`.
    """
    _replace(neutral, ~parents, _children(neutral, parents), optimiser)


@torch.no_grad()
def remove(neutral: NeutralGaussians, removed: Tensor, optimiser: Optimizer) -> None:
    """Remove some (N,) bool, in place; arguments as of `split`."""
    nothing = {name: value[:0] for name, value in neutral.named_parameters()}
    _replace(neutral, ~removed, nothing, optimiser)


def _replace(
    neutral: NeutralGaussians, stay: Tensor, fresh: dict[str, Tensor], optimiser: Optimizer
) -> None:
    parameters = dict(neutral.named_parameters())
    replace_rows(parameters, stay.nonzero()[:, 0], fresh, optimiser)
    neutral.anchors = neutral.positions.detach().clone()


def _children(neutral: NeutralGaussians, parents: Tensor) -> dict[str, Tensor]:
    """The parameters of all first children, then of all second ones."""
    inherited = {name: value[parents] for name, value in neutral.named_parameters()}
    lengths, longest = inherited["scales"].max(dim=1)
    axes = quaternion_to_matrix(inherited["rotations"])
    rows = torch.arange(len(lengths), device=lengths.device)
    offsets = OFFSET * lengths.exp()[:, None] * axes[rows, :, longest]
    inherited["scales"][rows, longest] += math.log(SHRINK)
    inherited["opacities"] = torch.logit(child_opacity(torch.sigmoid(inherited["opacities"])))
    children = {name: value.repeat(2, 1) for name, value in inherited.items()}
    children["positions"] += torch.cat([offsets, -offsets])
    return children


def child_opacity(opacity: Tensor) -> Tensor:
    """Opacity of two children that together cover what their parent covered.

    With offset d and shrink s in parent deviations, two children of opacity c seen from the side
    cover ``4 π s c - π s q c²`` where ``q = exp(-d²/s²)`` comes from their overlap; the parent of
    opacity o covers ``2 π o``. The smaller root of the equality.
    """
    overlap = math.exp(-((OFFSET / SHRINK) ** 2))
    return (2 - torch.sqrt(4 - 2 * overlap * opacity / SHRINK)) / overlap
