"""A rendered clip as a source on disk and, at half its size, as exact results in a store: what exports are tested on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from vipe_dag import synthetic
from vipe_dag.config import FramesConfig
from vipe_dag.result_arrays import ba_poses_arrays
from vipe_dag.results import BaPoses
from vipe_dag.stages import frames as frames_stage
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import SyntheticClip
from vipe_dag.video import SourceRecord, VideoSource, open_source

VIDEO = "room"
FINGERPRINT = "0123456789abcdef"
GRID = 8
"""Pixels between the grid points of a keyframe, at working resolution."""


@dataclass(frozen=True)
class Result:
    """clip: as the source shows it; truth: the same at working resolution; keyframe: rows."""

    store: VideoStore
    source: VideoSource
    clip: SyntheticClip
    keyframe: np.ndarray

    @cached_property
    def truth(self) -> SyntheticClip:
        camera = self.clip.camera
        half = camera.scaled(camera.width // 2, camera.height // 2)
        return SyntheticClip(self.clip.name, self.clip.worlds, self.clip.shot, self.clip.cam2world, half, self.clip.fps)

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of the grid points."""
        camera = self.truth.camera
        return np.arange(GRID // 2, camera.width, GRID), np.arange(GRID // 2, camera.height, GRID)


def make_result(
    folder: Path,
    count: int = 6,
    scene: str = "room",
    as_pictures: bool = False,
    turned: bool = False,
    tracked: np.ndarray | None = None,
    segment: np.ndarray | None = None,
) -> Result:
    """Render `count` frames and commit frames, ba_poses (keyframes: every other frame) and aligned_depth that equal the truth."""
    clip = synthetic.scene(scene, n_frames=count, width=320, height=180, fps=5)
    result = Result(
        VideoStore(folder / "store"), open_source(str(_source(folder, clip, as_pictures, turned))), clip, np.arange(0, count, 2)
    )
    _commit_frames(result)
    _commit_poses(result, tracked, segment)
    _commit_depth(result)
    return result


def _source(folder: Path, clip: SyntheticClip, as_pictures: bool, turned: bool) -> Path:
    """turned: pictures lie on their side, lossless, and say so in their EXIF."""
    if not as_pictures:
        return synthetic.write_mp4(clip, folder / "room.mp4")
    pictures = folder / "room"
    pictures.mkdir()
    for row in range(len(clip)):
        if turned:
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(np.rot90(clip.rgb(row))).save(pictures / f"photo{row}.webp", lossless=True, exif=exif)
        else:
            Image.fromarray(clip.rgb(row)).save(pictures / f"photo{row}.jpg", quality=80)
    return pictures


def _commit_frames(result: Result) -> None:
    source, store = result.source, result.store
    store.register(SourceRecord(video_id=VIDEO, uri=source.uri, digest=source.digest))
    decoder = frames_stage.decode(source, FramesConfig(long_side=result.truth.camera.width))
    with store.begin(VIDEO, "frames", FINGERPRINT) as w:
        for block in decoder:
            w.append({"rgb": block.rgb, "frame": block.index, "time": block.time})
        info = decoder.info
        names = ("width", "height", "source_width", "source_height", "rotation", "source_uri", "source_digest", "codec", "container")
        w.attrs({name: getattr(info, name) for name in (*names, "fps_nominal", "truncated")})
        w.attrs({"flags": list(info.flags)})


def _commit_poses(result: Result, tracked: np.ndarray | None, segment: np.ndarray | None) -> None:
    count, keyframe, camera = len(result.clip), result.keyframe, result.truth.camera
    u, v = np.meshgrid(*result.grid)
    depth = np.stack([result.truth.truth(int(row))[0][v, u] for row in keyframe])
    poses = BaPoses(
        cam2world=result.clip.cam2world,
        tracked=np.ones(count, bool) if tracked is None else tracked,
        segment=np.zeros(count, np.int32) if segment is None else segment.astype(np.int32),
        position_std=np.zeros(count),
        frame_residual_px=np.zeros(count, np.float32),
        inlier_share=np.ones(count, np.float32),
        keyframe=keyframe.astype(np.int64),
        point_uv=np.repeat(np.stack([u, v], -1)[None], len(keyframe), 0).astype(np.float32),
        inverse_depth=(1 / depth).astype(np.float32),
        valid=np.isfinite(depth),
        residual_px=np.zeros(depth.shape, np.float32),
        camera_model=camera.camera_model,
        params=camera.params,
        params_std=np.zeros(9),
        parallax=np.ones(1 if segment is None else len(np.unique(segment)), bool),
        residual_px_median=0.0,
        iterations=1,
        flags=(),
    )
    arrays, attributes = ba_poses_arrays(poses, result.store.open(VIDEO, "frames"))
    with result.store.begin(VIDEO, "ba_poses", FINGERPRINT) as w:
        for name, values in arrays.items():
            w.put(name, values)
        w.attrs(attributes)


def _commit_depth(result: Result) -> None:
    count = len(result.clip)
    depth = np.stack([result.truth.truth(row)[0] for row in range(count)])
    with result.store.begin(VIDEO, "aligned_depth", FINGERPRINT) as w:
        w.append({"z_depth": depth, "confidence": np.full(depth.shape, 255, np.uint8), "measured": np.ones(depth.shape, bool)})
        w.put("scale", np.ones(count))
        w.put("shift", np.zeros(count))
        w.put("alignment_residual", np.zeros(count, np.float32))
        w.attrs({"scale_source": "arbitrary", "flags": []})
