"""Keypoints lie where blobs are known to be, and agree with OpenCV's but for the quarter of a pixel by which those are off."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vipe_kernels import sift
from vipe_kernels.sift import Keypoints

Image = NDArray[np.uint8]
CONTRAST = 0.02


@cache
def picture(seed: int = 0, width: int = 200, height: int = 150) -> Image:
    rng = np.random.default_rng(seed)
    image = sum(cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), size) * size for size in (1.5, 3.0, 6.0))
    return np.asarray(np.clip(128 + 50 * image / np.std(image), 0, 255), np.uint8)


def blob(x: float, y: float, size: float) -> Image:
    v, u = np.mgrid[:120, :160]
    return np.asarray(np.rint(60 + 120 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * size**2))), np.uint8)


def found_in(image: Image) -> tuple[list[NDArray[np.float32]], Keypoints]:
    pyramid = list(sift.octaves(image))
    return pyramid, sift.detect(pyramid, CONTRAST)


def opencv(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float64]]:
    """Positions, descriptors of unit length and angles (share of a turn) of OpenCV's features."""
    keypoints, descriptors = cv2.SIFT_create(nfeatures=0, contrastThreshold=CONTRAST).detectAndCompute(image, None)
    uv = np.array([k.pt for k in keypoints]) - 0.25
    return uv, descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True), np.array([k.angle for k in keypoints]) / 360


@pytest.mark.parametrize(("x", "y", "size"), [(70.0, 60.0, 3.0), (70.3, 59.6, 3.0), (81.75, 52.2, 5.0), (64.5, 71.5, 8.0)])
def test_a_blob_is_found_where_it_is_and_as_large(x: float, y: float, size: float) -> None:
    _, found = found_in(blob(x, y, size))
    strongest = int(np.argmax(found.response))
    assert found.uv[strongest] == pytest.approx([x, y], abs=0.06)
    scale = found.scale[strongest] * 2.0 ** found.octave[strongest] / 2
    assert scale == pytest.approx(size, rel=0.2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_keypoints_are_those_of_opencv(seed: int) -> None:
    theirs, _, _ = opencv(picture(seed))
    _, ours = found_in(picture(seed))
    assert len(ours.uv) > 100
    assert np.mean(cKDTree(theirs).query(ours.uv)[0] < 0.01) > 0.98
    assert np.mean(cKDTree(ours.uv).query(theirs)[0] < 0.01) > 0.98


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_descriptors_are_those_of_opencv(seed: int) -> None:
    theirs, expected, _ = opencv(picture(seed))
    pyramid, ours = found_in(picture(seed))
    owner, descriptors = sift.describe(pyramid, ours, 10_000)
    likeness = []
    for uv, descriptor in zip(ours.uv[owner], descriptors, strict=True):
        same = np.linalg.norm(theirs - uv, axis=1) < 0.01
        likeness.append((expected[same] @ descriptor).max(initial=0.0))
    assert np.quantile(likeness, 0.05) > 0.999  # their bytes


def test_each_orientation_of_opencv_gives_a_feature() -> None:
    theirs, _, angle = opencv(picture())
    pyramid, ours = found_in(picture())
    turns, peaks = np.empty((len(ours.uv), 4)), np.zeros(len(ours.uv), np.int64)
    for number, blurred in enumerate(pyramid):
        sift._orient(blurred, np.flatnonzero(ours.octave == number), ours.place, ours.layer, ours.scale, turns, peaks)
    agree = []
    for uv, turn in zip(theirs, angle, strict=True):
        n = int(np.argmin(np.linalg.norm(ours.uv - uv, axis=1)))
        agree.append(np.abs((turns[n, : peaks[n]] - turn + 0.5) % 1.0 - 0.5).min() < 0.002)
    assert np.mean(agree) > 0.97
    assert peaks.sum() == pytest.approx(len(theirs), rel=0.02)
    assert (peaks > 1).any()


def test_directions_of_gradients_are_those_of_the_arc_tangent() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 50, (3, 500)).astype(np.float32)
    length, turn = np.empty(498, np.float32), np.empty(498, np.float32)
    sift._gradients.py_func(*rows, 1, 498, length, turn)
    dx, dy = rows[1, 2:] - rows[1, :-2], (rows[2] - rows[0])[1:-1]
    assert np.allclose(length, np.hypot(dx, dy), rtol=1e-6)
    off = (turn - np.arctan2(dy, dx) / (2 * np.pi) + 0.5) % 1.0 - 0.5
    assert np.abs(off).max() < 4e-5


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_picture_has_the_same_features(quarters: int) -> None:
    image = picture()
    turned = np.ascontiguousarray(np.rot90(image, quarters))
    features = []
    for seen in (image, turned):
        pyramid, found = found_in(seen)
        owner, descriptors = sift.describe(pyramid, found, 10_000)
        features.append((found.uv[owner], descriptors))
    (uv, descriptors), (uv_turned, turned_descriptors) = features
    height, width = image.shape
    for _ in range(quarters):
        uv = np.stack([uv[:, 1], width - 1 - uv[:, 0]], 1)
        height, width = width, height
    # octaves keep every second pixel, the first among them: from the second on, turned pictures keep others
    near = [np.linalg.norm(uv_turned - place, axis=1) < 0.3 for place in uv]
    likeness = [(turned_descriptors[same] @ own).max(initial=0.0) for same, own in zip(near, descriptors, strict=True)]
    assert np.mean(np.array(likeness) > 0.95) > 0.85


def test_no_more_features_than_asked_for_in_the_order_of_the_keypoints() -> None:
    pyramid, found = found_in(picture())
    whole, descriptors = sift.describe(pyramid, found, 10_000)
    owner, first = sift.describe(pyramid, found, 50)
    assert len(owner) == 50
    assert np.array_equal(owner, whole[:50])
    assert np.array_equal(first, descriptors[:50])
    assert (np.diff(whole) >= 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (11, 11), (12, 12), (40, 13)])
def test_pictures_of_any_size_can_be_searched(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pyramid, found = found_in(image)
    owner, descriptors = sift.describe(pyramid, found, 100)
    assert descriptors.shape == (len(owner), 128)
    assert ((found.uv > 0) & (found.uv < [shape[1], shape[0]])).all()


def test_noise_between_black_and_white_is_searched_whole() -> None:
    image = np.random.default_rng(1).choice([0, 255], (120, 160)).astype(np.uint8)
    pyramid, found = found_in(image)
    owner, descriptors = sift.describe(pyramid, found, 10_000)
    assert len(owner) > 100
    assert np.allclose(np.linalg.norm(descriptors, axis=1), 1.0, atol=1e-5)
