"""What a viewer or a report needs of one stored video: small arrays at once, pixels and depth when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.errors import StoreError
from vipe_dag.store import Pointer, VideoStore
from vipe_dag.store.rows import RowReader
from vipe_dag.viewer.cloud import Cloud, CloudFilter, frame_cloud, sparse_points

CACHE_BYTES = 96 * 2**20
"""Bound of decoded frames, and again of decoded depth, that one viewed video keeps."""
AGREEMENT = 0.2
"""Median relative difference of dense depth and the sparse points of its poses, beyond which they are not of one run."""
_THREADS = 4
"""Pixels, depth, confidence and what was measured come at once: from a bucket that is one wait instead of four."""

ReadRow = Callable[[int], NDArray[Any]]
Depth = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]
"""z-depth (NaN = unknown), confidence 0..255, measured, each (H, W)."""


class ViewedVideo:
    """One generation of a video's poses with its frames and depth, in one world.

    frame (T,) int64 source index; time (T,) seconds; cam2world (T, 4, 4) float64; tracked (T,) bool; segment (T,) int32; keyframe (K,)
    int64 rows; camera at working resolution; depth_asset: `aligned_depth`, `dense_depth`, or None where there is no depth.
    Pointers are resolved once. Rows of pixels and depth are read singly when asked for, and at most CACHE_BYTES of each are kept.
    """

    def __init__(self, store: VideoStore, video_id: str, poses: str | None = None) -> None:
        """poses: fingerprint of a generation of ba_poses, the current one when None. Raises StoreError when poses or frames are missing."""
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="viewed")
        group: Any = store.group(video_id, "ba_poses", poses)
        opened = store.opened(video_id, "frames")
        frames: Any = opened.group
        wanted = [frames["frame"], frames["time"], *(group[name] for name in ("cam2world", "tracked", "segment", "keyframe", "params"))]
        frame, time, cam2world, tracked, segment, keyframe, params = self._pool.map(lambda array: np.asarray(array[:]), wanted)
        self.video_id = video_id
        self.frame: NDArray[np.int64] = frame.astype(np.int64)
        self.time: NDArray[np.float64] = time.astype(np.float64)
        self.cam2world: NDArray[np.float64] = cam2world.astype(np.float64)
        self.tracked: NDArray[np.bool_] = tracked.astype(bool)
        self.segment: NDArray[np.int32] = segment.astype(np.int32)
        self.keyframe: NDArray[np.int64] = keyframe.astype(np.int64)
        if len(self.cam2world) != len(self.frame):
            raise StoreError(
                f"{video_id}: ba_poses has {len(self.cam2world)} cameras, the current frames are {len(self.frame)}; run the video again"
            )
        self.camera = Calibration(str(group.attrs["camera_model"]), params, int(frames.attrs["width"]), int(frames.attrs["height"]))
        self._group = group
        self._rgb = _kept(opened.rows("rgb"), CACHE_BYTES) if "rgb" in frames else store.frames(video_id).rgb
        self.depth_asset, self._depth = self._find_depth(store, poses)

    def __len__(self) -> int:
        return len(self.frame)

    def rgb(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) colours, not to be written to."""
        return self._rgb(row)

    def depth(self, row: int) -> Depth | None:
        """The depth of a frame, not to be written to; None where the video has no depth."""
        return None if self._depth is None else self._depth.row(row, self._pool)

    def pictures(self, row: int) -> tuple[NDArray[np.uint8], Depth | None]:
        """`rgb` and `depth` of a frame, read at once."""
        rgb = self._pool.submit(self._rgb, row)
        depth = self.depth(row)
        return rgb.result(), depth

    def cloud(self, row: int, choice: CloudFilter) -> Cloud:
        """The points of one frame; none without depth or where the frame was not tracked."""
        rgb, depth = self.pictures(row) if self.tracked[row] else (None, None)
        if rgb is None or depth is None:
            return Cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8))
        return frame_cloud(*depth, rgb, self.camera, self.cam2world[row], choice)

    def sparse(self, segment: int | None = None) -> NDArray[np.float32]:
        """(n, 3) points that bundle adjustment estimated with the keyframes of one segment, of all when None."""
        uv, inverse, valid = (np.asarray(self._group[name][:]) for name in ("point_uv", "inverse_depth", "valid"))
        parts = [
            sparse_points(uv[i], inverse[i], valid[i], self.camera, self.cam2world[row])
            for i, row in enumerate(self.keyframe)
            if self.tracked[row] and (segment is None or self.segment[row] == segment)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 3), np.float32)

    def extent(self) -> float:
        """A length of the scene in its arbitrary unit: the median depth of the sparse points, at least a third of the path's size."""
        inverse, valid = np.asarray(self._group["inverse_depth"][:]), np.asarray(self._group["valid"][:])
        known = inverse[valid & (inverse > 0)]
        depth = float(1 / np.median(known)) if len(known) else 0.0
        positions = self.cam2world[self.tracked, :3, 3]
        path = float(np.ptp(positions, axis=0).max()) if len(positions) else 0.0
        return max(depth, path / 3) or 1.0

    def _find_depth(self, store: VideoStore, poses: str | None) -> tuple[str | None, _DepthRows | None]:
        for asset in ("aligned_depth", "dense_depth"):
            if poses is None:
                candidates = [pointer for pointer in [store.current(self.video_id, asset)] if pointer is not None]
            else:
                candidates = store.generations(self.video_id, asset)
            found = [_depth_rows(store, self.video_id, pointer) for pointer in candidates]
            fitting = [depth for depth in found if depth.length == len(self)]
            if poses is not None:
                judged = [(self._disagreement(depth), i) for i, depth in enumerate(fitting)]
                fitting = [fitting[i] for value, i in sorted(judged) if value < AGREEMENT]
            if fitting:
                return asset, fitting[0]
        return None, None

    def _disagreement(self, depth: _DepthRows) -> float:
        """Median relative difference of dense depth and the sparse points of three keyframes: tells which depth these poses led to."""
        differences = []
        for i in np.unique(np.linspace(0, len(self.keyframe) - 1, 3).astype(int)) if len(self.keyframe) else ():
            z = depth.row(int(self.keyframe[i]), self._pool)[0]
            uv, inverse = np.asarray(self._group["point_uv"][i]), np.asarray(self._group["inverse_depth"][i])
            keep = np.asarray(self._group["valid"][i]) & (inverse > 0)
            column, row = (np.round(uv[keep] * [z.shape[1] / self.camera.width, z.shape[0] / self.camera.height]).astype(int)).T
            dense = z[np.clip(row, 0, z.shape[0] - 1), np.clip(column, 0, z.shape[1] - 1)] * inverse[keep]
            differences.append(np.abs(dense[np.isfinite(dense)] - 1))
        pooled = np.concatenate(differences) if differences else np.empty(0)
        return float(np.median(pooled)) if len(pooled) else float("inf")


