"""Points followed by compiled loops agree with a slow reference in double precision, with OpenCV, and with shifts that are known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from test_tracking import corners, moved, picture, shift, warp
from vipe_kernels import following
from vipe_kernels.following import LEVELS, PRECISION, STEPS, Pyramid

Float = NDArray[np.float64]
HALF = 7


def bilinear(image: Float, x: float, y: float, rows: int) -> Float:
    """(rows, rows) samples whose first is at (x, y)."""
    ix, iy = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - ix, y - iy
    block = image[iy : iy + rows + 1, ix : ix + rows + 1]
    above = (1 - fx) * block[:-1, :-1] + fx * block[:-1, 1:]
    below = (1 - fx) * block[1:, :-1] + fx * block[1:, 1:]
    return (1 - fy) * above + fy * below


def reference(source: Pyramid, target: Pyramid, point: Float, guess: Float, level: int) -> Float:
    """Forward Lucas-Kanade of one point, the definition written out: float64, no early end but convergence."""
    margin, at = source.margin, np.array(guess, np.float64)
    for number in range(level, -1, -1):
        times = 2**number
        first, second = source.levels[number].astype(np.float64), target.levels[number].astype(np.float64)
        x, y = point / times + margin
        patch = bilinear(first, x - HALF - 1, y - HALF - 1, 2 * HALF + 3)
        kernel = np.array([3.0, 10.0, 3.0]) / 32
        wide, tall = patch[:, 2:] - patch[:, :-2], patch[2:] - patch[:-2]
        gx = kernel[0] * (wide[:-2] + wide[2:]) + kernel[1] * wide[1:-1]
        gy = kernel[0] * (tall[:, :-2] + tall[:, 2:]) + kernel[1] * tall[:, 1:-1]
        normal = np.array([[(gx * gx).sum(), (gx * gy).sum()], [(gx * gy).sum(), (gy * gy).sum()]])
        u = at / times
        for _ in range(STEPS):
            seen = bilinear(second, u[0] - HALF + margin, u[1] - HALF + margin, 2 * HALF + 1)
            error = patch[1:-1, 1:-1] - seen
            step = np.linalg.solve(normal, [(gx * error).sum(), (gy * error).sum()])
            u = u + step
            if np.linalg.norm(step) <= PRECISION:
                break
        at = u * times
    return at


@pytest.mark.parametrize("level", [0, 1, 2])
def test_points_end_where_the_slow_reference_ends(level: int) -> None:
    image = picture(3)
    source, target = Pyramid(image, HALF), Pyramid(warp(image, shift(2.3, -1.4)), HALF)
    uv = corners(image, margin=40)
    there, _, found = following.follow(source, target, uv, uv, level)
    expected = np.array([reference(source, target, p.astype(np.float64), p.astype(np.float64), level) for p in uv])
    miss = np.linalg.norm(there - expected, axis=1)[found]
    assert found.mean() > 0.95
    assert np.quantile(miss, 0.95) < 2 * PRECISION


@given(x=st.floats(-4, 4), y=st.floats(-4, 4), seed=st.integers(0, 50))
@settings(max_examples=8)
def test_points_end_where_those_of_opencv_end(x: float, y: float, seed: int) -> None:
    image = picture(seed)
    other = warp(image, shift(x, y))
    uv = corners(image, margin=40)
    there, back, found = following.follow(Pyramid(image, HALF), Pyramid(other, HALF), uv, uv, 1)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, PRECISION)
    side = (2 * HALF + 1, 2 * HALF + 1)
    theirs, ok, _ = cv2.calcOpticalFlowPyrLK(image, other, uv[:, None], None, winSize=side, maxLevel=1, criteria=criteria)
    both = found & (ok.ravel() > 0) & (np.linalg.norm(back - uv, axis=1) < 0.5)
    assert both.mean() > 0.9
    assert np.quantile(np.linalg.norm(there - theirs[:, 0], axis=1)[both], 0.9) < 0.05


def test_the_way_back_returns_to_the_start_only_where_the_point_was_found() -> None:
    image = picture(5)
    other = warp(image, shift(1.5, 0.5))
    other[:, :160] = picture(6)[:, :160]  # the left half shows something else
    uv = corners(image, margin=40)
    _, back, found = following.follow(Pyramid(image, HALF), Pyramid(other, HALF), uv, moved(uv, shift(1.0, 1.0)), 1)
    returned = found & (np.linalg.norm(back - uv, axis=1) < 0.3)
    left = uv[:, 0] < 140
    assert returned[uv[:, 0] > 180].mean() > 0.95
    assert returned[left].mean() < 0.5


def test_a_patch_without_structure_is_not_found() -> None:
    flat = np.full((120, 160), 90, np.uint8)
    uv = np.array([[60.0, 60.0]], np.float32)
    _, _, found = following.follow(Pyramid(flat, HALF), Pyramid(flat, HALF), uv, uv, 1)
    assert not found.any()


@pytest.mark.parametrize("away", [(-3.0, 40.0), (400.0, 40.0), (40.0, -3.0), (40.0, 300.0), (1e9, 1e9), (np.nan, 10.0)])
def test_a_guess_outside_of_the_picture_is_not_found(away: tuple[float, float]) -> None:
    image = picture()
    uv, guess = np.array([[60.0, 60.0]], np.float32), np.array([away], np.float32)
    _, _, found = following.follow(Pyramid(image, HALF), Pyramid(image, HALF), uv, guess, 1)
    assert not found.any()


@pytest.mark.parametrize("size", [(48, 64), (33, 41), (16, 16)])
def test_points_at_the_border_of_small_pictures_stay_where_they_are(size: tuple[int, int]) -> None:
    image = np.ascontiguousarray(picture(2)[: size[0], : size[1]])
    right, bottom = size[1] - 1.0, size[0] - 1.0
    uv = np.array([[0, 0], [right, 0], [0, bottom], [right, bottom], [right / 2, 0]], np.float32)
    there, _, found = following.follow(Pyramid(image, HALF), Pyramid(image, HALF), uv, uv, LEVELS - 1)
    assert np.abs(there - uv)[found].max() < 0.05
    assert found.any()


FOLLOWING_ONCE = """
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from vipe_kernels import following
image = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 255, (120, 160), np.uint8), (0, 0), 1.5)
pictures = following.Pyramid(image, 7), following.Pyramid(np.roll(image, 2, 1), 7)
uv = np.random.default_rng(6).uniform(20, 100, (300, 2)).astype(np.float32)
print(hashlib.sha256(b"".join(found.tobytes() for found in following.follow(*pictures, uv, uv, 1))).hexdigest())
"""


def test_the_process_that_compiles_finds_what_later_ones_find(tmp_path: Path) -> None:
    """What is read from disk and what was just compiled may be two machine codes of one loop."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    answers = [subprocess.check_output([sys.executable, "-c", FOLLOWING_ONCE], env=environment, text=True) for _ in range(2)]
    assert answers[0] == answers[1]
