"""Moving pixels between views: exact positions, a slow reference for the splat, nearest surface in front."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vipe_dag import synthetic
from vipe_kernels.warp import FRONT_LAYER, backward_warp, forward_splat, pixel_rays, reproject

F32 = NDArray[np.float32]


def slow_splat(uv: F32, inverse_depth: F32, payload: F32, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(inverse depth, payload): two passes, point by point."""
    nearest = np.zeros((height, width))
    total, sums = np.zeros((height, width)), np.zeros((height, width, 1 + payload.shape[-1]))
    for second_pass in (False, True):
        for (u, v), rho, values in zip(uv.reshape(-1, 2), inverse_depth.ravel(), payload.reshape(-1, payload.shape[-1]), strict=True):
            if not np.isfinite(u + v + rho):
                continue
            for y in (int(np.floor(v)), int(np.floor(v)) + 1):
                for x in (int(np.floor(u)), int(np.floor(u)) + 1):
                    share = (1 - abs(u - x)) * (1 - abs(v - y))
                    if not (0 <= x < width and 0 <= y < height):
                        continue
                    if not second_pass:
                        nearest[y, x] = max(nearest[y, x], rho if share > 0.05 else 0)
                    elif rho >= (1 - FRONT_LAYER) * nearest[y, x]:
                        total[y, x] += share
                        sums[y, x] += share * np.array([rho, *values])
    with np.errstate(invalid="ignore"):
        mean = sums / total[..., None]
    return mean[..., 0], mean[..., 1:]


def test_splat_agrees_with_the_reference() -> None:
    rng = np.random.default_rng(2)
    height, width = 9, 13
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    uv = (grid + rng.uniform(-3, 3, grid.shape)).astype(np.float32)
    inverse_depth = rng.choice([0.3, 0.5, 1.0], (height, width)).astype(np.float32)
    uv[2, 3], inverse_depth[4, 5] = np.nan, np.nan
    payload = rng.random((height, width, 2)).astype(np.float32)
    found, values, coverage = forward_splat(uv, inverse_depth, payload, height, width)
    expected, expected_values = slow_splat(uv, inverse_depth, payload, height, width)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(values, expected_values, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(found), coverage == 0)


def test_the_nearer_of_two_surfaces_wins_whatever_the_order() -> None:
    uv = np.array([[[2, 1], [2, 1]]], np.float32)
    for near_first in (True, False):
        inverse_depth = np.array([[1.0, 0.5] if near_first else [0.5, 1.0]], np.float32)
        found, values, _ = forward_splat(uv, inverse_depth, inverse_depth[..., None], 3, 4)
        assert found[1, 2] == values[1, 2, 0] == 1.0


def test_pixels_at_rest_stay() -> None:
    rng = np.random.default_rng(4)
    z = rng.uniform(1, 3, (7, 5)).astype(np.float32)
    params = np.array([8.0, 8.0, 2, 3, 0, 0, 0, 0, 0])
    uv, there = reproject(pixel_rays(7, 5, params, "pinhole").xy, (1 / z).astype(np.float32), np.eye(4), params, "pinhole")
    found, _, _ = forward_splat(np.rint(uv), there, np.empty((7, 5, 0), np.float32), 7, 5)
    np.testing.assert_allclose(1 / found, z, rtol=1e-5)


@pytest.mark.parametrize("name", ["room", "room_barrel", "room_fisheye"])
def test_reprojection_is_the_flow_of_the_world(name: str) -> None:
    clip = synthetic.scene(name, n_frames=4, width=96, height=64, supersample=1)
    flow, visible = clip.flow(0, 3)
    z, _ = clip.truth(0)
    rays = pixel_rays(64, 96, clip.camera.params, clip.camera.camera_model)
    relative = np.linalg.inv(clip.cam2world[3]) @ clip.cam2world[0]
    uv, _ = reproject(rays.xy, (1 / z).astype(np.float32), relative, clip.camera.params, clip.camera.camera_model)
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    error = np.abs(uv - np.stack((x, y), -1) - flow).max(-1)
    assert visible.mean() > 0.5
    assert error[visible & rays.valid].max() < 0.01


def test_a_point_behind_the_other_camera_is_nowhere() -> None:
    params = np.array([8.0, 8.0, 2, 3, 0, 0, 0, 0, 0])
    forward = np.eye(4)
    forward[2, 3] = -2.0
    uv, there = reproject(np.zeros((1, 2), np.float32), np.ones(1, np.float32), forward, params, "pinhole")
    assert np.isnan(uv).all()
    assert np.isnan(there).all()


def test_backward_warp_between_pixels_and_outside() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    uv = np.array([[[1.5, 1.0], [-5.0, 0.0]]], np.float32)
    found = backward_warp(image, uv)
    assert found[0, 0] == 5.5
    assert np.isnan(found[0, 1])
    assert backward_warp(image.astype(np.uint8), uv)[0, 1] == 0
