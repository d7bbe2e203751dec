"""Places are as far away as the flow says, and come back where the flows of both ways agree."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vipe_kernels.motion import lengths, returning

WIDTH, HEIGHT = 40, 30
PLACES = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1).reshape(-1, 2)


def smooth(seed: int, most: float) -> NDArray[np.float32]:
    field = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, 2)), (0, 0), 4.0)
    return np.asarray(field * most / np.abs(field).max(), np.float32)


@given(seed=st.integers(0, 1000), most=st.floats(0.1, 30.0))
def test_lengths_are_those_of_the_flow_at_the_places(seed: int, most: float) -> None:
    flow = smooth(seed, most)
    np.testing.assert_allclose(lengths(PLACES, flow), np.linalg.norm(flow[PLACES[:, 1], PLACES[:, 0]], axis=1), rtol=1e-5)


@given(seed=st.integers(0, 1000), most=st.floats(0.1, 30.0), limit=st.floats(0.2, 5.0))
def test_what_returns_is_what_a_plain_reference_brings_back(seed: int, most: float, limit: float) -> None:
    forward, backward = smooth(seed, most), smooth(seed + 1, most)
    found = returning(PLACES, forward, backward, limit)
    for (x, y), good in zip(PLACES, found, strict=True):
        there = np.array([x, y]) + forward[y, x].astype(np.float64)
        if not (0 <= there[0] < WIDTH and 0 <= there[1] < HEIGHT):
            assert not good
            continue
        left, top = np.floor(there).astype(int)
        share = there - (left, top)
        back = np.zeros(2)
        for dy, wy in ((0, 1 - share[1]), (1, share[1])):
            for dx, wx in ((0, 1 - share[0]), (1, share[0])):
                back += wx * wy * backward[min(top + dy, HEIGHT - 1), min(left + dx, WIDTH - 1)]
        miss = np.linalg.norm(there + back - (x, y))
        assert good == (miss < limit) or abs(miss - limit) < 1e-3


def test_all_returns_where_one_flow_is_the_opposite_of_the_other() -> None:
    shift = np.full((HEIGHT, WIDTH, 2), (2.5, -1.25), np.float32)
    x, y = np.array([[2.5], [-1.25]]) + PLACES.T
    assert np.array_equal(returning(PLACES, shift, -shift, 0.01), (x < WIDTH) & (y >= 0))


def test_no_places_give_no_motion() -> None:
    flow, none = smooth(0, 1.0), PLACES[:0]
    assert lengths(none, flow).shape == returning(none, flow, flow, 1.0).shape == (0,)
