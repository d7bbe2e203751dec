"""Dense depth without weights: flow to neighbouring rows of known pose, triangulated per pixel, completed along surfaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vipe_dag.config import DenseDepthConfig
from vipe_dag.results import BaPoses, DepthBlock
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.neighbours import Neighbours
from vipe_dag.stages.sparse_depth import SparseDepth, surface_through
from vipe_kernels.cameras import scale_params
from vipe_kernels.completion import redraw_edges, spread
from vipe_kernels.flow import dense_flow, forward_backward_error, pixel_grid, structure_tensor, texture_along
from vipe_kernels.parallel import single_threaded_opencv
from vipe_kernels.triangulate import triangulate as triangulate_pixels
from vipe_kernels.warp import pixel_rays, reproject

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

BLOCK = 32
CONFIDENCE_HALF = 0.02
"""Relative standard deviation of inverse depth that gets half of the full confidence."""

COMPLETED_STD = 0.1
"""Relative standard deviation assumed at best of a completed pixel: it limits the confidence of all of them."""

_LOOKAHEAD = 3  # rows whose flow is computed while an earlier row is triangulated
_TEXTURE_HALF = 4.0  # (grey levels per pixel)^2 at which a pixel has half of the full weight
_MIN_SUPPORT = 0.6  # sum of robust weights of the neighbours that makes a measurement
_FLOW_UNIT = 128.0  # flow waits as int16 in units of 1/128 pixel: 256 pixels at most
_PRIOR_WEIGHT = np.float32(0.02)  # of the sparse surface in the completion, where a perfect measurement has 1
_REACH = 30.0  # pixels over which a measurement corrects its surroundings
_EDGE = 4.0  # grey levels that bound a surface
_STEP = 0.15  # relative change of depth within a few pixels that is an edge


def triangulate(frames: FrameSequence, poses: BaPoses, config: DenseDepthConfig) -> Iterator[DepthBlock]:
    """z-depth of every row at working resolution, in the scale of `poses`, in blocks of at most BLOCK rows.

    NaN on rows that are not tracked and on segments without parallax. Elsewhere every pixel that has a ray gets a depth: `measured` where
    enough neighbours saw it with enough parallax and agree, else completed from its surroundings with little confidence.
    The result does not depend on the number of processors. Memory is a window of rows.
    """
    rows = _Rows(frames, poses, config)
    with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
        for start in range(0, len(frames), BLOCK):
            pending = [rows.depth(row, pool) for row in range(start, min(start + BLOCK, len(frames)))]
            parts = [future.result() for future in pending]
            z, confidence, measured = (np.stack(column) for column in zip(*parts, strict=True))
            yield DepthBlock(start, z, confidence, measured)


def confidence_of(relative_std: F32) -> U8:
    """Confidence 0..255 of a relative standard deviation of inverse depth: 255 / (1 + std / CONFIDENCE_HALF), rounded; 0 for NaN."""
    return np.nan_to_num(255.0 / (1.0 + relative_std / CONFIDENCE_HALF)).round().astype(np.uint8)


def relative_std_of(confidence: U8) -> F32:
    """The inverse of `confidence_of`, to its rounding; infinite for 0."""
    with np.errstate(divide="ignore"):
        return (CONFIDENCE_HALF * (255.0 / confidence.astype(np.float32) - 1.0)).astype(np.float32)


class _Camera:
    """The camera of the video at the resolution of the flow (h, w), and its rays at both resolutions."""

    def __init__(self, height: int, width: int, scale: float, poses: BaPoses) -> None:
        self.size = (max(round(width * scale), 1), max(round(height * scale), 1))
        self.scale = self.size[0] / width
        self.model = poses.camera_model
        scaled = scale_params(torch.tensor(poses.params), self.size[0] / width, self.size[1] / height)
        self.params: NDArray[np.float64] = scaled.numpy()
        self.rays = pixel_rays(self.size[1], self.size[0], self.params, self.model)
        self.has_ray = pixel_rays(height, width, poses.params, self.model).valid
        # Normalised position = pinhole part, exact, + what the lens bends, smooth: only the latter is looked up between pixels.
        self._bend = self.rays.xy - self._pinhole(pixel_grid(self.size[1], self.size[0]))

    def normalised(self, target: F32) -> F32:
        """(h, w, 2) normalised positions of pixel positions target (h, w, 2)."""
        xy = self._pinhole(target)
        if self.model != "pinhole":
            with single_threaded_opencv():
                xy += cv2.remap(self._bend, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return xy

    def _pinhole(self, pixel: F32) -> F32:
        fx, fy, cx, cy = (np.float32(value) for value in self.params[:4])
        return np.stack(((pixel[..., 0] - cx) / fx, (pixel[..., 1] - cy) / fy), -1)


@dataclass(frozen=True)
class _View:
    """A row at the resolution of the flow: gray (h, w), inverse depth expected from the sparse points (h, w), cam2world (4, 4)."""

    gray: U8
    expected: F32
    pose: NDArray[np.float64]


@dataclass(frozen=True)
class _Sight:
    """A row as a neighbour sees it: flow (h, w, 2) int16 in units of 1/128 pixel, weight (h, w) uint8, pose of the row in it (3, 4)."""

    flow: NDArray[np.int16]
    weight: U8
    relative: NDArray[np.float64]


class _Rows:
    """Depth of single rows, asked for in ascending order. Holds the views and flows of a window of rows."""

    def __init__(self, frames: FrameSequence, poses: BaPoses, config: DenseDepthConfig) -> None:
        self._frames, self._poses, self._config = frames, poses, config
        self._camera = _Camera(frames.height, frames.width, config.flow_scale, poses)
        self._sparse = SparseDepth(poses, frames.height, frames.width)
        wanted = tuple(share * frames.width for share in config.parallax)
        self._neighbours = Neighbours(poses, self._sparse, frames.height, frames.width, wanted, config.max_gap)
        self._surface = lru_cache(maxsize=2 * config.max_gap + 2 * _LOOKAHEAD)(self._compute_surface)
        self._view = lru_cache(maxsize=2 * config.max_gap + 2 * _LOOKAHEAD)(self._compute_view)
        self._sights: dict[int, list[Future[_Sight]]] = {}
        self._submitted = 0
        known = poses.inverse_depth[poses.valid]
        self._typical = float(np.median(known)) if len(known) else np.nan

    def depth(self, row: int, pool: ThreadPoolExecutor) -> Future[tuple[F32, U8, Mask]]:
        """(H, W) z-depth, confidence and measured of a row. Frames are read by the calling thread alone."""
        while self._submitted < min(row + _LOOKAHEAD, len(self._frames)):
            self._submit(self._submitted, pool)
            self._submitted += 1
        sights = [future.result() for future in self._sights.pop(row, [])]
        if not self._usable(row):
            shape = (self._frames.height, self._frames.width)
            unknown: Future[tuple[F32, U8, Mask]] = Future()
            unknown.set_result((np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8), np.zeros(shape, np.bool_)))
            return unknown
        return pool.submit(self._completed, self._frames.rgb(row), self._surface(row), *self._measured(row, sights))

    def _usable(self, row: int) -> bool:
        return bool(self._poses.tracked[row] and self._poses.parallax[self._poses.segment[row]])

    def _submit(self, row: int, pool: ThreadPoolExecutor) -> None:
        """Start the flows between a row and its neighbours. A pair serves the later row too, which then needs fewer of its own."""
        if not self._usable(row):
            return
        mine = self._sights.setdefault(row, [])
        missing = max(len(self._config.parallax) - len(mine), 0)
        for other in self._neighbours.before(row)[:missing]:
            mine.append(self._look(row, other, pool)[0])
        for other in self._neighbours.after(row):
            sight, reverse = self._look(row, other, pool)
            mine.append(sight)
            theirs = self._sights.setdefault(other, [])
            if len(theirs) < 2 * len(self._config.parallax):
                theirs.append(reverse)

    def _look(self, row: int, other: int, pool: ThreadPoolExecutor) -> tuple[Future[_Sight], Future[_Sight]]:
        """The row as seen by the other, and the other as seen by the row: two futures of one task, so that each can be dropped alone."""
        first, second = self._view(row), self._view(other)
        sight: Future[_Sight] = Future()
        reverse: Future[_Sight] = Future()

        def task() -> None:
            try:
                results = self._both_ways(first, second)
            except BaseException as error:
                sight.set_exception(error)
                reverse.set_exception(error)
            else:
                sight.set_result(results[0])
                reverse.set_result(results[1])

        pool.submit(task)
        return sight, reverse

    def _both_ways(self, first: _View, second: _View) -> tuple[_Sight, _Sight]:
        there = (np.linalg.inv(second.pose) @ first.pose).astype(np.float64, copy=False)
        back = np.linalg.inv(there).astype(np.float64, copy=False)
        forward = dense_flow(first.gray, second.gray, self._predicted(first, there), self._config.flow_preset)
        backward = dense_flow(second.gray, first.gray, self._predicted(second, back), self._config.flow_preset)
        return self._sight(forward, backward, there), self._sight(backward, forward, back)

    def _predicted(self, view: _View, relative: NDArray[np.float64]) -> F32:
        """(h, w, 2) flow that the expected depth and the poses induce; where a point would go behind the camera, none."""
        target, _ = reproject(self._camera.rays.xy, view.expected, relative, self._camera.params, self._camera.model)
        flow = target - pixel_grid(*view.gray.shape)
        limit = np.float32(max(view.gray.shape))
        return np.clip(np.nan_to_num(flow), -limit, limit).astype(np.float32, copy=False)

    def _sight(self, flow: F32, reverse: F32, relative: NDArray[np.float64]) -> _Sight:
        error = forward_backward_error(flow, reverse)
        weight = np.exp(-((error / (self._config.consistency_px * self._camera.scale)) ** 2))
        packed = np.clip(np.round(flow * _FLOW_UNIT), -32768, 32767).astype(np.int16)
        return _Sight(packed, (255 * weight).round().astype(np.uint8), relative[:3])

    def _compute_view(self, row: int) -> _View:
        with single_threaded_opencv():
            gray = cv2.resize(self._frames.luma(row), self._camera.size, interpolation=cv2.INTER_AREA)
            expected = cv2.resize(self._surface(row), self._camera.size, interpolation=cv2.INTER_LINEAR)
        return _View(gray, expected, self._poses.cam2world[row])

    def _compute_surface(self, row: int) -> F32:
        surface = surface_through(*self._sparse.seen_from(row), self._frames.rgb(row))
        return np.full((1, 1), self._typical, np.float32) if surface is None else surface

    def _measured(self, row: int, sights: list[_Sight]) -> tuple[F32, F32]:
        """Inverse depth and its relative standard deviation, both NaN where not measured, at the resolution of the flow."""
        width, height = self._camera.size
        if not sights:
            return np.full((height, width), np.nan, np.float32), np.full((height, width), np.nan, np.float32)
        rays, gray = self._camera.rays, self._view(row).gray
        grid = pixel_grid(height, width)
        seen = np.stack([self._camera.normalised(grid + sight.flow.astype(np.float32) / _FLOW_UNIT) for sight in sights])
        structure = structure_tensor(gray)
        weight = np.stack([self._weight(sight, structure) for sight in sights])
        relative = torch.from_numpy(np.stack([sight.relative for sight in sights]))
        found = triangulate_pixels(
            torch.from_numpy(rays.xy), torch.from_numpy(seen), relative, torch.from_numpy(weight), torch.from_numpy(rays.focal_px)
        )
        inverse_depth = found.inverse_depth.numpy()
        relative_std = found.std.numpy() / inverse_depth
        good = (relative_std < self._config.max_relative_std) & (found.support.numpy() > _MIN_SUPPORT)
        good &= found.residual_px.numpy() < self._config.max_residual_px * self._camera.scale
        return np.where(good, inverse_depth, np.nan).astype(np.float32), np.where(good, relative_std, np.nan).astype(np.float32)

    def _weight(self, sight: _Sight, structure: F32) -> F32:
        """(h, w) float32 in 0..1: consistency of the flow, and texture along the epipolar line."""
        rays = self._camera.rays
        other = -sight.relative[:, :3].T @ sight.relative[:, 3]  # centre of the other camera in this one: epipolar lines pass through it
        toward = other[:2].astype(np.float32) - rays.xy * np.float32(other[2])
        clear = texture_along(structure, toward)
        weight = rays.valid * (sight.weight.astype(np.float32) / 255) * (clear / (clear + _TEXTURE_HALF))
        return weight.astype(np.float32, copy=False)

    def _completed(self, rgb: U8, surface: F32, inverse_depth: F32, relative_std: F32) -> tuple[F32, U8, Mask]:
        """z-depth, confidence and measured at working resolution: measurements as they are, the rest spread from them
        and the sparse points."""
        size = (self._frames.width, self._frames.height)
        with single_threaded_opencv():
            if self._camera.size != size:
                inverse_depth, relative_std = _enlarged(inverse_depth, size), _enlarged(relative_std, size)
            prior = np.log(cv2.resize(surface, size, interpolation=cv2.INTER_LINEAR))
        measured = np.isfinite(inverse_depth)
        # What is spread is the ratio of measurement to prior: it is smooth where the prior has the slant of the surface.
        correction = np.where(measured, np.log(np.where(measured, inverse_depth, 1)) - prior, 0).astype(np.float32)
        weight = np.where(measured, 1 / (1 + (relative_std / CONFIDENCE_HALF) ** 2), 0).astype(np.float32)
        filled, support = spread(correction, weight, rgb, _REACH, _EDGE, base=0.0, base_weight=float(_PRIOR_WEIGHT))
        log_inverse = prior + np.where(measured, correction, filled)
        log_inverse, band = redraw_edges(log_inverse.astype(np.float32), weight + _PRIOR_WEIGHT, rgb, _STEP)
        measured &= ~band
        std = np.where(measured, relative_std, COMPLETED_STD / np.sqrt(np.clip(support + _PRIOR_WEIGHT, 1e-4, 1)))
        known = self._camera.has_ray & np.isfinite(log_inverse)
        z = np.where(known, np.exp(-log_inverse), np.nan).astype(np.float32)
        return z, np.where(known, confidence_of(std), 0).astype(np.uint8), measured & known


def _enlarged(image: F32, size: tuple[int, int]) -> F32:
    """image (h, w) at size (W, H), bilinearly among its finite pixels; NaN where these weigh less than half. Call single-threaded."""
    finite = np.isfinite(image)
    share = cv2.resize(finite.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    total = cv2.resize(np.where(finite, image, 0).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.where(share > 0.5, total / np.maximum(share, 0.5), np.nan).astype(np.float32)
