"""Appearance coefficients that go with an expression, for expressions that nobody measured.

A linear regression over the training timesteps, as edited expressions and those of other people
come without an appearance. Letters: T timesteps, E expression and A appearance coefficients.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 30.0  # squared deviations; as much as E = 60 unit priors against half of the variance


def regress(expression: Tensor, appearance: Tensor) -> Tensor:
    """The matrix (A, 1 + E) of `predict` that fits the timesteps best, by ridge regression.

    Args:
        expression: (T, E), in standard deviations.
        appearance: (T, A), likewise.
    """
    inputs, outputs = expression.double(), appearance.double()
    centred, middle = inputs - inputs.mean(dim=0), outputs.mean(dim=0)
    regular = centred.T @ centred + RIDGE * torch.eye(inputs.shape[1], device=inputs.device)
    slopes = torch.linalg.solve(regular, centred.T @ (outputs - middle))
    offset = middle - inputs.mean(dim=0) @ slopes
    return torch.cat([offset[None], slopes]).T.to(expression.dtype)


def predict(matrix: Tensor, expression: Tensor) -> Tensor:
    """Appearance (A,) of an expression (E,), with a matrix (A, 1 + E) of `regress`."""
    return matrix[:, 0] + matrix[:, 1:] @ expression
