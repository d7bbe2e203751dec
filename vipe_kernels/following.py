"""Following points from one picture to another: Lucas-Kanade on patches, forward and backward, compiled for the CPU.

A patch of the first picture is moved over the second until the gradient of the squared difference vanishes (Lucas and Kanade 1981, with the
gradient of the patch held fixed: Bouguet 2000; Baker and Matthews 2004, inverse compositional, which is the same for translations).
The answer is OpenCV's `calcOpticalFlowPyrLK` to its rounding, three to four times faster: pyramids are made once per picture, a patch
is sampled once, and what is repeated runs over whole vector registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_kernels import parallel
from vipe_kernels.compiled import compiled_for_pixels, inside_for_pixels

F32 = NDArray[np.float32]

LEVELS = 3
"""Pictures of a pyramid, each half the size of the one before."""
STEPS = 20
PRECISION = 0.01
"""Pixels of the finest level: a shorter step is the last. Of a coarser one five times as many of its own do: what follows refines it."""
_FLAT = 0.05
"""Squared grey levels per pixel: a patch whose gradients vary less along some direction cannot be located."""
_LANES = 8
"""Pixels that a vector register holds; rows of a patch are padded to a multiple."""


@dataclass(frozen=True)
class Pyramid:
    """One picture made ready: `image` (H, W) uint8 and the half side of the patch that is compared, in pixels."""

    image: NDArray[np.uint8]
    half: int

    @property
    def margin(self) -> int:
        """Pixels that every level is extended by, mirrored, so that patches at the border need no checks."""
        return self.half + 3 * _LANES

    @cached_property
    def levels(self) -> tuple[F32, ...]:
        """The padded pictures, finest first."""
        level, found, margin = self.image.astype(np.float32), [], self.margin
        for number in range(LEVELS):
            if number:
                level = np.asarray(cv2.pyrDown(level), np.float32)
            found.append(np.asarray(cv2.copyMakeBorder(level, margin, margin, margin, margin, cv2.BORDER_REFLECT), np.float32))
        return tuple(found)


def follow(source: Pyramid, target: Pyramid, uv: F32, guess: F32, level: int) -> tuple[F32, F32, NDArray[np.bool_]]:
    """Move points from a guess to where their patch fits best, and from there back.

    uv (N, 2) in the source, guess (N, 2) in the target, float32 pixels; level: 0 to LEVELS - 1, the coarsest that is looked at. Returns
    the position in the target (N, 2), the way back (N, 2) in the source, and (N,) whether both were found: the patch has structure and
    never left the picture. The way back starts from where the guess would have put it, not from the answer, or all would look consistent.
    """
    there, back, found = guess.astype(np.float32), uv.astype(np.float32), np.zeros(len(uv), bool)
    start, aim = np.ascontiguousarray(uv, np.float32), np.ascontiguousarray(guess, np.float32)

    def task(first: int, last: int) -> None:
        _follow(first, last, source.levels, target.levels, level, source.margin, source.half, start, aim, there, back, found)

    parallel.spans(task, len(uv), len(uv) * (2 * source.half + 1) ** 2)
    return there, back, found


@inside_for_pixels
def _weights(fx, fy):
    """Of the four pixels around a position, for bilinear interpolation: here, right, below, both."""
    both = fx * fy
    return np.float32(1.0) - fx - fy + both, fx - both, fy - both, both


@inside_for_pixels
def _sample(picture, width, x, y, rows, stride, out):
    """Bilinear patch (rows, stride) of a flat picture whose first pixel is at (x, y)."""
    ix, iy = math.floor(x), math.floor(y)
    w00, w01, w10, w11 = _weights(np.float32(x - ix), np.float32(y - iy))
    one = np.uint64(1)
    for r in range(rows):
        o, q = np.uint64((iy + r) * width + ix), np.uint64(r * stride)
        p = o + np.uint64(width)
        for c in range(np.uint64(stride)):
            out[q + c] = w00 * picture[o + c] + w01 * picture[o + c + one] + w10 * picture[p + c] + w11 * picture[p + c + one]


@inside_for_pixels
def _gradients(patch, count, stride, mask, gx, gy):
    """Scharr gradients of the inside of a patch, 0 where mask is, into gx, gy (count,), and their sums of squares and products."""
    side, middle = np.float32(3 / 32), np.float32(10 / 32)
    one, two, below, last = np.uint64(1), np.uint64(2), np.uint64(stride), np.uint64(2 * stride)
    xx, xy, yy = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for c in range(np.uint64(count)):
        a, b, g, h = patch[c], patch[c + two], patch[c + last], patch[c + last + two]
        gx[c] = mask[c] * (side * (b - a + h - g) + middle * (patch[c + below + two] - patch[c + below]))
        gy[c] = mask[c] * (side * (g - a + h - b) + middle * (patch[c + last + one] - patch[c + one]))
    for c in range(np.uint64(count)):
        xx += gx[c] * gx[c]
        xy += gx[c] * gy[c]
        yy += gy[c] * gy[c]
    return xx, xy, yy


@inside_for_pixels
def _mismatch(picture, width, x, y, rows, stride, patch, gx, gy):
    """Sums of gradient times difference between the inside of a patch and a picture, from the pixel (x, y) of that."""
    ix, iy = math.floor(x), math.floor(y)
    w00, w01, w10, w11 = _weights(np.float32(x - ix), np.float32(y - iy))
    one = np.uint64(1)
    bx, by = np.float32(0.0), np.float32(0.0)
    for r in range(rows):
        o, q, t = np.uint64((iy + r) * width + ix), np.uint64(r * stride), np.uint64((r + 1) * stride + 1)
        p = o + np.uint64(width)
        for c in range(np.uint64(stride - _LANES)):
            seen = w00 * picture[o + c] + w01 * picture[o + c + one] + w10 * picture[p + c] + w11 * picture[p + c + one]
            bx += (patch[t + c] - seen) * gx[q + c]
            by += (patch[t + c] - seen) * gy[q + c]
    return bx, by


@inside_for_pixels
def _align(source, target, margin, half, precision, x, y, u, v, patch, mask, gx, gy):
    """One level: the patch around (x, y) of the source, moved over the target from (u, v): its position, and whether it was found."""
    height, width = source.shape
    rows = 2 * half + 1
    stride = len(gx) // rows
    right, bottom = width - 2 * margin - 1, height - 2 * margin - 1
    if not (x >= 0 and y >= 0 and x <= right and y <= bottom):
        return u, v, False
    _sample(source.ravel(), width, x - half - 1 + margin, y - half - 1 + margin, rows + 2, stride, patch)
    xx, xy, yy = _gradients(patch, rows * stride, stride, mask, gx, gy)
    a, b, d = np.float64(xx), np.float64(xy), np.float64(yy)
    if not 0.5 * (a + d - math.sqrt((a - d) * (a - d) + 4 * b * b)) > _FLAT * rows * rows:
        return u, v, False
    determinant = a * d - b * b
    picture, before_x, before_y = target.ravel(), 0.0, 0.0
    for step in range(STEPS):
        if not (u >= 0 and v >= 0 and u <= right and v <= bottom):
            return u, v, False
        bx, by = _mismatch(picture, width, u - half + margin, v - half + margin, rows, stride, patch, gx, gy)
        dx, dy = (d * bx - b * by) / determinant, (a * by - b * bx) / determinant
        u, v = u + dx, v + dy
        if dx * dx + dy * dy <= precision * precision:
            break
        if step > 0 and abs(dx + before_x) < precision and abs(dy + before_y) < precision:
            u, v = u - 0.5 * dx, v - 0.5 * dy  # to and fro between two positions: the middle
            break
        before_x, before_y = dx, dy
    return u, v, u >= 0 and v >= 0 and u <= right and v <= bottom


@inside_for_pixels
def _descend(source, target, coarsest, margin, half, x, y, u, v, patch, mask, gx, gy):
    """From the coarsest level to the finest."""
    found = True
    for level in range(coarsest, -1, -1):
        times = np.float64(1 << level)
        pictures, start = (source[level], target[level]), (x / times, y / times)
        precision = PRECISION if level == 0 else 5.0 * PRECISION
        u, v, found = _align(*pictures, margin, half, precision, *start, u / times, v / times, patch, mask, gx, gy)
        u, v = u * times, v * times
        if not found:
            break
    return u, v, found


@compiled_for_pixels
def _follow(first, last, source, target, coarsest, margin, half, uv, guess, there, back, found):
    """Points [first, last): fills there, back (N, 2) and found (N,)."""
    rows = 2 * half + 1
    stride = (rows + _LANES - 1) // _LANES * _LANES + _LANES
    patch = np.zeros((rows + 3) * stride, np.float32)
    mask, gx, gy = np.zeros(rows * stride, np.float32), np.zeros(rows * stride, np.float32), np.zeros(rows * stride, np.float32)
    for r in range(rows):
        mask[r * stride : r * stride + rows] = 1.0
    for i in range(first, last):
        x, y, u, v = np.float64(uv[i, 0]), np.float64(uv[i, 1]), np.float64(guess[i, 0]), np.float64(guess[i, 1])
        away_x, away_y = u - x, v - y
        u, v, good = _descend(source, target, coarsest, margin, half, x, y, u, v, patch, mask, gx, gy)
        there[i, 0], there[i, 1] = u, v
        if good:
            x, y, good = _descend(target, source, coarsest, margin, half, u, v, u - away_x, v - away_y, patch, mask, gx, gy)
            back[i, 0], back[i, 1] = x, y
        found[i] = good
