"""How each stage is bound to the store: open its inputs, call the pure function, write what it returns, say what was seen.

The only module that knows both the store and the stages. Everything here streams: no stage holds the frames or the depth of a whole video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from pydantic import ValidationError

from vipe_dag import result_arrays, verdicts
from vipe_dag.calibration import METADATA_FOCAL_STD, Calibration, metadata_calibration
from vipe_dag.checks import Outcome
from vipe_dag.config import IntrinsicsConfig, PipelineConfig
from vipe_dag.errors import SourceError
from vipe_dag.results import AlignedBlock, BaPoses, DepthBlock
from vipe_dag.sequence import FrameSequence
from vipe_dag.store import VideoStore
from vipe_dag.store.writer import Generation
from vipe_dag.verdicts import DepthTally
from vipe_dag.video import Clip, SourceInfo, SourceRecord

if TYPE_CHECKING:
    from vipe_dag.stages.finds import Finds

Progress = Callable[[str, int, int | None], None]
"""progress(stage, done, total): steps done (mostly rows), of total, None when that is not known beforehand."""


@dataclass
class StageRun:
    """One stage of one video, about to be computed. `open_writer` starts the generation; the owner of `stack` commits it."""

    store: VideoStore
    record: SourceRecord
    stage: str
    config: PipelineConfig
    fingerprint: str
    run_id: str
    progress: Progress | None
    stack: ExitStack
    writer: Generation | None = field(default=None)

    def input(self, asset: str) -> xr.Dataset:
        """The current generation of an input, lazy."""
        return self.store.open(self.record.video_id, asset)

    def open_writer(self, **sizes: int | None) -> Generation:
        """A new generation of this stage; leaving `stack` commits it, an exception leaves nothing visible."""
        self.writer = self.stack.enter_context(
            self.store.begin(self.record.video_id, self.stage, self.fingerprint, run_id=self.run_id, sizes=sizes)
        )
        return self.writer

    @property
    def opened(self) -> Generation:
        """The generation that the stage started."""
        if self.writer is None:
            raise AssertionError(f"{self.stage} returned without writing")
        return self.writer

    def tick(self, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(self.stage, done, total)


METADATA_INTRINSICS = "metadata_intrinsics"
"""Attribute of frames: the camera that the source's own metadata suggests, in the layout of a sidecar; absent where they say nothing."""


def run_frames(run: StageRun) -> Outcome:
    """Decodes the source and writes its frames."""
    from vipe_dag.stages import frames
    from vipe_dag.video import open_source

    source = open_source(run.record.uri)
    if source.digest != run.record.digest:
        raise SourceError(f"{run.record.video_id}: {run.record.uri} is no longer the video that was registered; run it anew to register it")
    decoder = frames.decode(source, run.config.frames, run.record.clip)
    expected = _expected_frames(source.probe(), run.record.clip)
    writer, times, with_pixels = run.open_writer(frame=None), [], run.config.frames.profile == "jxl"
    for block in frames.ahead(decoder):
        writer.append({"frame": block.index, "time": block.time, **({"rgb": block.rgb, "luma": block.luma} if with_pixels else {})})
        times.append(block.time)
        run.tick(sum(map(len, times)), expected)
    time, info = np.concatenate(times), decoder.info
    facts = asdict(info)
    declared = facts.pop("declared_frame_count")
    writer.attrs({**facts, "profile": run.config.frames.profile, "declared_frame_count": declared})
    suggested = metadata_calibration(source)
    if suggested is not None:
        writer.attrs({METADATA_INTRINSICS: suggested.to_json()})
    seconds = float(time[-1] - time[0])
    numbers = {"clip_seconds": seconds, "fps": (len(time) - 1) / seconds if seconds > 0 else float("nan")}
    counts = {"frames": len(time), "width": info.width, "height": info.height}
    return Outcome(counts, numbers, info.flags, verdicts.of_frames(time, info.flags))


_latest: dict[tuple[str, str, str], Finds] = {}


def finds_of(run: StageRun) -> Finds:
    """What stages of this process found in the same frames, if they were the last to look: kept for one video, as its stages mostly run
    one after the other."""
    from vipe_dag.stages.finds import Finds

    frames = run.store.current(run.record.video_id, "frames")
    key = (run.store.root, run.record.video_id, "" if frames is None else frames.fingerprint)
    finds = _latest.get(key) or Finds()
    _latest.clear()
    _latest[key] = finds
    return finds


