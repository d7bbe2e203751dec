"""Stored videos as a torch Dataset: random access to (rgb, depth, cam2world, K), lazily, in any number of workers.

from torch.utils.data import DataLoader
from vipe_dag.dataset import VideoDataset

frames = VideoDataset("out", max_side=512)
for rgb, depth, cam2world, K, mask, *_ in DataLoader(frames, batch_size=8, shuffle=True, num_workers=2): ...
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vipe_dag.calibration import Calibration
from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.evaluate.references import nearest_pixels
from vipe_dag.sample_cache import Pixels, SampleCache
from vipe_dag.store import VideoStore
from vipe_dag.store.reader import stored_array

DepthAsset = Literal["aligned_depth", "dense_depth"]
_OPENING_THREADS = 8


class Sample(NamedTuple):
    """One frame. Lengths are in the video's own scale (`scale_source`); a DataLoader stacks samples of one size field by field.

    rgb (3, H, W) uint8; depth (H, W) float32 along the optical axis, NaN = unknown; cam2world (4, 4) float32, OpenCV axes; K (3, 3)
    float32 at H x W, pixel centres at integers; mask (H, W) bool: depth is known and passes the filters; camera (9,) float32 at H x W:
    fx fy cx cy k1 k2 p1 p2 k3, since K alone leaves the distortion out; video: position in `VideoDataset.videos`; frame: index in the
    source; time: seconds; segment: frames of one video share a world only within one segment.
    """

    rgb: Tensor
    depth: Tensor
    cam2world: Tensor
    K: Tensor
    mask: Tensor
    camera: Tensor
    video: int
    frame: int
    time: float
    segment: int


@dataclass(frozen=True)
class _Video:
    """What is known of a video without its images; rows are those that the dataset gives. Small enough to be sent to workers."""

    video_id: str
    fingerprints: Mapping[str, str]
    camera: Calibration
    camera_model: str
    rows: NDArray[np.int64]
    frame: NDArray[np.int64]
    time: NDArray[np.float64]
    segment: NDArray[np.int32]
    cam2world: NDArray[np.float32]


class VideoDataset(Dataset[Sample]):
    """Frames of one or many stored videos, in the order of `videos` and of time.

    Opening resolves the pointers once: what is computed later is not seen. Images are read when asked for and none is kept in memory.
    Workers, forked or spawned, open the store themselves; a pickled dataset holds small arrays only.
    """

    def __init__(
        self,
        root: str | Path,
        videos: str | Sequence[str] | None = None,
        *,
        depth: DepthAsset = "aligned_depth",
        max_side: int | None = None,
        tracked_only: bool = True,
        min_confidence: int = 0,
        measured_only: bool = False,
        cache: str | Path | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """root: of the store, a path or URL; storage_options: for the URL's file system. videos: ids; None takes all that have the depth.

        depth: where depth comes from. max_side: shrink pictures whose longer side is larger, by area averaging; depth takes the nearest
        pixel, K and camera follow. tracked_only: leave out frames without a pose, whose cam2world says nothing. min_confidence (0..255),
        measured_only: what `mask` asks of a pixel beyond known depth. cache: a folder on a fast local disk where decoded, shrunk frames
        are kept for the next epoch, 7 bytes per pixel; decoding lossless frames is most of the time of a sample, and the only way to have
        them from S3 once. Raises StoreError: unknown video, missing asset, no frame left; ConfigError for a value out of bounds.
        """
        if max_side is not None and max_side < 1:
            raise ConfigError(f"max_side {max_side}: expected at least 1, or None for the stored size")
        if not 0 <= min_confidence <= 255:
            raise ConfigError(f"min_confidence {min_confidence}: expected 0 to 255")
        self._root, self._options = root, dict(storage_options or {})
        self._depth, self._max_side = depth, max_side
        self._min_confidence, self._measured_only = min_confidence, measured_only
        self._cache = None if cache is None else Path(cache)
        store = VideoStore(root, self._options)
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            found = list(pool.map(lambda video_id: _describe(store, video_id, depth, tracked_only), _chosen(store, videos, depth)))
        self._videos = [video for video in found if len(video.rows)]
        if not self._videos:
            raise StoreError(f"{store.root}: none of the {len(found)} videos has a tracked frame; the flags of their ba_poses say why")
        self._cameras = [video.camera.scaled(*self._size(video)[::-1]).params.astype(np.float32) for video in self._videos]
        self._starts = np.concatenate([[0], np.cumsum([len(video.rows) for video in self._videos])])
        self._forget()

    @property
    def videos(self) -> tuple[str, ...]:
        """Ids of the videos that have a frame in the dataset."""
        return tuple(video.video_id for video in self._videos)

    @property
    def camera_models(self) -> tuple[str, ...]:
        """pinhole, brown or fisheye, per video."""
        return tuple(video.camera_model for video in self._videos)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the samples of each video: a DataLoader stacks only samples of one size."""
        return tuple(self._size(video) for video in self._videos)

    @property
    def video_of(self) -> NDArray[np.int64]:
        """(len,) position in `videos` of each sample, for samplers that balance videos or keep them apart."""
        return np.repeat(np.arange(len(self._videos)), np.diff(self._starts))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        """One frame; negative indices count from the end. Raises IndexError, and StoreError for damaged data."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        video, place = self._videos[number], index - int(self._starts[number])
        pixels = self._reader(number)(int(video.rows[place]))
        depth = torch.from_numpy(pixels.z_depth).float()
        mask = (depth > 0) & (depth < torch.inf)
        if self._min_confidence:
            mask &= torch.from_numpy(pixels.confidence) >= self._min_confidence
        if self._measured_only:
            mask &= torch.from_numpy(pixels.measured)
        camera = self._cameras[number]
        K = np.array([[camera[0], 0, camera[2]], [0, camera[1], camera[3]], [0, 0, 1]], np.float32)
        return Sample(
            rgb=torch.from_numpy(pixels.rgb),
            depth=depth,
            cam2world=torch.from_numpy(video.cam2world[place].copy()),
            K=torch.from_numpy(K),
            mask=mask,
            camera=torch.from_numpy(camera.copy()),
            video=number,
            frame=int(video.frame[place]),
            time=float(video.time[place]),
            segment=int(video.segment[place]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_readers", "_process"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._readers: dict[int, Callable[[int], Pixels]] = {}
        self._process = os.getpid()

    def _reader(self, number: int) -> Callable[[int], Pixels]:
        """Opened in this process: what a parent opened is not used after a fork (connections, threads and locks do not survive it)."""
        if self._process != os.getpid():
            self._forget()
        if number not in self._readers:
            self._readers[number] = self._open(number)
        return self._readers[number]

    def _open(self, number: int) -> Callable[[int], Pixels]:
        video, (height, width) = self._videos[number], self._size(self._videos[number])
        store = VideoStore(self._root, self._options)
        if self._cache is None:
            return _Decoded(store, video, self._depth, height, width, self._min_confidence > 0, self._measured_only).row
        decoded = _Decoded(store, video, self._depth, height, width)
        content = f"{video.video_id} {self._depth} {sorted(video.fingerprints.items())}"
        cache = SampleCache(self._cache, video.video_id, content, height, width)
        return lambda row: cache.row(row, decoded.row)

    def _size(self, video: _Video) -> tuple[int, int]:
        height, width = video.camera.height, video.camera.width
        factor = min(1.0, self._max_side / max(height, width)) if self._max_side else 1.0
        return max(1, round(height * factor)), max(1, round(width * factor))


def _chosen(store: VideoStore, videos: str | Sequence[str] | None, depth: str) -> list[str]:
    if videos is not None:
        names = [videos] if isinstance(videos, str) else list(videos)
        if not names:
            raise StoreError(f"{store.root}: no video was chosen; name some, or None for all")
        return names
    names = [video_id for video_id in store.videos() if store.current(video_id, depth) is not None]
    if not names:
        raise StoreError(f"{store.root}: no video has {depth}; make some with `vipe-dag run SOURCE --store {store.root}`")
    return names


def _describe(store: VideoStore, video_id: str, depth: str, tracked_only: bool) -> _Video:
    pointers = {asset: store.current(video_id, asset) for asset in ("frames", "ba_poses", depth)}
    fingerprints = {asset: pointer.fingerprint for asset, pointer in pointers.items() if pointer is not None}
    frames, poses, images = (store.group(video_id, asset, fingerprints.get(asset)) for asset in pointers)
    tracked = np.asarray(stored_array(poses, "tracked")[:], bool)
    count = stored_array(frames, "frame").shape[0]
    for asset, length in (("ba_poses", len(tracked)), (depth, stored_array(images, "z_depth").shape[0])):
        if length != count:
            raise StoreError(f"{video_id}: {asset} has {length} rows, the current frames are {count}; run the video until {depth}")
    rows = np.flatnonzero(tracked) if tracked_only else np.arange(count)
    model = str(poses.attrs["camera_model"])
    size = (int(str(frames.attrs[name])) for name in ("width", "height"))
    return _Video(
        video_id=video_id,
        fingerprints=fingerprints,
        camera=Calibration(model, np.asarray(stored_array(poses, "params")[:]), *size),
        camera_model=model,
        rows=rows,
        frame=np.asarray(stored_array(frames, "frame")[:], np.int64)[rows],
        time=np.asarray(stored_array(frames, "time")[:], np.float64)[rows],
        segment=np.asarray(stored_array(poses, "segment")[:], np.int32)[rows],
        cam2world=np.asarray(stored_array(poses, "cam2world")[:], np.float32)[rows],
    )


class _Decoded:
    """The images of a video at one size, decoded from the store when asked for; zeros for those that nobody wants."""

    def __init__(
        self, store: VideoStore, video: _Video, depth: str, height: int, width: int, confidence: bool = True, measured: bool = True
    ) -> None:
        prints = video.fingerprints
        self._size = height, width
        self._rgb: Callable[[int], NDArray[np.uint8]]
        frames = store.opened(video.video_id, "frames", prints["frames"])
        if "rgb" in frames.group:
            self._rgb = frames.rows("rgb").row
        else:
            self._rgb = store.frames(video.video_id, prints["frames"]).rgb
        images = store.opened(video.video_id, depth, prints[depth])
        self._z_depth = images.rows("z_depth").row
        self._confidence = images.rows("confidence").row if confidence else None
        self._measured = images.rows("measured").row if measured else None

    def row(self, row: int) -> Pixels:
        rgb = self._rgb(row)
        if rgb.shape[:2] != self._size:
            import cv2

            rgb = np.asarray(cv2.resize(rgb, self._size[::-1], interpolation=cv2.INTER_AREA))
        return Pixels(
            np.array(rgb.transpose(2, 0, 1), order="C"),
            self._resized(self._z_depth(row)),
            self._resized(self._confidence(row)) if self._confidence else np.broadcast_to(np.uint8(0), self._size),
            self._resized(self._measured(row)) if self._measured else np.broadcast_to(np.bool_(False), self._size),
        )

    def _resized(self, image: NDArray[Any]) -> NDArray[Any]:
        return np.array(nearest_pixels(image, *self._size))
