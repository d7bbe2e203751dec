"""Triangulation of pixels against a slow reference in float64, and what it owes to geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vipe_kernels.triangulate import KERNELS_PX, Triangulation, triangulate

F64 = NDArray[np.float64]
FOCAL = 300.0
SHAPE = (6, 8)


def turn(angle: float) -> F64:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def poses() -> F64:
    """(3, 3, 4): three neighbours to the side, ahead and behind, each turned a little."""
    shifts = ([0.2, 0.02, 0.0], [-0.15, 0.05, 0.1], [0.05, -0.2, -0.1])
    return np.stack([np.column_stack((turn(0.03 * k), shift)) for k, shift in enumerate(shifts)])


def rays() -> F64:
    y, x = np.meshgrid(np.linspace(-0.3, 0.3, SHAPE[0]), np.linspace(-0.5, 0.5, SHAPE[1]), indexing="ij")
    return np.stack((x, y), -1)


def seen_by(relative: F64, inverse_depth: F64) -> F64:
    """(N, H, W, 2) where the neighbours see the points."""
    ray = np.concatenate((rays(), np.ones((*SHAPE, 1))), -1)
    point = np.einsum("nij,hwj->nhwi", relative[:, :, :3], ray) + inverse_depth[None, ..., None] * relative[:, None, None, :, 3]
    return point[..., :2] / point[..., 2:]


def solve(relative: F64, seen: F64, weight: F64 | None = None) -> Triangulation:
    weight = np.ones(seen.shape[:-1]) if weight is None else weight
    ray, sighting, trust = (torch.from_numpy(np.asarray(array, np.float32)) for array in (rays(), seen, weight))
    return triangulate(ray, sighting, torch.from_numpy(relative), trust, torch.full(SHAPE, FOCAL))


def slow_inverse_depth(relative: F64, seen: F64, weight: F64, pixel: tuple[int, int]) -> float:
    """One pixel: the same reweighted least squares, each observation by itself."""
    ray = np.array([*rays()[pixel], 1.0])
    rho = 0.0
    for kernel in (np.inf, *KERNELS_PX):
        top = bottom = 0.0
        for pose, position, trust in zip(relative, seen[:, pixel[0], pixel[1]], weight[:, pixel[0], pixel[1]], strict=True):
            a, t = pose[:, :3] @ ray, pose[:, 3]
            z = a[2] + rho * t[2]
            p, q = (a[:2] - position * a[2]) * FOCAL / z, (t[:2] - position * t[2]) * FOCAL / z
            error2 = float(((p + rho * q) ** 2).sum())
            robust = trust if np.isinf(kernel) else trust * (kernel**2 / (kernel**2 + error2)) ** 2
            top, bottom = top - robust * float(p @ q), bottom + robust * float(q @ q)
        rho = top / bottom
    return rho


@pytest.fixture
def truth() -> F64:
    return np.random.default_rng(3).uniform(0.2, 1.0, SHAPE)


def test_exact_sightings_give_the_exact_depth(truth: F64) -> None:
    found = solve(poses(), seen_by(poses(), truth))
    np.testing.assert_allclose(found.inverse_depth.numpy(), truth, rtol=2e-4)
    assert float(found.residual_px.max()) < 0.05


def test_it_agrees_with_the_reference_on_noisy_sightings(truth: F64) -> None:
    rng = np.random.default_rng(5)
    seen = seen_by(poses(), truth) + rng.normal(0, 0.5 / FOCAL, (3, *SHAPE, 2))
    weight = rng.uniform(0.2, 1.0, (3, *SHAPE))
    found = solve(poses(), seen, weight).inverse_depth.numpy()
    slow = np.array([[slow_inverse_depth(poses(), seen, weight, (i, j)) for j in range(SHAPE[1])] for i in range(SHAPE[0])])
    np.testing.assert_allclose(found, slow, rtol=1e-3)


def test_one_wrong_neighbour_of_three_is_dropped(truth: F64) -> None:
    seen = seen_by(poses(), truth)
    seen[1] += np.array([0.0, 9.0]) / FOCAL  # across the epipolar line of the others
    found = solve(poses(), seen)
    np.testing.assert_allclose(found.inverse_depth.numpy(), truth, rtol=0.03)
    assert float(found.support.max()) < 2.1


def test_the_std_is_the_spread_of_repeated_noise(truth: F64) -> None:
    rng = np.random.default_rng(7)
    found = [solve(poses(), seen_by(poses(), truth) + rng.normal(0, 0.3 / FOCAL, (3, *SHAPE, 2))) for _ in range(60)]
    spread = np.std([one.inverse_depth.numpy() for one in found], axis=0)
    claimed = np.mean([one.std.numpy() for one in found], axis=0)
    assert 0.5 < np.median(claimed / spread) < 2.0


def test_without_parallax_nothing_is_known_well(truth: F64) -> None:
    still = poses()
    still[:, :, 3] *= 1e-4
    found = solve(still, seen_by(still, truth) + np.random.default_rng(1).normal(0, 0.2 / FOCAL, (3, *SHAPE, 2)))
    relative_std = (found.std / found.inverse_depth).numpy()
    assert not (relative_std < 0.1).any()


def test_an_unseen_pixel_is_unknown(truth: F64) -> None:
    weight = np.ones((3, *SHAPE))
    weight[:, 2, 3] = 0
    found = solve(poses(), seen_by(poses(), truth), weight)
    assert torch.isnan(found.inverse_depth).sum() == 1
    assert torch.isnan(found.inverse_depth[2, 3])
    assert found.support[2, 3] == 0
