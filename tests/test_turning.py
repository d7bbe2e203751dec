"""The rotation between two sets of rays: against the weighted Kabsch algorithm in numpy, and exact where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine_worlds import angle_deg
from vipe_kernels.bundle import exp_se3
from vipe_kernels.turning import SCALES, align_rays

Float = NDArray[np.float64]


def kabsch(a: Float, b: Float, weight: Float) -> Float:
    rotation = np.eye(3)
    for scale in SCALES:
        error = np.square(b - a @ rotation.T).sum(1)
        w = weight * np.square(scale**2 / (scale**2 + error))
        u, _, vt = np.linalg.svd((b * w[:, None]).T @ a)
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u) * np.linalg.det(vt)]) @ vt
    return rotation


@given(seed=st.integers(0, 1000), count=st.sampled_from([3, 4, 50]), flat=st.booleans())
@settings(max_examples=30)
def test_the_compiled_rotation_is_that_of_numpy(seed: int, count: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(count, 3)) * [0.3, 0.3, 0.0 if flat else 0.3] + [0.0, 0.0, 1.0] for _ in range(2))
    a, b = (rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (a, b))
    weight = rng.random(count)
    assert np.allclose(align_rays(a, b, weight), kabsch(a, b, weight), atol=1e-7)


@given(seed=st.integers(0, 1000), outliers=st.sampled_from([0.0, 0.3]))
@settings(max_examples=10)
def test_rays_are_aligned_in_spite_of_outliers(seed: int, outliers: float) -> None:
    rng = np.random.default_rng(seed)
    rays = rng.normal(size=(100, 3)) * [0.4, 0.3, 0.1] + [0, 0, 1]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    turn = exp_se3(torch.from_numpy(np.r_[np.zeros(3), 0.3 * rng.normal(size=3)]))[0].numpy()
    seen = rays @ turn.T
    wrong = rng.random(100) < outliers
    other = rng.normal(size=(100, 3)) * [0.4, 0.3, 0.1] + [0, 0, 1]
    seen[wrong] = (other / np.linalg.norm(other, axis=1, keepdims=True))[wrong]
    found = align_rays(rays, seen, np.ones(100))
    assert angle_deg(found, turn) < (1.0 if outliers else 1e-5)
    assert np.linalg.det(found) == pytest.approx(1.0)
