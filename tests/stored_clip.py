"""A synthetic clip put into a store as if the pipeline had estimated it, with chosen errors: for tests of what reads results."""

from __future__ import annotations

import numpy as np

from vipe_dag.store import VideoStore
from vipe_dag.synthetic import SyntheticClip
from vipe_dag.video.records import SourceRecord

VIDEO = "room-0a1b2c3d"
FINGERPRINT = "0123456789abcdef"


def store_clip(
    store: VideoStore,
    clip: SyntheticClip,
    *,
    cam2world: np.ndarray | None = None,
    tracked: np.ndarray | None = None,
    segment: np.ndarray | None = None,
    focal_factor: float = 1.0,
    depth_factor: float = 1.0,
    video_id: str = VIDEO,
    uri: str = "/videos/room.mp4",
) -> None:
    """Commits frames, ba_poses and aligned_depth that equal the truth, except for what is given."""
    count, camera = len(clip), clip.camera
    store.register(SourceRecord(video_id=video_id, uri=uri, digest="0a1b2c3d0a1b2c3d"))
    size = {"width": camera.width, "height": camera.height}
    with store.begin(video_id, "frames", FINGERPRINT, sizes={"frame": count}) as w:
        w.append({"rgb": clip.frames().rgb_array, "frame": np.arange(count), "time": clip.time})
        source = {"source_width": camera.width, "source_height": camera.height, "source_uri": uri, "source_digest": "0a1b2c3d0a1b2c3d"}
        container = {"rotation": 0, "codec": "h264", "container": "mp4", "truncated": False, "fps_nominal": clip.fps}
        w.attrs({**size, **source, **container, "flags": []})
    params = camera.params * np.array([focal_factor, focal_factor, *[1.0] * 7])
    with store.begin(video_id, "ba_poses", FINGERPRINT) as w:
        w.put("cam2world", clip.cam2world if cam2world is None else cam2world)
        w.put("tracked", np.ones(count, bool) if tracked is None else tracked)
        w.put("segment", np.zeros(count, np.int32) if segment is None else segment)
        w.put("position_std", np.zeros(count))
        w.put("frame_residual_px", np.zeros(count, np.float32))
        w.put("inlier_share", np.ones(count, np.float32))
        w.put("keyframe", np.array([0, count - 1]))
        w.put("point_uv", np.zeros((2, 1, 1, 2), np.float32))
        w.put("inverse_depth", np.ones((2, 1, 1), np.float32))
        w.put("valid", np.ones((2, 1, 1), bool))
        w.put("residual_px", np.zeros((2, 1, 1), np.float32))
        for name in ("params", "source_params"):
            w.put(name, params)
            w.put(f"{name}_std", np.zeros(9))
        w.put("parallax", np.ones(1 if segment is None else len(np.unique(segment)), bool))
        w.attrs({"camera_model": camera.camera_model, "scale_source": "arbitrary", "residual_px": 0.0, "iterations": 1, "flags": []})
    with store.begin(video_id, "aligned_depth", FINGERPRINT, sizes={"frame": count}) as w:
        depth = np.stack([clip.truth(row)[0] for row in range(count)]) * depth_factor
        w.append({"z_depth": depth, "confidence": np.full(depth.shape, 255, np.uint8), "measured": np.ones(depth.shape, bool)})
        w.put("scale", np.ones(count))
        w.put("shift", np.zeros(count))
        w.put("alignment_residual", np.zeros(count, np.float32))
        w.attrs({"scale_source": "arbitrary", "flags": []})


def second_generation(store: VideoStore, cam2world: np.ndarray, fingerprint: str = "fedcba9876543210", video_id: str = VIDEO) -> None:
    """A copy of ba_poses with other cameras, as another configuration may leave them; becomes current."""
    old = store.open(video_id, "ba_poses")
    with store.begin(video_id, "ba_poses", fingerprint) as w:
        for name in {*old.data_vars, "keyframe"} - {"cam2world"}:
            w.put(str(name), old[name].values)
        w.put("cam2world", cam2world)
        w.attrs({name: old.attrs[name] for name in ("camera_model", "scale_source", "residual_px", "iterations", "flags")})
