"""Aligned depth: every row in the scale of the poses, and one row agreeing with the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.config import AlignedDepthConfig
from vipe_dag.results import AlignedBlock, BaPoses
from vipe_dag.sequence import DepthSequence, FrameSequence
from vipe_dag.stages.dense_depth import BLOCK, CONFIDENCE_HALF, confidence_of, relative_std_of
from vipe_dag.stages.sparse_depth import SparseDepth
from vipe_kernels.robust_fit import AffineFit, agreeing_mean, fit_affine
from vipe_kernels.warp import forward_splat, pixel_rays, reproject

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

_UNALIGNED_STD = 1.0  # relative standard deviation of a pixel whose confidence is 0
_GUESS_SLACK = 4.0  # completed pixels are averaged with earlier completed ones up to this many times the agreement
_SETTLED = 1.0  # age from which a past measurement holds against a fresh guess
_FADE = 0.9  # age that a past measurement keeps per row without a fresh one


@dataclass(frozen=True)
class _Row:
    """One row as read: inverse depth (H, W) in its own scale, relative std, measured, and the fit to the sparse points."""

    row: int
    inverse_depth: F32
    std: F32
    measured: Mask
    fit: AffineFit | None


@dataclass(frozen=True)
class _Fused:
    """What is known about a row from it and all before: log inverse depth (H, W) (NaN = unknown), age in rows of full confidence,
    relative std, was it ever measured (share 0..1), grey levels."""

    log: F32
    age: F32
    std: F32
    measured: F32
    gray: F32


def align(frames: FrameSequence, depth: DepthSequence, poses: BaPoses, config: AlignedDepthConfig) -> Iterator[AlignedBlock]:
    """Depth of every row in the scale of `poses`, stable over time, in blocks of at most BLOCK rows.

    Per row, inverse depth is mapped by scale * x + shift, fitted robustly to the sparse inverse depths of the nearest
    keyframes and averaged with the neighbouring rows where they agree. Then the last row's result is moved into this one through the
    poses (z-buffer) and averaged with it where the two agree; where not, a fresh measurement wins, and a fresh guess yields to a past
    measurement of the same colour. NaN, scale 1, shift 0 and residual NaN on rows without tracking or parallax; a row without enough
    sparse points of its own and no aligned neighbour keeps scale 1. Memory is a window of rows.
    """
    fusion = _Fusion(frames, poses, config)
    parts = []
    start = 0
    for row, scale, shift in _aligned_rows(frames, depth, poses, config):
        z, confidence, measured = fusion.step(row, scale, shift)
        parts.append((z, confidence, measured, scale, shift, row.fit.residual if row.fit else np.nan))
        if len(parts) == BLOCK or row.row == len(frames) - 1:
            zs, confidences, masks, scales, shifts, residuals = zip(*parts, strict=True)
            yield AlignedBlock(
                start,
                np.stack(zs),
                np.stack(confidences),
                np.stack(masks),
                np.array(scales),
                np.array(shifts),
                np.array(residuals, np.float32),
            )
            start, parts = row.row + 1, []


def _aligned_rows(
    frames: FrameSequence, depth: DepthSequence, poses: BaPoses, config: AlignedDepthConfig
) -> Iterator[tuple[_Row, float, float]]:
    """Rows in order with their smoothed scale and shift; reads `smoothing_rows` ahead and remembers as many fits behind."""
    sparse = SparseDepth(poses, frames.height, frames.width)
    with_shift = config.model == "scale_shift"
    radius = config.smoothing_rows
    ahead: deque[_Row] = deque()
    fits: deque[tuple[int, AffineFit]] = deque()
    read = 0
    for row in range(len(frames)):
        while read < len(frames) and read <= row + radius:
            ahead.append(_read(read, depth, poses, sparse, with_shift))
            if (fit := ahead[-1].fit) is not None:
                fits.append((read, fit))
            read += 1
        while fits and fits[0][0] < row - radius:
            fits.popleft()
        current = ahead.popleft()
        near = [(r, fit) for r, fit in fits if poses.segment[r] == poses.segment[row]]
        if not _usable(poses, row) or not near:
            yield current, 1.0, 0.0
            continue
        own = min(range(len(near)), key=lambda k: abs(near[k][0] - row))
        scale, shift = agreeing_mean([fit for _, fit in near], own, with_shift)
        yield current, scale, shift


def _read(row: int, depth: DepthSequence, poses: BaPoses, sparse: SparseDepth, with_shift: bool) -> _Row:
    z, confidence, measured = depth.depth(row)
    if not _usable(poses, row):
        return _Row(row, np.full(z.shape, np.nan, np.float32), np.full(z.shape, np.nan, np.float32), np.zeros(z.shape, np.bool_), None)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse_depth = np.where(z > 0, 1 / z, np.nan).astype(np.float32)
    uv, target = sparse.seen_from(row)
    column = np.clip(np.rint(uv[:, 0]).astype(np.int64), 0, z.shape[1] - 1)
    line = np.clip(np.rint(uv[:, 1]).astype(np.int64), 0, z.shape[0] - 1)
    fit = fit_affine(inverse_depth[line, column].astype(np.float64), target.astype(np.float64), with_shift)
    return _Row(row, inverse_depth, np.minimum(relative_std_of(confidence), _UNALIGNED_STD), measured, fit)


def _usable(poses: BaPoses, row: int) -> bool:
    return bool(poses.tracked[row] and poses.parallax[poses.segment[row]])


class _Fusion:
    """The running estimate, moved from row to row."""

    def __init__(self, frames: FrameSequence, poses: BaPoses, config: AlignedDepthConfig) -> None:
        self._frames, self._poses, self._config = frames, poses, config
        self._rays = pixel_rays(frames.height, frames.width, poses.params, poses.camera_model)
        self._sparse = SparseDepth(poses, frames.height, frames.width)
        self._keyframes = frozenset(poses.keyframe.tolist())
        self._last: tuple[int, _Fused] | None = None

    def step(self, row: _Row, scale: float, shift: float) -> tuple[F32, NDArray[np.uint8], Mask]:
        """(H, W) z-depth, confidence, measured of the next row."""
        if not _usable(self._poses, row.row):
            self._last = None
            return row.inverse_depth, np.zeros(row.measured.shape, np.uint8), row.measured
        fused = self._fresh(row, scale, shift)
        if self._last is not None and self._config.max_age > 0 and self._poses.segment[self._last[0]] == self._poses.segment[row.row]:
            fused = self._merge(self._moved(*self._last, row.row), fused, row.measured)
        self._last = (row.row, fused)
        known = np.isfinite(fused.log)
        confidence = np.where(known, confidence_of(fused.std), 0).astype(np.uint8)
        return np.exp(-fused.log), confidence, known & (fused.measured > 0.5)

    def _fresh(self, row: _Row, scale: float, shift: float) -> _Fused:
        aligned = scale * row.inverse_depth + np.float32(shift)
        with np.errstate(invalid="ignore", divide="ignore"):
            log = np.where(aligned > 0, np.log(aligned), np.nan).astype(np.float32)
        gray = self._frames.luma(row.row).astype(np.float32)
        weight = np.where(np.isfinite(log), 1 / (1 + (row.std / CONFIDENCE_HALF) ** 2), 0).astype(np.float32)
        return _Fused(log, weight, row.std, row.measured.astype(np.float32), gray)

    def _moved(self, row: int, fused: _Fused, to: int) -> _Fused:
        """What is known at `row`, as seen from row `to`."""
        poses = self._poses
        relative = np.linalg.inv(poses.cam2world[to]) @ poses.cam2world[row]
        inverse_depth = np.exp(fused.log)
        uv, there = reproject(self._rays.xy, inverse_depth, relative, poses.params, poses.camera_model)
        payload = np.stack((fused.age, fused.std, fused.measured, fused.gray), -1)
        there, payload, _ = forward_splat(uv, there, payload, *fused.log.shape)
        return _Fused(np.log(there), *(payload[..., channel] for channel in range(4)))

    def _merge(self, past: _Fused, fresh: _Fused, measured: Mask) -> _Fused:
        """The running log-mean where past and fresh agree; else a fresh measurement, a past measurement, a fresh guess, in this order."""
        config = self._config
        with np.errstate(invalid="ignore"):
            gap = np.abs(past.log - fresh.log)
            same_colour = np.abs(past.gray - fresh.gray) < config.colour_agreement
            once_measured = past.measured > 0.5
            guesses = ~measured & ~once_measured & (gap < _GUESS_SLACK * config.agreement)
            agree = same_colour & ((gap < config.agreement) | guesses)
        keep = same_colour & once_measured & ~measured & ~agree & (past.age > _SETTLED)
        age = np.minimum(past.age, config.max_age)
        share = np.where(agree, age / np.maximum(age + fresh.age, 1e-6), keep).astype(np.float32)

        def mixed(before: F32, now: F32) -> F32:
            mean = now + share * (np.where(agree, before, now) - now)
            return np.where(keep, before, np.where(agree, mean, now)).astype(np.float32)

        return _Fused(
            log=mixed(past.log, fresh.log),
            age=np.where(agree, age + fresh.age, np.where(keep, _FADE * age, fresh.age)).astype(np.float32),
            std=mixed(past.std, fresh.std),
            measured=np.where(agree, np.maximum(past.measured, fresh.measured), np.where(keep, past.measured, fresh.measured)),
            gray=fresh.gray,
        )
