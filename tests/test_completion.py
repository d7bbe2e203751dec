"""Spreading what is known: a dense linear solve as reference, edges that stop it, nothing lost where it is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vipe_kernels.completion import redraw_edges, spread

F32 = NDArray[np.float32]


def plain(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def halves(height: int, width: int, at: int) -> NDArray[np.uint8]:
    image = plain(height, width)
    image[:, at:] = 250
    return image


def slow_row(value: NDArray[np.float64], weight: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """One line of one colour: (1 + reach^2 Laplacian) solved densely for the weighted values and for the weights."""
    n = len(value)
    laplacian = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    laplacian[0, 0] = laplacian[-1, -1] = 1
    smooth = np.linalg.inv(np.eye(n) + reach**2 * laplacian)
    return (smooth @ (value * weight)) / (smooth @ weight)


def test_a_line_agrees_with_the_dense_solve_in_order_and_range() -> None:
    weight = np.zeros(40)
    weight[[5, 30]] = 1, 0.5
    value = np.zeros(40)
    value[[5, 30]] = 1, 3
    filled, _ = spread(
        np.tile(value, (9, 1)).astype(np.float32), np.tile(weight, (9, 1)).astype(np.float32), plain(9, 40), reach=6.0, edge=4.0
    )
    np.testing.assert_allclose(filled[4], slow_row(value, weight, 6.0), atol=0.25)  # three sweeps stand for the exact solve


def test_a_constant_stays_constant() -> None:
    weight = (np.random.default_rng(0).random((30, 40)) < 0.05).astype(np.float32)
    filled, _ = spread(np.full((30, 40), 2.5, np.float32), weight, plain(30, 40), 10.0, 4.0)
    np.testing.assert_allclose(filled, 2.5, rtol=1e-3)


def test_values_do_not_cross_an_image_edge() -> None:
    value, weight = np.zeros((20, 40), np.float32), np.zeros((20, 40), np.float32)
    value[10, 5], value[10, 35] = 1.0, 2.0
    weight[10, 5] = weight[10, 35] = 1.0
    filled, _ = spread(value, weight, halves(20, 40, 20), 30.0, 4.0)
    assert np.abs(filled[:, :20] - 1).max() < 0.05
    assert np.abs(filled[:, 20:] - 2).max() < 0.05


def test_the_base_takes_over_where_nothing_arrives() -> None:
    value, weight = np.ones((20, 80), np.float32), np.zeros((20, 80), np.float32)
    weight[:, 0] = 1.0
    filled, support = spread(value, weight, plain(20, 80), 4.0, 4.0, base=7.0, base_weight=0.01)
    assert filled[10, 0] < 1.5
    assert filled[10, 79] > 6.9
    assert support[10, 79] < 1e-4 < support[10, 0]


def test_without_a_base_every_pixel_gets_something() -> None:
    value, weight = np.zeros((33, 61), np.float32), np.zeros((33, 61), np.float32)
    value[3, 4], weight[3, 4] = 2.0, 1.0
    filled, _ = spread(value, weight, plain(33, 61), 3.0, 4.0)
    np.testing.assert_allclose(filled, 2.0, rtol=1e-3)


def test_a_step_moves_onto_the_image_edge() -> None:
    value = np.zeros((20, 40), np.float32)
    value[:, 22:] = 1.0  # the edge of the image is at 20
    redrawn, band = redraw_edges(value, np.ones_like(value), halves(20, 40, 20), step=0.15)
    assert (redrawn[:, 20:] > 0.9).all()
    assert (redrawn[:, :20] < 0.1).all()
    assert band[:, 19:25].all()
    assert not band[:, :18].any()


def test_a_surface_without_steps_is_left_alone() -> None:
    value = np.tile(np.linspace(0, 0.5, 40, dtype=np.float32), (20, 1))
    redrawn, band = redraw_edges(value, np.ones_like(value), halves(20, 40, 20), step=0.15)
    np.testing.assert_array_equal(redrawn, value)
    assert not band.any()
