"""What an import leaves in a store: generations of one video that say where they come from. What nobody said stays unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.config import FramesConfig
from vipe_dag.result_arrays import ba_poses_arrays
from vipe_dag.results import BaPoses
from vipe_dag.stages import frames as frames_stage
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceRecord, VideoSource, make_video_id

_PIECE = 1 << 22


@dataclass(frozen=True)
class Sparse:
    """Points of keyframes as BaPoses has them, in a grid of one line.

    keyframe (K,) int64 rows; point_uv (K, 1, P, 2), inverse_depth and residual_px (K, 1, P) float32; valid (K, 1, P) bool.
    """

    keyframe: NDArray[np.int64]
    point_uv: NDArray[np.float32]
    inverse_depth: NDArray[np.float32]
    valid: NDArray[np.bool_]
    residual_px: NDArray[np.float32]

    @classmethod
    def empty(cls, keyframe: NDArray[np.int64], points: int) -> Sparse:
        """Room for that many points in each keyframe, none of them valid."""
        shape = (len(keyframe), 1, points)
        return cls(
            keyframe,
            np.zeros((*shape, 2), np.float32),
            np.zeros(shape, np.float32),
            np.zeros(shape, bool),
            np.full(shape, np.nan, np.float32),
        )


@dataclass(frozen=True)
class Instances:
    """Objects in pictures: the numbers (H, W) uint8 that a frame shows, 0 the background, and what they are called, by number."""

    of: Callable[[int], NDArray[np.uint8]]
    names: dict[str, str]


NO_POINTS = Sparse.empty(np.zeros(0, np.int64), 1)


@dataclass(frozen=True)
class Target:
    """One video of a store, and the generations of it that an import writes under a fingerprint. program: whose results they are."""

    store: VideoStore
    source: VideoSource
    program: str
    fingerprint: str
    facts: dict[str, Any]

    @property
    def video_id(self) -> str:
        return make_video_id(self.source)

    @property
    def attributes(self) -> dict[str, Any]:
        """What every generation says of its origin."""
        return {"imported": {"format": self.program, **self.facts}}

    def has(self, assets: Iterable[str]) -> bool:
        """Whether the store has them all, from an earlier import of the same files; they are then current."""
        return all(self.store.point(self.video_id, asset, self.fingerprint) for asset in assets)

    def write_frames(self, long_side: int, instances: Instances | None = None) -> int:
        """The pictures, no longer than that, and the source's record; returns how many frames there are."""
        decoder = frames_stage.decode(self.source, FramesConfig(long_side=long_side))
        count = 0
        with self.store.begin(self.video_id, "frames", self.fingerprint) as w:
            for block in decoder:
                objects = {"instance": np.stack([instances.of(row) for row in block.index.tolist()])} if instances else {}
                w.append({"rgb": block.rgb, "luma": block.luma, "frame": block.index, "time": block.time, **objects})
                count += len(block.index)
            facts = decoder.info
            names = ("width", "height", "source_width", "source_height", "rotation", "source_uri", "source_digest", "codec", "container")
            w.attrs({name: getattr(facts, name) for name in (*names, "fps_nominal", "truncated")} | {"flags": list(facts.flags)})
            w.attrs(self.attributes | ({"instances": instances.names} if instances else {}))
        self.store.register(SourceRecord.of(self.source, video_id=self.video_id))
        return count

    def write_poses(self, poses: BaPoses) -> None:
        arrays, attributes = ba_poses_arrays(poses, self.store.open(self.video_id, "frames"))
        with self.store.begin(self.video_id, "ba_poses", self.fingerprint) as w:
            for name, values in arrays.items():
                w.put(name, values)
            w.attrs(attributes | {"scale_source": self.program} | self.attributes)


def fingerprint_of(program: str, source: VideoSource, files: Iterable[Path]) -> str:
    """16 hex digits of the pictures and the contents of the files that exist."""
    whole = blake2b(f"import {program} {source.digest}".encode(), digest_size=8)
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    whole.update(piece)
    return whole.hexdigest()


def poses_of(
    rows: NDArray[np.int64],
    cam2world: NDArray[np.float64],
    camera: Calibration,
    count: int,
    *,
    segment: NDArray[np.int32] | None = None,
    sparse: Sparse = NO_POINTS,
    residual_px: NDArray[np.float64] | None = None,
) -> BaPoses:
    """Poses of all `count` frames from those of `rows` (ascending): one that is not there repeats its neighbour's and is not tracked.

    segment, residual_px: of the rows; camera: at working resolution.
    """
    nearest = np.searchsorted(rows, np.arange(count), side="right").clip(1) - 1
    unknown = np.full(count, np.nan)
    frame_residual = unknown.astype(np.float32)
    if residual_px is not None:
        frame_residual[rows] = residual_px
    segments = np.zeros(len(rows), np.int32) if segment is None else segment
    known = sparse.residual_px[sparse.valid]
    return BaPoses(
        cam2world=cam2world[nearest],
        tracked=np.isin(np.arange(count), rows),
        segment=segments[nearest],
        position_std=unknown,
        frame_residual_px=frame_residual,
        inlier_share=unknown.astype(np.float32),
        keyframe=sparse.keyframe,
        point_uv=sparse.point_uv,
        inverse_depth=sparse.inverse_depth,
        valid=sparse.valid,
        residual_px=sparse.residual_px,
        camera_model=camera.camera_model,
        params=camera.params,
        params_std=np.full(9, np.nan),
        parallax=np.ones(int(segments.max()) + 1, bool),
        residual_px_median=float(np.median(known)) if len(known) else float("nan"),
        iterations=0,
        flags=(),
    )
