"""Normal equations of a chain of timesteps with a border of shared unknowns.

Unknowns: x (T, U) of the timesteps and y (S,) shared by all. The matrix has a dense block per
timestep, diagonal blocks between timesteps one and two apart (second differences) and a dense
border. A block Cholesky factorisation keeps that structure, so its time is linear in T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dtrtri

from eavatar.arrays import Float64


@dataclass(frozen=True)
class Chain:
    """The rows of one sequence.

    Attributes:
        blocks: (T, U, U) symmetric positive definite together with the two below.
        next_one: (T, U) diagonal of the block between timesteps t and t + 1; the last is unused.
        next_two: (T, U) the same for t and t + 2; the last two are unused.
        border: (T, U, S) between the timestep and the shared unknowns.
        gradient: (T, U).
    """

    blocks: Float64
    next_one: Float64
    next_two: Float64
    border: Float64
    gradient: Float64


@dataclass(frozen=True)
class CholeskyFactor:
    """Block Cholesky factor L of a chain, and its forward-solved right-hand sides.

    Attributes:
        inverse: (T, U, U) inverses of the blocks on L's diagonal: products with them are faster
            than thousands of small triangular solves.
        one_back: (T, U, U) blocks of L one left of the diagonal; zero where there is none.
        two_back: (T, U, U) the same two left of the diagonal.
        solved: (T, U, S + 1) L⁻¹ [border, gradient].
    """

    inverse: Float64
    one_back: Float64
    two_back: Float64
    solved: Float64

    @property
    def border(self) -> Float64:
        """(T · U, S) L⁻¹ border."""
        border: Float64 = self.solved[..., :-1].reshape(-1, self.solved.shape[2] - 1)
        return border


def _factorise(chain: Chain) -> CholeskyFactor:
    """Factorise a chain; `numpy.linalg.LinAlgError` if it is not positive definite."""
    inverse, one_back, two_back = (np.zeros_like(chain.blocks) for _ in range(3))
    solved = np.concatenate([chain.border, chain.gradient[..., None]], axis=2)
    for t, block in enumerate(chain.blocks):
        if t >= 2:
            two_back[t] = chain.next_two[t - 2][:, None] * inverse[t - 2].T
            block = block - two_back[t] @ two_back[t].T
            solved[t] -= two_back[t] @ solved[t - 2]
        if t >= 1:
            coupling = np.diag(chain.next_one[t - 1]) - two_back[t] @ one_back[t - 1].T
            one_back[t] = coupling @ inverse[t - 1].T
            block = block - one_back[t] @ one_back[t].T
            solved[t] -= one_back[t] @ solved[t - 1]
        inverse[t], _ = dtrtri(np.linalg.cholesky(block), lower=True)
        solved[t] = inverse[t] @ solved[t]
    return CholeskyFactor(inverse, one_back, two_back, solved)


def _back_substitute(factor: CholeskyFactor, shared_step: Float64) -> Float64:
    """The step (T, U) of a chain, given that of the shared unknowns (S,)."""
    right = -(factor.solved[..., -1] + factor.solved[..., :-1] @ shared_step)
    step = np.zeros_like(right)
    count = len(right)
    for t in reversed(range(count)):
        if t + 1 < count:
            right[t] -= factor.one_back[t + 1].T @ step[t + 1]
        if t + 2 < count:
            right[t] -= factor.two_back[t + 2].T @ step[t + 2]
        step[t] = factor.inverse[t].T @ right[t]
    return step


def solve(chains: list[Chain], matrix: Float64, gradient: Float64) -> tuple[list[Float64], Float64]:
    """Solve for the steps of all chains, (T, U) each, and of the shared unknowns (S,).

    Args:
        chains: one per sequence.
        matrix: (S, S) block of the shared unknowns.
        gradient: (S,); the steps solve ``[matrix of all] · step = -gradient``.
    """
    factors = [_factorise(chain) for chain in chains]
    for factor in factors:
        matrix = matrix - factor.border.T @ factor.border
        gradient = gradient - factor.border.T @ factor.solved[..., -1].ravel()
    shared_step: Float64 = np.asarray(np.linalg.solve(matrix, -gradient), dtype=np.float64)
    return [_back_substitute(factor, shared_step) for factor in factors], shared_step


def log_determinant(chains: list[Chain], matrix: Float64) -> float:
    """Natural logarithm of the determinant of the matrix of all unknowns.

    Args:
        chains: one per sequence.
        matrix: (S, S) block of the shared unknowns.
    """
    total = 0.0
    for factor in map(_factorise, chains):
        total -= 2 * np.log(np.einsum("tii->ti", factor.inverse)).sum()
        matrix = matrix - factor.border.T @ factor.border
    return float(total + np.linalg.slogdet(matrix).logabsdet)
