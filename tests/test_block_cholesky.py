"""Factors of sparse matrices of 6 x 6 blocks: against numpy on random patterns, refused where there is none, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vipe_kernels.block_cholesky import Elimination

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def matrix(seed: int, count: int, ties: int) -> tuple[I64, I64, F64, F64]:
    """Blocks (B, 6, 6) at (rows, columns) of a positive definite matrix in which `ties` random pairs of unknowns meet, and the matrix."""
    rng = np.random.default_rng(seed)
    whole = np.zeros((count, 6, count, 6))
    for k in range(count):
        half = rng.normal(size=(6, 6))
        whole[k, :, k] = half @ half.T + 0.1 * np.eye(6)
    for a, b in rng.integers(0, max(count, 1), (ties if count else 0, 2)):
        if a != b:
            one, other = rng.normal(size=(2, 6, 6))
            for r, x in ((a, one), (b, other)):
                for c, y in ((a, one), (b, other)):
                    whole[r, :, c] += x @ y.T
    rows, columns = np.nonzero(np.abs(whole).sum((1, 3)))
    return rows, columns, whole[rows, :, columns], whole.reshape(6 * count, 6 * count)


@given(seed=st.integers(0, 10_000), count=st.sampled_from([1, 2, 5, 20, 64, 65, 130]), dense=st.floats(0.0, 4.0), width=st.integers(1, 3))
@settings(max_examples=40)
def test_a_solution_is_that_of_numpy(seed: int, count: int, dense: float, width: int) -> None:
    rows, columns, blocks, whole = matrix(seed, count, int(dense * count))
    added = np.random.default_rng(seed + 1).random(6 * count)
    right = np.random.default_rng(seed + 2).normal(size=(6 * count, width))
    elimination = Elimination.of(count, rows, columns)
    panels = elimination.factor(blocks, added)
    assert panels is not None
    wanted = np.linalg.solve(whole + np.diag(added), right)
    assert np.abs(elimination.solve(panels, right) - wanted).max() <= 1e-8 * max(1.0, np.abs(wanted).max())


def test_a_chain_fills_nothing_in() -> None:
    steps = np.arange(999)
    rows, columns = np.r_[steps, steps + 1, np.arange(1000)], np.r_[steps + 1, steps, np.arange(1000)]
    assert len(Elimination.of(1000, rows, columns).rows) == 1999


def test_a_matrix_that_is_not_positive_definite_has_no_factor() -> None:
    rows, columns, blocks, whole = matrix(1, 6, 8)
    lowest = float(np.linalg.eigvalsh(whole)[0])
    elimination = Elimination.of(6, rows, columns)
    assert elimination.factor(blocks, np.full(36, -1.01 * lowest)) is None
    assert elimination.factor(blocks, np.full(36, -0.99 * lowest)) is not None
    assert elimination.factor(np.full_like(blocks, np.nan), np.zeros(36)) is None


def test_nothing_is_solved_where_nothing_is_unknown() -> None:
    none = np.zeros(0, np.int64)
    elimination = Elimination.of(0, none, none)
    panels = elimination.factor(np.zeros((0, 6, 6)), np.zeros(0))
    assert panels is not None
    assert elimination.solve(panels, np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("count", [40, 200])
def test_factors_have_the_same_bits_every_time(count: int) -> None:
    rows, columns, blocks, _ = matrix(5, count, 3 * count)
    first, again = (Elimination.of(count, rows, columns).factor(blocks, np.ones(6 * count)) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.tobytes() == again.tobytes()