def run_keyframes(run: StageRun) -> Outcome:
    """Reads frames, writes keyframes."""
    from vipe_dag.stages import keyframes

    frames = finds_of(run).reading(run.store.frames(run.record.video_id))
    found = keyframes.select(frames, run.config.keyframes, progress=lambda row: run.tick(row, len(frames)))
    cells = found.flow_to_next.shape[1:3]
    _put(run, *result_arrays.keyframes_arrays(found), frame=len(frames), keyframe=len(found.keyframe), flow_y=cells[0], flow_x=cells[1])
    _label_frames(run, frames)
    numbers = {"motion_px_median": float(np.nanmedian(found.motion)), "sharpness_median": float(np.nanmedian(found.sharpness))}
    counts = {"frames": len(frames), "keyframes": len(found.keyframe), "shots": len(np.unique(found.segment))}
    return Outcome(counts, numbers, found.flags, verdicts.of_keyframes(found))


def run_intrinsics(run: StageRun) -> Outcome:
    """Reads frames and keyframes, writes intrinsics."""
    from vipe_dag.stages import intrinsics

    frames = run.store.frames(run.record.video_id)
    keyframes = result_arrays.keyframes_from(run.input("keyframes"))
    starts, given = len(run.config.intrinsics.starts), run.record.calibration
    informed = None if given is not None else with_metadata(run.config.intrinsics, run.input("frames"))
    config = informed or run.config.intrinsics
    found = intrinsics.calibrate(frames, keyframes, config, given, progress=lambda start: run.tick(start + 1, starts), finds=finds_of(run))
    if informed is not None:
        found = replace(found, source="metadata")
    _put(run, *result_arrays.intrinsics_arrays(found, run.input("frames")), candidate=len(found.candidate_focal))
    focal, std = float(found.params[0]), float(found.params_std[0])
    numbers = {"fx_px": focal, "fx_std_px": std, "fx_of_width": focal / frames.width}
    return Outcome({"candidates": len(found.candidate_focal)}, numbers, found.flags, verdicts.of_intrinsics(found))


def with_metadata(config: IntrinsicsConfig, frames: xr.Dataset) -> IntrinsicsConfig | None:
    """The configuration with the prior on the focal length that the source's metadata give, METADATA_FOCAL_STD wide.

    None where metadata say nothing, or name a focal length that the configuration does not take for one of a camera.
    """
    suggested = frames.attrs.get(METADATA_INTRINSICS)
    if suggested is None:
        return None
    camera = Calibration.from_json(suggested, str(frames.attrs["source_uri"]))
    focal = float(np.sqrt(camera.params[0] * camera.params[1])) / max(camera.width, camera.height)
    try:
        return config.model_validate({**config.model_dump(), "prior_focal": focal, "prior_std": min(config.prior_std, METADATA_FOCAL_STD)})
    except ValidationError:
        return None


def run_ba_poses(run: StageRun) -> Outcome:
    """Reads frames, keyframes and intrinsics, writes ba_poses."""
    from vipe_dag.stages import ba_poses

    frames = run.store.frames(run.record.video_id)
    keyframes = result_arrays.keyframes_from(run.input("keyframes"))
    intrinsics = result_arrays.intrinsics_from(run.input("intrinsics"))
    found = ba_poses.solve(
        frames,
        keyframes,
        intrinsics,
        run.config.ba_poses,
        progress=lambda _phase, share: run.tick(round(100 * share), 100),
        finds=finds_of(run),
    )
    grid = found.inverse_depth.shape
    arrays, attributes = result_arrays.ba_poses_arrays(found, run.input("frames"))
    _put(run, arrays, attributes, frame=len(frames), keyframe=grid[0], gy=grid[1], gx=grid[2], segment_id=len(found.parallax))
    _label_frames(run, frames)
    counts = {
        "frames": len(frames),
        "tracked": int(np.count_nonzero(found.tracked)),
        "keyframes": len(found.keyframe),
        "segments": len(found.parallax),
        "points": int(np.count_nonzero(found.valid)),
        "iterations": int(found.iterations),
    }
    numbers = {"residual_px": float(found.residual_px_median), "fx_px": float(found.params[0]), "path_length": path_length(found)}
    return Outcome(counts, numbers, found.flags, verdicts.of_ba_poses(found))


