"""The structured solver against the dense system that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.face.block_banded import Chain, log_determinant, solve


@pytest.mark.parametrize("lengths", [(1,), (2,), (5, 3)])
def test_solution_and_determinant_are_those_of_the_dense_matrix(lengths: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    size, shared = 4, 3
    chains = []
    for count in lengths:
        root = random.normal(size=(count, size, size))
        blocks = root @ root.transpose(0, 2, 1) + 20 * np.eye(size)
        next_one, next_two = random.normal(size=(2, count, size))
        border = random.normal(size=(count, size, shared))
        gradient = random.normal(size=(count, size))
        chains.append(Chain(blocks, next_one, next_two, border, gradient))
    root = random.normal(size=(shared, shared))
    matrix, gradient = root @ root.T + 20 * np.eye(shared), random.normal(size=shared)

    total = sum(lengths) * size
    dense = np.zeros((total + shared, total + shared))
    dense[total:, total:] = matrix
    right, first = [], 0
    for chain in chains:
        for t in range(len(chain.blocks)):
            rows = slice(first, first + size)
            dense[rows, rows] = chain.blocks[t]
            dense[rows, total:], dense[total:, rows] = chain.border[t], chain.border[t].T
            for apart, diagonal in ((1, chain.next_one[t]), (2, chain.next_two[t])):
                if t + apart < len(chain.blocks):
                    columns = slice(first + apart * size, first + (apart + 1) * size)
                    dense[rows, columns] = dense[columns, rows] = np.diag(diagonal)
            right.append(chain.gradient[t])
            first += size
    expected = np.linalg.solve(dense, -np.concatenate([*right, gradient]))

    steps, shared_step = solve(chains, matrix, gradient)
    found = np.concatenate([*(step.ravel() for step in steps), shared_step])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert log_determinant(chains, matrix) == pytest.approx(np.linalg.slogdet(dense)[1])
