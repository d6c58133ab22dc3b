"""Normal equations of a chain of timesteps with a border of shared unknowns.

Unknowns: x (T, U) of the timesteps and y (S,) shared by all. The matrix has a dense block per
timestep, diagonal blocks between timesteps one and two apart (second differences) and a dense
border. A block Cholesky factorisation keeps that structure, so the time is linear in T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtri

Array = NDArray[np.float64]


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

    blocks: Array
    next_one: Array
    next_two: Array
    border: Array
    gradient: Array


@dataclass(frozen=True)
class Factor:
    """Block Cholesky factor L of a chain, and its forward-solved right-hand sides.

    Attributes:
        inverse: (T, U, U) inverses of the blocks on L's diagonal: products with them are faster
            than thousands of small triangular solves.
        one_back, two_back: (T, U, U) blocks of L left of the diagonal; zero where there is none.
        solved: (T, U, S + 1) L⁻¹ [border, gradient].
    """

    inverse: Array
    one_back: Array
    two_back: Array
    solved: Array


def factorise(chain: Chain) -> Factor:
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
    return Factor(inverse, one_back, two_back, solved)


def back_substitute(factor: Factor, shared_step: Array) -> Array:
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


def solve(chains: list[Chain], matrix: Array, gradient: Array) -> tuple[list[Array], Array]:
    """Solve for the steps of all chains, (T, U) each, and of the shared unknowns (S,).

    Args:
        chains: one per sequence.
        matrix: (S, S) block of the shared unknowns.
        gradient: (S,); the steps solve ``[matrix of all] · step = -gradient``.
    """
    factors = [factorise(chain) for chain in chains]
    for factor in factors:
        border = factor.solved[..., :-1].reshape(-1, len(gradient))
        matrix = matrix - border.T @ border
        gradient = gradient - border.T @ factor.solved[..., -1].ravel()
    shared_step: Array = np.asarray(np.linalg.solve(matrix, -gradient), dtype=np.float64)
    return [back_substitute(factor, shared_step) for factor in factors], shared_step