@dataclass(frozen=True)
class _DepthRows:
    """The rows of z-depth, confidence and what was measured."""

    length: int
    arrays: tuple[ReadRow, ...]

    def row(self, row: int, pool: ThreadPoolExecutor) -> Depth:
        z_depth, confidence, measured = pool.map(lambda read: read(row), self.arrays)
        return z_depth.astype(np.float32), confidence, measured


def viewable(store: VideoStore, video_id: str | None) -> str:
    """The video itself, or the first with poses. Raises StoreError when there is none."""
    if video_id is not None:
        return video_id
    videos = store.names()
    for name in videos:
        if store.current(name, "ba_poses") is not None:
            return name
    have = f"none of its {len(videos)} videos has ba_poses" if videos else "the store is empty"
    raise StoreError(f"{store.root}: nothing to view, {have}; make some with `vipe-dag run SOURCE --store {store.root}`")


def generation_names(store: VideoStore, video_id: str) -> dict[str, str]:
    """Label to fingerprint of every generation of ba_poses but the current one, newest first."""
    current = store.current(video_id, "ba_poses")
    others: dict[str, Pointer] = {}
    for pointer in store.generations(video_id, "ba_poses"):
        if current is None or pointer.fingerprint != current.fingerprint:
            others[pointer.fingerprint] = pointer
    newest = sorted(others.values(), key=lambda pointer: pointer.written_at, reverse=True)
    return {f"{p.fingerprint[:8]}, {p.written_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC": p.fingerprint for p in newest}


def _depth_rows(store: VideoStore, video_id: str, pointer: Pointer) -> _DepthRows:
    opened = store.opened(video_id, pointer.asset, pointer.fingerprint)
    readers = [opened.rows(name) for name in ("z_depth", "confidence", "measured")]
    return _DepthRows(len(readers[0]), tuple(_kept(reader, CACHE_BYTES // len(readers)) for reader in readers))


def _kept(rows: RowReader, room: int) -> ReadRow:
    """Those rows, of which the latest are kept as far as they fit into `room` bytes."""
    return lru_cache(max(1, room // rows.row_bytes))(rows.row)
