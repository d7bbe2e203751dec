"""Matches are told apart by the geometry of two views, which is known exactly here."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from engine_worlds import clip, frames
from vipe_kernels import epipolar, tracking

F64 = NDArray[np.float64]
CAMERA = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
TURN = np.array([[0.98, -0.17, 30.0], [0.17, 0.98, -9.0], [2e-4, 1e-4, 1.0]])
"""Homography of a camera that turns."""


def cross(t: F64) -> F64:
    return np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])


def sampson(fundamental: F64, a: F64, b: F64) -> F64:
    """First-order distance (M,) of matches to an epipolar geometry, in pixels (Hartley and Zisserman 2004, 11.4.3), written out."""
    found = []
    for p, q in zip(a, b, strict=True):
        x, y = np.array([*p, 1.0]), np.array([*q, 1.0])
        there, here = fundamental @ x, fundamental.T @ y
        found.append(abs(y @ there) / np.sqrt(there[0] ** 2 + there[1] ** 2 + here[0] ** 2 + here[1] ** 2))
    return np.array(found)


def two_views(count: int, wrong: int, noise: float, seed: int = 0) -> tuple[F64, F64, F64]:
    """Fundamental matrix, and matches (count + wrong, 2) in two views of points in a box; the last `wrong` lead anywhere."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2, -1.5, 3), (2, 1.5, 9), (count, 3))
    turn, move = Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix(), rng.normal(0, 0.3, 3)
    views = [camera / camera[:, 2:] @ CAMERA.T for camera in (points, points @ turn.T + move)]
    a, b = (view[:, :2] + rng.normal(0, noise, (count, 2)) for view in views)
    anywhere = rng.uniform(0, (640, 480), (2, wrong, 2))
    inverse = np.linalg.inv(CAMERA)
    return inverse.T @ cross(move) @ turn @ inverse, np.concatenate([a, anywhere[0]]), np.concatenate([b, anywhere[1]])


@pytest.mark.parametrize("wrong", [0, 20, 80, 150])
def test_right_matches_are_found_among_wrong_ones(wrong: int) -> None:
    geometry, a, b = two_views(120, wrong, 0.3)
    found = epipolar.verify(a.astype(np.float32), b.astype(np.float32), 1.5)
    far = sampson(geometry, a, b) > 6.0
    assert found[:120].mean() > 0.97
    assert found[far].sum() <= 0.03 * wrong


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([0.25, 1.0, 4.0]))
def test_the_answer_does_not_depend_on_the_unit_of_length(seed: int, size: float) -> None:
    _, a, b = two_views(60, 30, 0.2, seed)
    found = [epipolar.verify((s * a).astype(np.float32), (s * b).astype(np.float32), s * 1.0) for s in (1.0, size)]
    assert np.array_equal(*found)


def test_distances_are_those_of_the_formula() -> None:
    geometry, a, b = two_views(40, 10, 0.5)
    distance2 = np.empty(50)
    epipolar._distances(geometry.ravel(), np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), distance2)
    assert np.allclose(np.sqrt(distance2), sampson(geometry, a, b), rtol=1e-9)


@pytest.mark.parametrize("rank", [8, 7, 5, 1])
def test_a_sample_is_solved_whatever_its_rank(rank: int) -> None:
    rng = np.random.default_rng(rank)
    rows = rng.normal(size=(8, rank)) @ rng.normal(size=(rank, 9))
    found = np.zeros(9)
    epipolar._null_vector(rows.copy(), found)
    assert np.linalg.norm(found) > 0.5
    assert np.abs(rows @ found).max() < 1e-9 * np.linalg.norm(found)
    if rank == 8:
        direction = np.linalg.svd(rows)[2][-1]
        assert abs(direction @ found) == pytest.approx(np.linalg.norm(found), rel=1e-9)


def test_reweighting_is_the_weighted_eight_point_algorithm() -> None:
    geometry, a, b = two_views(50, 20, 0.5)
    x, y = ((points - 300) / 200 for points in (a, b))
    shift = np.array([[200.0, 0, 300], [0, 200, 300], [0, 0, 1]])
    start = shift.T @ geometry @ shift
    distance, limit = sampson(start, x, y), (2 / 200) ** 2
    rows = np.stack([np.kron([*q, 1.0], [*p, 1.0]) for p, q in zip(x, y, strict=True)])
    slope = np.abs(rows @ start.ravel()) / distance
    weighted = rows * ((limit / (limit + distance**2)) / slope)[:, None]
    u, s, vt = np.linalg.svd(np.linalg.svd(weighted)[2][-1].reshape(3, 3))
    expected = (u * [s[0], s[1], 0]) @ vt
    found = epipolar._improved(start.ravel(), np.ascontiguousarray(x.T), np.ascontiguousarray(y.T), distance**2, limit).reshape(3, 3)
    assert np.allclose(found / found[1, 2], expected / expected[1, 2], rtol=1e-6)
    assert abs(np.linalg.det(found)) < 1e-12


def test_verified_features_lie_on_the_true_epipolar_lines() -> None:
    room = clip("room")
    gray = [cv2.cvtColor(frames("room").rgb(row), cv2.COLOR_RGB2GRAY) for row in (0, 4)]
    a, b = (tracking.detect(np.asarray(image, np.uint8), 400) for image in gray)
    pairs = tracking.match(a, b)
    rng = np.random.default_rng(0)
    wrong = np.stack([rng.integers(0, len(a.uv), 15), rng.integers(0, len(b.uv), 15)], 1)
    pairs = np.concatenate([pairs, wrong])
    verified = epipolar.verify(a.uv[pairs[:, 0]], b.uv[pairs[:, 1]], 1.0)
    relative = np.linalg.inv(room.cam2world[4]) @ room.cam2world[0]
    fx, fy, cx, cy = room.camera.params[:4]
    inverse = np.linalg.inv(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))
    geometry = inverse.T @ cross(relative[:3, 3]) @ relative[:3, :3] @ inverse
    distance = sampson(geometry, *(f.uv[index].astype(np.float64) for f, index in zip((a, b), pairs.T, strict=True)))
    assert verified.sum() > 50
    assert np.mean(distance[verified] < 2.0) > 0.95
    assert verified[-15:].sum() <= 3


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_matches_are_not_verified(count: int) -> None:
    few = np.random.default_rng(0).uniform(0, 100, (count, 2)).astype(np.float32)
    assert not epipolar.verify(few, few, 1.0).any()


@pytest.mark.parametrize("matrix", [np.eye(3), np.array([[1.0, 0, 11], [0, 1, 3], [0, 0, 1]]), TURN])
@pytest.mark.parametrize("count", [8, 20, 200])
def test_matches_that_a_homography_explains_are_verified(matrix: F64, count: int) -> None:
    a = np.random.default_rng(count).uniform(0, 300, (count, 2)).astype(np.float32)
    b = cv2.perspectiveTransform(a[None].astype(np.float64), matrix)[0].astype(np.float32)
    assert epipolar.verify(a, b, 1.0).mean() > 0.9


def test_noisy_matches_of_a_turning_camera_are_verified() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform((20, 20), (300, 220), (150, 2)).astype(np.float32)
    b = cv2.perspectiveTransform(a[None].astype(np.float64), TURN)[0] + rng.normal(0, 0.2, a.shape)
    assert epipolar.verify(a, b.astype(np.float32), 1.5).mean() > 0.9


def test_the_same_matches_give_the_same_answer() -> None:
    _, a, b = (values.astype(np.float32) for values in two_views(80, 60, 0.3))
    assert np.array_equal(epipolar.verify(a, b, 1.0), epipolar.verify(a, b, 1.0))
