"""Corners, followed points and matches agree with warps that are known exactly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from vipe_kernels import tracking

Image = NDArray[np.uint8]
WIDTH, HEIGHT = 320, 240
TURN = np.array([[0.98, -0.17, 30.0], [0.17, 0.98, -9.0], [2e-4, 1e-4, 1.0]])
"""Homography of a camera that turns."""


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image:
    """Smooth random texture with structure at several sizes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for size in (1.5, 3.0, 6.0, 12.0):
        layer = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), size)
        image += layer / layer.std()
    return np.asarray(np.clip(128 + 40 * image / image.std(), 0, 255), np.uint8)


def warp(image: Image, matrix: NDArray[np.float64]) -> Image:
    """The image moved by a 3x3 homography: what was at p is at matrix p."""
    v, u = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float64)
    from_where = cv2.perspectiveTransform(np.stack([u, v], -1), np.linalg.inv(matrix))
    # cv2.warpPerspective rounds positions to 1/32 pixel and its cubic kernel moves texture by another twentieth.
    values = map_coordinates(image.astype(np.float64), [from_where[..., 1], from_where[..., 0]], order=3, mode="nearest")
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def moved(uv: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    return cv2.perspectiveTransform(uv.reshape(1, -1, 2).astype(np.float64), matrix)[0].astype(np.float32)


def shift(x: float, y: float) -> NDArray[np.float64]:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def corners(image: Image, margin: int = 30) -> NDArray[np.float32]:
    """Well located corners away from the border."""
    uv, sigma = tracking.grid_corners(image, 16)
    uv = uv[sigma < 0.3]
    inside = (uv >= margin).all(1) & (uv[:, 0] < image.shape[1] - margin) & (uv[:, 1] < image.shape[0] - margin)
    return np.ascontiguousarray(uv[inside])


# -- corners


@pytest.mark.parametrize(("width", "height", "columns"), [(320, 240, 16), (333, 187, 20), (240, 426, 32), (64, 48, 8)])
def test_every_cell_of_the_grid_holds_its_own_corner(width: int, height: int, columns: int) -> None:
    uv, sigma = tracking.grid_corners(picture(width=width, height=height), columns)
    gy, gx = sigma.shape
    cell = max(8, int(np.ceil(max(width, height) / columns)))
    start = np.array([(width - gx * cell) // 2, (height - gy * cell) // 2])
    number = (uv - start) // cell
    assert max(gx, gy) <= columns
    assert (number[..., 0] == np.arange(gx)[None, :]).all()
    assert (number[..., 1] == np.arange(gy)[:, None]).all()


def test_the_corner_of_a_cell_is_its_strongest() -> None:
    image = np.full((HEIGHT, WIDTH), 100, np.uint8)
    image[90:, 130:] = 200
    uv, sigma = tracking.grid_corners(image, 16)
    best = uv[np.unravel_index(sigma.argmin(), sigma.shape)]
    assert np.abs(best - [129.5, 89.5]).max() <= 3.5  # the window of 7 pixels fits best a little inside


def test_flat_cells_are_not_located() -> None:
    image = picture()
    image[:, :160] = 90
    uv, sigma = tracking.grid_corners(image, 16)
    left = uv[..., 0] < 140
    assert sigma[left].min() > 5.0
    assert np.median(sigma[uv[..., 0] > 180]) < 0.3


def test_the_reported_spread_is_that_of_noise() -> None:
    image = picture()
    uv, sigma = tracking.grid_corners(image, 16)
    inner = (sigma < 0.3) & (uv >= 30).all(-1) & (uv <= [WIDTH - 30, HEIGHT - 30]).all(-1)
    uv, sigma = np.ascontiguousarray(uv[inner]), sigma[inner]
    rng = np.random.default_rng(0)
    noisy = [np.clip(image + rng.normal(0, 4.0, image.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    found, error = tracking.follow(tracking.prepared(noisy[0]), tracking.prepared(noisy[1]), uv, uv)
    ratio = np.linalg.norm(found - uv, axis=1) / sigma
    assert 0.3 < np.median(ratio[np.isfinite(error)]) < 3.0


# -- following


@given(x=st.floats(-3, 3), y=st.floats(-3, 3), seed=st.integers(0, 100))
@settings(max_examples=10)
def test_a_shift_is_followed_to_a_tenth_of_a_pixel(x: float, y: float, seed: int) -> None:
    image = picture(seed)
    uv = corners(image)
    found, error = tracking.follow(tracking.prepared(image), tracking.prepared(warp(image, shift(x, y))), uv, uv)
    good = error < 0.5
    miss = np.linalg.norm(found - moved(uv, shift(x, y)), axis=1)
    assert good.mean() > 0.95
    assert np.median(miss[good]) < 0.05
    assert np.quantile(miss[good], 0.9) < 0.1


@given(angle=st.floats(-4, 4), scale=st.floats(0.96, 1.04))
@settings(max_examples=8)
def test_an_affine_warp_is_followed_from_a_rough_guess(angle: float, scale: float) -> None:
    image = picture(3)
    matrix = np.vstack([cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), angle, scale), [0, 0, 1]])
    uv = corners(image)
    guess = moved(uv, matrix) + np.random.default_rng(0).uniform(-2, 2, uv.shape).astype(np.float32)
    found, error = tracking.follow(tracking.prepared(image), tracking.prepared(warp(image, matrix)), uv, guess)
    good = error < 0.5
    miss = np.linalg.norm(found - moved(uv, matrix), axis=1)
    assert good.mean() > 0.9
    assert np.median(miss[good]) < 0.1


def test_what_is_hidden_fails_the_way_back() -> None:
    image, other = picture(1), picture(2)
    target = warp(image, shift(2.0, 1.0))
    target[80:160, 100:220] = other[80:160, 100:220]
    uv = corners(image)
    _, error = tracking.follow(tracking.prepared(image), tracking.prepared(target), uv, uv + np.float32([2.0, 1.0]))
    hidden = (uv[:, 0] > 112) & (uv[:, 0] < 205) & (uv[:, 1] > 92) & (uv[:, 1] < 146)
    clear = (uv[:, 0] < 80) | (uv[:, 0] > 240)
    assert hidden.sum() >= 8
    assert np.mean(error[hidden] < 0.5) < 0.25
    assert np.mean(error[clear] < 0.5) > 0.95


def test_what_leaves_the_picture_is_lost() -> None:
    image = picture()
    uv = corners(image)
    found, error = tracking.follow(tracking.prepared(image), tracking.prepared(warp(image, shift(60, 0))), uv, uv + np.float32([60, 0]))
    gone = uv[:, 0] > WIDTH - 60
    assert np.isinf(error[gone]).all()
    assert (found[np.isfinite(error), 0] <= WIDTH - 3).all()


@given(gain=st.floats(0.6, 1.3), offset=st.floats(-20, 20))
@settings(max_examples=10)
def test_a_change_of_exposure_is_not_motion(gain: float, offset: float) -> None:
    image = np.asarray(picture() * 0.6 + 50, np.uint8)
    ramp = np.linspace(0.9, 1.1, WIDTH)[None, :]  # vignetting, too
    target = np.clip(gain * ramp * warp(image, shift(1.3, -0.7)).astype(np.float64) + offset, 0, 255).astype(np.uint8)
    uv = corners(image)
    found, error = tracking.follow(tracking.prepared(image), tracking.prepared(target), uv, uv)
    good = error < 0.5
    assert good.mean() > 0.9
    assert np.median(np.linalg.norm(found - moved(uv, shift(1.3, -0.7)), axis=1)[good]) < 0.1


def test_normalising_keeps_flat_areas_grey() -> None:
    flat = tracking.normalise(np.full((60, 80), 37, np.uint8))
    assert (np.abs(flat.astype(int) - 128) <= 1).all()


def test_nothing_to_follow_is_no_error() -> None:
    tracker, none = tracking.prepared(picture()), np.zeros((0, 2), np.float32)
    found, error = tracking.follow(tracker, tracker, none, none)
    assert found.shape == (0, 2)
    assert error.shape == (0,)


def test_dense_flow_seeds_a_large_shift() -> None:
    image = picture(5)
    flow = tracking.dense_seed(image, warp(image, shift(14.0, -6.0)))
    inner = flow[40:-40, 40:-40].reshape(-1, 2)
    assert np.abs(np.median(inner, 0) - [14.0, -6.0]).max() < 0.3


@given(seed=st.integers(0, 100), count=st.sampled_from([1, 5, 1024, 2500]))
@settings(max_examples=10)
def test_samples_of_a_ramp_are_its_values(seed: int, count: int) -> None:
    v, u = np.mgrid[:50, :70].astype(np.float32)
    uv = np.random.default_rng(seed).uniform((0, 0), (69, 49), (count, 2)).astype(np.float32)
    found = tracking.sample(np.stack([u, 2 * v], -1), uv)
    assert found.shape == (count, 2)
    assert np.allclose(found, uv * [1, 2], atol=0.1)  # OpenCV interpolates at 1/32 pixel


def test_no_samples_are_no_error() -> None:
    assert tracking.sample(np.zeros((5, 7, 2), np.float32), np.zeros((0, 2), np.float32)).shape == (0, 2)


def test_samples_outside_repeat_the_border() -> None:
    v, u = np.mgrid[:50, :70].astype(np.float32)
    found = tracking.sample(np.stack([u, v], -1), np.array([[-5.0, -9.0], [500.0, 80.0]], np.float32))
    assert np.allclose(found, [[0, 0], [69, 49]])


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640)])
def test_the_unit_of_length_follows_the_long_side(width: int, height: int) -> None:
    assert tracking.pixel_unit(width, height) == 1.0
    assert tracking.pixel_unit(2 * width, 2 * height) == 2.0


# -- matching


def test_matches_follow_a_homography() -> None:
    image = picture(7, 480, 360)
    matrix = np.array([[0.9, -0.25, 60.0], [0.22, 0.93, -20.0], [1e-4, -5e-5, 1.0]])
    a, b = tracking.detect(image, 400), tracking.detect(warp(image, matrix), 400)
    pairs = tracking.match(a, b)
    miss = np.linalg.norm(moved(a.uv[pairs[:, 0]], matrix) - b.uv[pairs[:, 1]], axis=1)
    assert len(pairs) > 40
    assert np.mean(miss < 1.5) > 0.85


def test_matches_are_one_to_one() -> None:
    image = picture(7)
    pairs = tracking.match(tracking.detect(image, 200), tracking.detect(warp(image, shift(9, 4)), 200))
    assert len(pairs) > 20
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)


