"""SIFT keypoints and descriptors (Lowe 2004), compiled for the CPU.

Keypoints and descriptors are those of OpenCV, whose two calls take three times as long: it refines extrema that are less than noise, looks
for the orientation of four times as many keypoints as are wanted, and blurs the picture twice. One thing differs: it reports positions a
quarter of a pixel too far right and down, as what it doubles in size stays centred and what it scales back does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_kernels.compiled import compiled, compiled_for_pixels, inside_for_pixels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LAYERS = 3
"""Scales to an octave."""
SIGMA = 1.6
"""Blur of the first picture of an octave, in its pixels."""
_CAMERA_SIGMA = 0.5
"""Blur that a picture comes with, in pixels."""
_SMALLEST = 24
"""Shorter side below which no octave is looked at, pixels."""
_BORDER = 5
_REFINEMENTS = 5
_EDGE = 10.0
"""Ratio of principal curvatures from which an extremum is an edge."""
BINS = 36
"""Of the histogram of gradients that gives a keypoint its orientation."""
_PEAK = 0.8
"""Share of the highest peak from which another gives an orientation of its own."""
CELLS, DIRECTIONS = 4, 8
"""Of a descriptor: cells along a side, and directions told apart in each."""
_CLIP = 0.2


@dataclass(frozen=True)
class Keypoints:
    """uv (N, 2) float64 px; response (N,) float32: contrast, 1 for the whole range of a picture; and by which picture of which octave they
    were found (N,), where in it (N, 2) px, and their scale there (N,) px."""

    uv: F64
    response: F32
    octave: NDArray[np.int64]
    layer: NDArray[np.int64]
    place: F64
    scale: F64

    def select(self, index: NDArray[np.intp]) -> Keypoints:
        return Keypoints(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def octaves(image: NDArray[np.uint8]) -> Iterator[F32]:
    """Blurred pictures (LAYERS + 3, h, w) of each octave, from twice the size of the picture down."""
    height, width = image.shape
    base = cv2.resize(image.astype(np.float32), (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    base = cv2.GaussianBlur(base, (0, 0), math.sqrt(SIGMA**2 - (2 * _CAMERA_SIGMA) ** 2))
    sigmas = [SIGMA * 2 ** (layer / LAYERS) for layer in range(LAYERS + 3)]
    while min(base.shape) >= _SMALLEST:
        found = np.empty((LAYERS + 3, *base.shape), np.float32)
        found[0] = base
        for layer in range(1, LAYERS + 3):
            cv2.GaussianBlur(found[layer - 1], (0, 0), math.sqrt(sigmas[layer] ** 2 - sigmas[layer - 1] ** 2), dst=found[layer])
        yield found
        base = np.ascontiguousarray(found[LAYERS][::2, ::2])


def detect(pyramid: list[F32], contrast: float) -> Keypoints:
    """Extrema of the difference of Gaussians in space and scale whose contrast is at least `contrast` / LAYERS, not on edges."""
    found = []
    for number, blurred in enumerate(pyramid):
        places = np.empty((blurred[0].size // 8 + 1, 3), np.int64)
        count = _extrema(blurred, np.float32(0.5 * 255 * contrast / LAYERS), places)
        refined = np.empty((count, 4))
        kept = _refine(blurred, places[:count], 255.0 * contrast / LAYERS, refined)
        unique = np.unique(refined[:kept], axis=0)  # extrema next to each other may be one
        found.append(np.c_[np.full(len(unique), number), unique])
    octave, x, y, layer, value = np.concatenate(found).T if found else np.zeros((5, 0))
    place, times = np.stack([x, y], 1), 2.0**octave
    # pixel p of the doubled picture is at (p + 0.5) / 2 - 0.5 of the picture
    uv = (place * times[:, None] + 0.5) / 2 - 0.5
    near = np.rint(layer).astype(np.int64)
    return Keypoints(uv, (value / 255).astype(np.float32), octave.astype(np.int64), near, place, SIGMA * 2.0 ** (layer / LAYERS))


def describe(pyramid: list[F32], keypoints: Keypoints, most: int) -> tuple[NDArray[np.intp], F32]:
    """At most `most` features of keypoints, in their order: which keypoint each is of (M,) and its descriptor (M, 128), of unit length. A
    keypoint gives one for each orientation."""
    turns, peaks = np.empty((len(keypoints.uv), 4)), np.zeros(len(keypoints.uv), np.int64)
    for number, blurred in enumerate(pyramid):
        rows = np.flatnonzero(keypoints.octave == number)
        _orient(blurred, rows, keypoints.place, keypoints.layer, keypoints.scale, turns, peaks)
    owner = np.repeat(np.arange(len(peaks)), peaks)[:most]
    nth = np.arange(len(owner)) - (np.cumsum(peaks) - peaks)[owner]
    features, turn = keypoints.select(owner), turns[owner, nth]
    descriptors = np.empty((len(owner), CELLS * CELLS * DIRECTIONS), np.float32)
    for number, blurred in enumerate(pyramid):
        rows = np.flatnonzero(features.octave == number)
        _describe(blurred, rows, features.place, features.layer, features.scale, turn, descriptors)
    return owner, descriptors


@inside_for_pixels
def _subtract(blurred, y, rows):
    """Row y of the differences between one picture and the next, into rows (L, w)."""
    for layer in range(len(rows)):
        coarser, finer, row = blurred[layer + 1, y], blurred[layer, y], rows[layer]
        for x in range(np.uint64(len(row))):
            row[x] = coarser[x] - finer[x]


@compiled_for_pixels
def _extrema(blurred, least, places):
    """Pixels of the inner differences between pictures that are beyond `least` and not less extreme than any of their 26 neighbours:
    layer, row and column of each into places (N, 3); how many, at most N."""
    layers, height, width = blurred.shape[0] - 1, blurred.shape[1], blurred.shape[2]
    candidate = np.empty(width, np.int8)
    rows = np.empty((3, layers, width), np.float32)  # of the differences, row y at y % 3
    count, one = 0, np.uint64(1)
    for y in range(max(_BORDER - 1, 0), min(_BORDER + 1, height)):
        _subtract(blurred, y, rows[y % 3])
    for y in range(_BORDER, height - _BORDER):
        _subtract(blurred, y + 1, rows[(y + 1) % 3])
        previous, current, following = rows[(y - 1) % 3], rows[y % 3], rows[(y + 1) % 3]
        for layer in range(1, layers - 1):
            here, above, below, finer, coarser = current[layer], previous[layer], following[layer], current[layer - 1], current[layer + 1]
            some = np.int8(0)
            for x in range(np.uint64(_BORDER), np.uint64(width - _BORDER)):
                v, left, right = here[x], here[x - one], here[x + one]
                high = max(max(max(left, right), max(above[x], below[x])), max(finer[x], coarser[x]))
                low = min(min(min(left, right), min(above[x], below[x])), min(finer[x], coarser[x]))
                candidate[x] = ((v > least) & (v >= high)) | ((v < -least) & (v <= low))
                some |= candidate[x]
            if not some:
                continue
            for x in range(_BORDER, width - _BORDER):
                if not candidate[x]:
                    continue
                sign = np.float32(1.0) if here[x] > 0 else np.float32(-1.0)
                value = sign * here[x]
                extreme = True
                for k in range(layer - 1, layer + 2):
                    for j in range(3):
                        for i in range(x - 1, x + 2):
                            if sign * rows[j, k, i] > value:
                                extreme = False
                    if not extreme:
                        break
                if extreme and count < len(places):
                    places[count, 0], places[count, 1], places[count, 2] = layer, y, x
                    count += 1
    return count


@compiled
def _solve3(h, g, out):
    """out = -h^-1 g of a symmetric 3 x 3 system, by its adjugate; False where h has no inverse."""
    a, b, c = h[1, 1] * h[2, 2] - h[1, 2] * h[1, 2], h[0, 2] * h[1, 2] - h[0, 1] * h[2, 2], h[0, 1] * h[1, 2] - h[0, 2] * h[1, 1]
    determinant = h[0, 0] * a + h[0, 1] * b + h[0, 2] * c
    if determinant == 0.0:
        return False
    d, e, f = h[0, 0] * h[2, 2] - h[0, 2] * h[0, 2], h[0, 1] * h[0, 2] - h[0, 0] * h[1, 2], h[0, 0] * h[1, 1] - h[0, 1] * h[0, 1]
    out[0] = -(a * g[0] + b * g[1] + c * g[2]) / determinant
    out[1] = -(b * g[0] + d * g[1] + e * g[2]) / determinant
    out[2] = -(c * g[0] + e * g[1] + f * g[2]) / determinant
    return True


@compiled
def _refine(blurred, places, least, refined):
    """Fit a parabola around each extremum (Brown and Lowe 2002): x, y, layer and absolute value of those that stay, are at least `least`
    and not on an edge, into refined (N, 4); how many."""
    layers, height, width = blurred.shape[0] - 1, blurred.shape[1], blurred.shape[2]
    d, g, h, step = np.empty((3, 3, 3), np.float32), np.empty(3), np.empty((3, 3)), np.empty(3)
    count = 0
    for place in places:
        layer, y, x = place[0], place[1], place[2]
        settled = False
        for _ in range(_REFINEMENTS):
            for k in range(3):
                for j in range(3):
                    for i in range(3):
                        at = (y + j - 1, x + i - 1)
                        d[k, j, i] = blurred[layer + k, at[0], at[1]] - blurred[layer + k - 1, at[0], at[1]]
            centre = 2.0 * np.float64(d[1, 1, 1])
            g[0], g[1], g[2] = 0.5 * (d[1, 1, 2] - d[1, 1, 0]), 0.5 * (d[1, 2, 1] - d[1, 0, 1]), 0.5 * (d[2, 1, 1] - d[0, 1, 1])
            h[0, 0], h[1, 1], h[2, 2] = d[1, 1, 2] + d[1, 1, 0] - centre, d[1, 2, 1] + d[1, 0, 1] - centre, d[2, 1, 1] + d[0, 1, 1] - centre
            h[0, 1] = 0.25 * (d[1, 2, 2] - d[1, 2, 0] - d[1, 0, 2] + d[1, 0, 0])
            h[0, 2] = 0.25 * (d[2, 1, 2] - d[2, 1, 0] - d[0, 1, 2] + d[0, 1, 0])
            h[1, 2] = 0.25 * (d[2, 2, 1] - d[2, 0, 1] - d[0, 2, 1] + d[0, 0, 1])
            if not _solve3(h, g, step):
                break
            if abs(step[0]) < 0.5 and abs(step[1]) < 0.5 and abs(step[2]) < 0.5:
                settled = True
                break
            if abs(step[0]) > width or abs(step[1]) > height or abs(step[2]) > layers:
                break
            x, y, layer = x + round(step[0]), y + round(step[1]), layer + round(step[2])
            if not (1 <= layer < layers - 1 and _BORDER <= x < width - _BORDER and _BORDER <= y < height - _BORDER):
                break
        if not settled:
            continue
        value = abs(d[1, 1, 1] + 0.5 * (g[0] * step[0] + g[1] * step[1] + g[2] * step[2]))
        trace, determinant = h[0, 0] + h[1, 1], h[0, 0] * h[1, 1] - h[0, 1] * h[0, 1]
        if value < least or determinant <= 0 or trace * trace * _EDGE >= (_EDGE + 1) ** 2 * determinant:
            continue
        refined[count, 0], refined[count, 1], refined[count, 2], refined[count, 3] = x + step[0], y + step[1], layer + step[2], value
        count += 1
    return count


@inside_for_pixels
def _gradients(above, here, below, first, count, length, turn):
    """Of `count` pixels of a row, from `first` on: length of the gradient, and its direction as a share of a turn, [0, 1], to 0.00003."""
    before, at, after = np.uint64(first - 1), np.uint64(first), np.uint64(first + 1)
    for k in range(np.uint64(count)):
        dx, dy = here[after + k] - here[before + k], below[at + k] - above[at + k]
        ax, ay = abs(dx), abs(dy)
        c = min(ax, ay) / (max(ax, ay) + np.float32(1e-20))
        q = c * c
        a = (((np.float32(-0.0070548) * q + np.float32(0.024761)) * q - np.float32(0.051854)) * q + np.float32(0.159121)) * c
        a = np.float32(0.25) - a if ay > ax else a
        a = np.float32(0.5) - a if dx < 0 else a
        turn[k] = np.float32(1.0) - a if dy < 0 else a
        length[k] = np.sqrt(dx * dx + dy * dy)


@inside_for_pixels
def _bell(radius, spread, weights):
    """exp(-i^2 / (2 spread^2)) for i from -radius on, into weights; a bell in the plane is the product of two."""
    for i in range(2 * radius + 1):
        weights[i] = math.exp(-0.5 * ((i - radius) / spread) ** 2)


@compiled_for_pixels
def _orient(blurred, rows, place, layer, scale, turns, peaks):
    """Orientations of some keypoints of an octave: shares of a turn into turns (N, 4) and their number into peaks (N,)."""
    _, height, width = blurred.shape
    histogram, smooth = np.empty(BINS, np.float32), np.empty(BINS, np.float32)
    length, turn, bell = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(2 * (width + height) + 1, np.float32)
    for n in rows:
        picture, x, y = blurred[layer[n]], round(place[n, 0]), round(place[n, 1])
        radius = min(round(4.5 * scale[n]), width + height)
        _bell(radius, 1.5 * scale[n], bell)
        histogram[:] = 0
        first, last = max(-radius, 1 - x), min(radius, width - 2 - x)
        for j in range(max(-radius, 1 - y), min(radius, height - 2 - y) + 1):
            _gradients(picture[y + j - 1], picture[y + j], picture[y + j + 1], x + first, last - first + 1, length, turn)
            offset, high = np.uint64(radius + first), bell[radius + j]
            for k in range(np.uint64(last - first + 1)):
                bin = np.int32(np.float32(BINS) * turn[k] + np.float32(0.5))
                histogram[np.uint64(bin if bin < BINS else 0)] += high * bell[offset + k] * length[k]
        for b in range(BINS):
            outer, inner = histogram[b - 2] + histogram[(b + 2) % BINS], histogram[b - 1] + histogram[(b + 1) % BINS]
            smooth[b] = (outer + np.float32(4) * inner + np.float32(6) * histogram[b]) / np.float32(16)
        highest = smooth.max()
        peaks[n] = 0
        for b in range(BINS):
            left, here, right = smooth[b - 1], smooth[b], smooth[(b + 1) % BINS]
            if here > left and here > right and here >= np.float32(_PEAK) * highest and peaks[n] < turns.shape[1]:
                turns[n, peaks[n]] = (b + 0.5 * (left - right) / (left - 2 * here + right)) / BINS % 1.0
                peaks[n] += 1


@inside_for_pixels
def _between(slope, offset, least, most, first, last):
    """Whole numbers i from first to last for which slope i + offset is between least and most: the first and the last of them."""
    if abs(slope) < 1e-9:
        return (first, last) if least < offset < most else (first, first - 1)
    a, b = (least - offset) / slope, (most - offset) / slope
    return max(first, math.ceil(min(a, b))), min(last, math.floor(max(a, b)))


@compiled_for_pixels
def _describe(blurred, rows, place, layer, scale, turn_of, descriptors):
    """Descriptors of some features of an octave: histograms of gradient directions relative to `turn_of` in cells of a turned square, each
    gradient shared between the nearest cells and directions; clipped, of unit length."""
    _, height, width = blurred.shape
    histogram = np.empty((CELLS + 3) ** 2 * DIRECTIONS, np.float32)
    stride, next_cell, last_direction = np.uint64((CELLS + 3) * DIRECTIONS), np.uint64(DIRECTIONS), np.uint64(DIRECTIONS - 1)
    length, turn, bell = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(2 * (width + height) + 1, np.float32)
    # a cell more on every side, whose share falls outside; a turn more, so that nothing is negative
    half, least, most = np.float32(0.5 * CELLS + 0.5), -0.5 * CELLS - 0.499, 0.5 * CELLS + 0.499
    for n in rows:
        picture, x, y = blurred[layer[n]], round(place[n, 0]), round(place[n, 1])
        cell = 3.0 * scale[n]
        radius = min(round(cell * math.sqrt(2.0) * (CELLS + 1) * 0.5), width + height)
        _bell(radius, 0.5 * CELLS * cell, bell)
        along, across = math.cos(2 * math.pi * turn_of[n]) / cell, math.sin(2 * math.pi * turn_of[n]) / cell
        start, du, dv = np.float32(turn_of[n] + 1.0), np.float32(along), np.float32(across)
        histogram[:] = 0
        for j in range(max(-radius, 1 - y), min(radius, height - 2 - y) + 1):
            first, last = _between(along, across * j, least, most, max(-radius, 1 - x), min(radius, width - 2 - x))
            first, last = _between(-across, along * j, least, most, first, last)
            if last < first:
                continue
            _gradients(picture[y + j - 1], picture[y + j], picture[y + j + 1], x + first, last - first + 1, length, turn)
            offset, high = np.uint64(radius + first), bell[radius + j]
            column, row = np.float32(along * first + across * j) + half, np.float32(along * j - across * first) + half
            for k in range(np.uint64(last - first + 1)):
                direction = (start - turn[k]) * np.float32(DIRECTIONS)
                c, r, g = np.int32(column), np.int32(row), np.int32(direction)
                fc, fr, fd = column - np.float32(c), row - np.float32(r), direction - np.float32(g)
                weight = high * bell[offset + k] * length[k]
                d, e = np.uint64(g) & last_direction, np.uint64(g + 1) & last_direction
                p = np.uint64(r) * stride + np.uint64(c) * next_cell
                q = p + stride
                lower, upper = weight * (1 - fr), weight * fr
                a, b = lower * (1 - fc), lower * fc
                histogram[p + d] += a * (1 - fd)
                histogram[p + e] += a * fd
                histogram[p + next_cell + d] += b * (1 - fd)
                histogram[p + next_cell + e] += b * fd
                a, b = upper * (1 - fc), upper * fc
                histogram[q + d] += a * (1 - fd)
                histogram[q + e] += a * fd
                histogram[q + next_cell + d] += b * (1 - fd)
                histogram[q + next_cell + e] += b * fd
                column, row = column + du, row - dv
        out, total, clipped = descriptors[n], np.float32(0), np.float32(0)
        for i in range(CELLS):
            for j in range(CELLS):
                inside = ((i + 1) * (CELLS + 3) + j + 1) * DIRECTIONS
                out[(CELLS * i + j) * DIRECTIONS : (CELLS * i + j + 1) * DIRECTIONS] = histogram[inside : inside + DIRECTIONS]
        for k in range(len(out)):
            total += out[k] * out[k]
        limit = np.float32(_CLIP) * np.sqrt(total)
        for k in range(len(out)):
            out[k] = min(out[k], limit)
            clipped += out[k] * out[k]
        size = max(np.sqrt(clipped), np.float32(1e-9))
        for k in range(len(out)):
            out[k] /= size