def run_dense_depth(run: StageRun) -> Outcome:
    """Reads frames and ba_poses, writes dense_depth block by block."""
    from vipe_dag.stages import dense_depth

    frames = run.store.frames(run.record.video_id)
    poses = result_arrays.ba_poses_from(run.input("ba_poses"))
    tally = _write_depth(run, dense_depth.triangulate(frames, poses, run.config.dense_depth), frames, ())
    flags = _depth_flags(poses, tally)
    return Outcome(_depth_counts(tally, len(frames)), _depth_numbers(tally), flags, verdicts.of_depth(run.stage, tally, _parallax(poses)))


def run_aligned_depth(run: StageRun) -> Outcome:
    """Reads frames, dense_depth and ba_poses, writes aligned_depth block by block."""
    from vipe_dag.stages import aligned_depth

    video_id = run.record.video_id
    frames, depth = run.store.frames(video_id), run.store.depth(video_id, "dense_depth")
    poses = result_arrays.ba_poses_from(run.input("ba_poses"))
    residuals: list[np.ndarray[Any, np.dtype[np.float32]]] = []

    def watched() -> Iterable[AlignedBlock]:
        for block in aligned_depth.align(frames, depth, poses, run.config.aligned_depth):
            residuals.append(block.alignment_residual)
            yield block

    tally = _write_depth(run, watched(), frames, ("scale", "shift", "alignment_residual"))
    residual = np.concatenate(residuals)
    known = residual[np.isfinite(residual)]
    numbers = {**_depth_numbers(tally), "alignment_residual": float(np.median(known)) if len(known) else float("nan")}
    outcome = verdicts.of_depth(run.stage, tally, _parallax(poses), residual)
    return Outcome(_depth_counts(tally, len(frames)), numbers, _depth_flags(poses, tally), outcome)


RUNNERS: Mapping[str, Callable[[StageRun], Outcome]] = {
    "frames": run_frames,
    "keyframes": run_keyframes,
    "intrinsics": run_intrinsics,
    "ba_poses": run_ba_poses,
    "dense_depth": run_dense_depth,
    "aligned_depth": run_aligned_depth,
}


def path_length(poses: BaPoses) -> float:
    """Length of the camera's path over tracked frames, summed within segments, in the unit of the translations."""
    position = poses.cam2world[:, :3, 3]
    joined = poses.tracked[1:] & poses.tracked[:-1] & (poses.segment[1:] == poses.segment[:-1])
    return float(np.linalg.norm(np.diff(position, axis=0), axis=1)[joined].sum())


def _put(run: StageRun, arrays: result_arrays.Arrays, attributes: result_arrays.Attributes, **sizes: int) -> None:
    writer = run.open_writer(**sizes)
    for name, array in arrays.items():
        writer.put(name, array)
    writer.attrs(attributes)


def _label_frames(run: StageRun, frames: FrameSequence) -> None:
    """Writes which frame of the source each row is, and its time, so that a reader can select by them."""
    run.opened.put("frame", frames.frame)
    run.opened.put("time", frames.time)


def _write_depth(
    run: StageRun, blocks: Iterable[DepthBlock | AlignedBlock], frames: FrameSequence, per_frame: tuple[str, ...]
) -> DepthTally:
    total = len(frames)
    tally, writer = DepthTally(), run.open_writer(frame=total)
    _label_frames(run, frames)
    for block in blocks:
        tally.add(block.z_depth, block.measured)
        writer.append({name: getattr(block, name) for name in ("z_depth", "confidence", "measured", *per_frame)})
        run.tick(block.start + len(block.z_depth), total)
    writer.attrs({"scale_source": "arbitrary"})
    return tally


def _expected_frames(info: SourceInfo, clip: Clip) -> int | None:
    """About how many frames a pass will take, for the progress bar; None when the container does not say."""
    if info.frame_count is None or not info.fps:
        return None
    end = info.frame_count / info.fps if clip.end is None else min(clip.end, info.frame_count / info.fps)
    return max(1, round((end - (clip.start or 0.0)) * info.fps / clip.stride))


def _parallax(poses: BaPoses) -> bool:
    return bool(poses.parallax.any())


def _depth_flags(poses: BaPoses, tally: DepthTally) -> tuple[str, ...]:
    unknown = ("depth_unknown",) if tally.known == 0 else ()
    return tuple(flag for flag in poses.flags if flag in ("no_parallax", "segments", "static")) + unknown


def _depth_counts(tally: DepthTally, frames: int) -> dict[str, int]:
    return {"frames": frames, "pixels": tally.pixels, "known": tally.known, "measured": tally.measured}


def _depth_numbers(tally: DepthTally) -> dict[str, float]:
    return {"depth_share": tally.share(), "measured_share": tally.measured_share()}