def test_features_are_spread_over_the_picture() -> None:
    image = picture(7)
    image[:, 160:] = np.asarray(128 + (image[:, 160:].astype(int) - 128) // 2, np.uint8)  # weaker contrast on the right
    found = tracking.detect(image, 100)
    strongest = np.array([k.pt for k in cv2.SIFT_create(nfeatures=100).detect(image, None)])

    def occupied(uv: NDArray[np.floating]) -> int:
        return len({(int(x) // 40, int(y) // 40) for x, y in uv})

    assert len(found.uv) == 100
    assert occupied(found.uv) > 1.2 * occupied(strongest)


def test_a_flat_picture_has_no_features() -> None:
    found = tracking.detect(np.full((100, 120), 80, np.uint8), 50)
    assert found.uv.shape == (0, 2)
    assert found.descriptor.shape == (0, 128)
    assert tracking.match(found, found).shape == (0, 2)


def test_descriptors_have_unit_length() -> None:
    found = tracking.detect(picture(), 50)
    assert np.allclose(np.linalg.norm(found.descriptor, axis=1), 1.0, atol=1e-4)


def test_the_same_pictures_give_the_same_answer_bit_for_bit() -> None:
    image = picture(9)
    other = warp(image, shift(5, 2))

    def everything() -> list[NDArray[np.generic]]:
        a, b = tracking.detect(image, 200), tracking.detect(other, 200)
        pairs = tracking.match(a, b)
        uv, sigma = tracking.grid_corners(image, 16)
        points = uv.reshape(-1, 2)
        followed = tracking.follow(tracking.prepared(image), tracking.prepared(other), points, points)
        return [a.uv, a.descriptor, pairs, uv, sigma, *followed, tracking.dense_seed(image, other)]

    for first, second in zip(everything(), everything(), strict=True):
        assert np.array_equal(first, second)
