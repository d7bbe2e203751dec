"""Which matches between two pictures of a rigid scene agree on one epipolar geometry: RANSAC with local optimisation, compiled for the CPU.

Samples of eight matches give fundamental matrices (Hartley 1997); the best so far is improved by reweighted least squares over all
matches (LO-RANSAC: Chum et al. 2003, with the weights of Geman and McClure). MAGSAC++ of OpenCV 4.13 finds as many of the right
matches, and as few of the wrong ones, in fifteen times as long (measured: 5 ms for a pair of keyframes).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vipe_kernels.compiled import compiled

F64 = NDArray[np.float64]

FEWEST = 8
_TRIALS = 2000
_SURE = 0.999
"""Probability that one sample of right matches alone was among those drawn."""
_ROUNDS = 4
"""Of reweighting, each time a better sample is found."""
_SEED = 7


def verify(a: NDArray[np.float32], b: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Matches a[i] <-> b[i] that lie within `threshold` of the best epipolar geometry: (M,) bool, none where there are fewer than eight
    matches or no geometry. a, b (M, 2) pixels; the distance is Sampson's, in pixels. The same input gives the same answer.
    """
    if len(a) < FEWEST:
        return np.zeros(len(a), bool)
    x, y = a.astype(np.float64), b.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    # one scale for both pictures, so that a distance is still one of pixels, but for that scale
    scale = max(float(np.sqrt(0.25 * (np.square(x).sum(1).mean() + np.square(y).sum(1).mean()))), 1e-9)
    limit = (threshold / scale) ** 2
    return np.asarray(_search(np.ascontiguousarray((x / scale).T), np.ascontiguousarray((y / scale).T), limit) < limit)


@compiled
def _constraint(f, x, y, i):
    """y' F x of match i of x, y (2, M) and a fundamental matrix f (9,), row by row, and its squared slope by the four coordinates."""
    u = f[0] * x[0, i] + f[1] * x[1, i] + f[2]
    v = f[3] * x[0, i] + f[4] * x[1, i] + f[5]
    w = f[6] * x[0, i] + f[7] * x[1, i] + f[8]
    s = f[0] * y[0, i] + f[3] * y[1, i] + f[6]
    t = f[1] * y[0, i] + f[4] * y[1, i] + f[7]
    return y[0, i] * u + y[1, i] * v + w, u * u + v * v + s * s + t * t


@compiled
def _distances(f, x, y, distance2):
    """Squared Sampson distances (M,) of matches x, y (2, M) to a fundamental matrix f (9,)."""
    for i in range(x.shape[1]):
        off, slope2 = _constraint(f, x, y, i)
        distance2[i] = off * off / slope2


@compiled
def _cost(distance2, limit):
    """Sum of squared distances, none of which counts for more than the limit; and how many are below it. NaN counts as above."""
    total, inside = 0.0, 0
    for value in distance2:
        if value < limit:
            total += value
            inside += 1
        else:
            total += limit
    return total, inside


@compiled
def _null_vector(rows, f):
    """A vector f (9,) that all rows (8, 9) are orthogonal to, by elimination with full pivoting; destroys rows."""
    order, rank = np.arange(9), 8
    for k in range(8):
        largest, pivot_row, pivot_column = 0.0, k, k
        for r in range(k, 8):
            for c in range(k, 9):
                if abs(rows[r, c]) > largest:
                    largest, pivot_row, pivot_column = abs(rows[r, c]), r, c
        if not largest > 1e-12:
            rank = k  # as of matches between pictures of a plane, or of one picture with itself: more than one vector will do
            break
        for c in range(9):
            rows[k, c], rows[pivot_row, c] = rows[pivot_row, c], rows[k, c]
        for r in range(8):
            rows[r, k], rows[r, pivot_column] = rows[r, pivot_column], rows[r, k]
        order[k], order[pivot_column] = order[pivot_column], order[k]
        for r in range(k + 1, 8):
            factor = rows[r, k] / rows[k, k]
            for c in range(k, 9):
                rows[r, c] -= factor * rows[k, c]
    solution = np.ones(9)
    for k in range(rank - 1, -1, -1):
        total = 0.0
        for c in range(k + 1, 9):
            total += rows[k, c] * solution[c]
        solution[k] = -total / rows[k, k]
    for c in range(9):
        f[order[c]] = solution[c]


@compiled
def _row(x, y, i, out):
    """Coefficients (9,) of y' F x = 0."""
    out[0], out[1], out[2] = y[0, i] * x[0, i], y[0, i] * x[1, i], y[0, i]
    out[3], out[4], out[5] = y[1, i] * x[0, i], y[1, i] * x[1, i], y[1, i]
    out[6], out[7], out[8] = x[0, i], x[1, i], 1.0


@compiled
def _improved(f, x, y, distance2, limit):
    """One round of reweighted least squares from f and its distances: a fundamental matrix (9,) of rank two."""
    normal, row = np.zeros((9, 9)), np.zeros(9)
    for i in range(x.shape[1]):
        robust = limit / (limit + distance2[i])
        weight = robust * robust / _constraint(f, x, y, i)[1]
        if not weight > 0.0:
            continue
        _row(x, y, i, row)
        for p in range(9):
            for q in range(p + 1):
                normal[p, q] += weight * row[p] * row[q]
    _, vectors = np.linalg.eigh(normal)  # which reads the lower half
    left, singular, right = np.linalg.svd(np.ascontiguousarray(vectors[:, 0]).reshape(3, 3))
    singular[2] = 0.0
    return ((left * singular) @ right).ravel()


@compiled
def _search(x, y, limit):
    """Squared distances (M,) of matches x, y (2, M), centred and of unit size, to the best fundamental matrix; inf where there is none."""
    count = x.shape[1]
    np.random.seed(_SEED)
    order, rows, sample = np.arange(count), np.zeros((8, 9)), np.zeros(9)
    distance2, best2 = np.empty(count), np.full(count, np.inf)
    drawn = lowest = limit * count
    wanted = _TRIALS
    trial = 0
    while trial < wanted:
        trial += 1
        for k in range(8):
            other = np.random.randint(k, count)
            order[k], order[other] = order[other], order[k]
            _row(x, y, order[k], rows[k])
        _null_vector(rows, sample)
        _distances(sample, x, y, distance2)
        cost, _ = _cost(distance2, limit)
        if not cost < drawn:
            continue
        drawn = cost
        f = sample.copy()
        for _ in range(_ROUNDS):
            f = _improved(f, x, y, distance2, limit)
            _distances(f, x, y, distance2)
            cost, inside = _cost(distance2, limit)
            if cost < lowest:
                lowest = cost
                best2[:] = distance2
                failing = 1.0 - (inside / count) ** 8
                wanted = min(_TRIALS, int(math.log(1.0 - _SURE) / math.log(failing)) + 1 if failing > 0.0 else 0)
    return best2
