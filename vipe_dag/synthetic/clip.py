"""A rendered video with its exact truth: cameras, z-depth, optical flow, moving bodies; written as an mp4 and as reference files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.sequence import ArrayFrames
from vipe_dag.synthetic.lens import project
from vipe_dag.synthetic.render import Picture, Rays, cast, colours, depth_and_body
from vipe_dag.synthetic.world import World

Array = NDArray[np.float64]
_AHEAD = 8
"""Frames rendered ahead of the encoder, by two threads: NumPy and OpenCV let go of the interpreter's lock."""


@dataclass(frozen=True)
class SyntheticClip:
    """T frames at a constant rate. cam2world (T, 4, 4) float64, OpenCV axes, metres; row t shows worlds[shot[t]] at t / fps seconds.

    noise: standard deviation of Gaussian sensor noise in grey levels; exposure: relative amplitude of a slow change of gain.
    supersample: n x n rays per pixel. The pixels of a row never depend on which rows were rendered before.
    shutter (T, S, 4, 4) float64: cameras while the shutter is open, whose pictures are averaged (moving bodies hold still meanwhile); None
    for a picture of one instant.
    """

    name: str
    worlds: tuple[World, ...]
    shot: NDArray[np.int32]
    cam2world: Array
    camera: Calibration
    fps: float
    noise: float = 0.0
    exposure: float = 0.0
    supersample: int = 2
    shutter: Array | None = None

    def __len__(self) -> int:
        return len(self.cam2world)

    @property
    def time(self) -> Array:
        """(T,) seconds."""
        return np.arange(len(self)) / self.fps

    @property
    def path_length(self) -> float:
        """Metres travelled inside the shots."""
        steps = np.linalg.norm(np.diff(self.cam2world[:, :3, 3], axis=0), axis=1)
        return float(steps[np.diff(self.shot) == 0].sum())

    @cached_property
    def _rays(self) -> Rays:
        return Rays.of(self.camera)

    @cached_property
    def _fine_rays(self) -> Rays:
        return self._rays if self.supersample == 1 else Rays.of(self.camera, self.supersample)

    def _world(self, row: int) -> World:
        return self.worlds[int(self.shot[row])]

    def rgb(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 as the sensor gives it."""
        image = self._exposed(row)
        if self.noise == 0 and self.exposure == 0:
            return image
        gain = 1 + self.exposure * np.sin(2 * np.pi * self.time[row] / 2.7)
        signal = image.astype(np.float32) * np.float32(gain)
        if self.noise:
            rng = np.random.default_rng(row)
            signal += np.float32(self.noise) * rng.standard_normal(image.shape, np.float32)
        return np.clip(np.rint(signal), 0, 255).astype(np.uint8)

    def _exposed(self, row: int) -> NDArray[np.uint8]:
        cameras = self.cam2world[row][None] if self.shutter is None else self.shutter[row]
        pictures = [colours(self._world(row), pose, self.camera, self._fine_rays, float(self.time[row])) for pose in cameras]
        return pictures[0] if len(pictures) == 1 else np.rint(np.mean(pictures, axis=0, dtype=np.float32)).astype(np.uint8)

    def truth(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """z-depth (H, W) float32 metres at pixel centres (inf where nothing is hit), and body (H, W) uint8, 0 = static world."""
        return depth_and_body(self._world(row), self.cam2world[row], self._rays, float(self.camera.params[0]), float(self.time[row]))

    def picture(self, row: int) -> Picture:
        """Colours and truth of one row."""
        return Picture(self.rgb(row), *self.truth(row))

    def __iter__(self) -> Iterator[Picture]:
        return (self.picture(row) for row in range(len(self)))

    def frames(self, rows: slice = slice(None)) -> ArrayFrames:
        """The chosen rows held in memory, as a stage takes them."""
        index = np.arange(len(self), dtype=np.int64)[rows]
        return ArrayFrames(np.stack([self.rgb(int(i)) for i in index]), self.time[rows], index)

    def flow(self, i: int, j: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Exact optical flow (H, W, 2) float32 in pixels from row i to row j, moving bodies included, and visible (H, W) bool.

        visible: the surface point seen at the pixel in row i is inside the picture of row j and nothing hides it there.
        Raises ValueError when the rows belong to different shots.
        """
        if self.shot[i] != self.shot[j]:
            raise ValueError(f"rows {i} and {j} show different worlds: there is no flow across a cut")
        world, focal = self._world(i), float(self.camera.params[0])
        z, body = self.truth(i)
        seen = np.isfinite(z)
        depth = np.where(seen, z, 1.0).astype(np.float64)
        points = np.stack([self._rays.x * depth, self._rays.y * depth, depth], axis=-1)
        target_from_world = np.linalg.inv(self.cam2world[j])
        moved = np.empty_like(points)
        for number in np.unique(body):
            then, now = (world.body_pose(int(number), float(self.time[row])) for row in (j, i))
            step = target_from_world @ then @ np.linalg.inv(now) @ self.cam2world[i]
            mask = body == number
            moved[mask] = points[mask] @ step[:3, :3].T + step[:3, 3]
        pixels, depth_j = project(self.camera, moved)
        v, u = np.mgrid[: self.camera.height, : self.camera.width]
        inside = np.abs(pixels[..., 0] - (self.camera.width - 1) / 2) <= self.camera.width / 2
        inside &= np.abs(pixels[..., 1] - (self.camera.height - 1) / 2) <= self.camera.height / 2
        inside &= seen & (depth_j > 0)
        safe = np.where(inside[..., None], moved, [0.0, 0.0, 1.0])
        there = Rays.through(safe[..., 0] / safe[..., 2], safe[..., 1] / safe[..., 2])
        nearest = cast(world, self.cam2world[j], there, focal, float(self.time[j])).inverse_depth
        visible = inside & (np.abs(nearest * depth_j - 1) < 2e-3)
        return (pixels - np.stack([u, v], axis=-1)).astype(np.float32), visible


def write_mp4(clip: SyntheticClip, path: str | Path, crf: int = 14, progress: Callable[[int, int], None] | None = None) -> Path:
    """Render every frame into an H.264 mp4 (yuv420p, constant rate factor `crf`); timestamps are exactly row / fps. Returns the path.

    The file appears under its name when it is complete. progress(done, total) is called after each frame.
    Raises ValueError for an odd width or height, which 4:2:0 video cannot hold.
    """
    import av

    path = Path(path)
    if clip.camera.width % 2 or clip.camera.height % 2:
        raise ValueError(f"an mp4 needs even sizes, not {clip.camera.width} x {clip.camera.height}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    rate = Fraction(clip.fps).limit_denominator(1001)
    with av.open(str(unfinished), "w", format="mp4") as container, ThreadPoolExecutor(2) as pool:
        # without the last, x264 may write other bytes each time (seen with AVX-512), and a clip of other bytes is another video
        options = {"crf": str(crf), "preset": "fast", "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = clip.camera.width, clip.camera.height, "yuv420p"
        for start in range(0, len(clip), _AHEAD):
            rows = range(start, min(start + _AHEAD, len(clip)))
            for row, rgb in zip(rows, pool.map(clip.rgb, rows), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
                if progress:
                    progress(row + 1, len(clip))
        container.mux(stream.encode())
    unfinished.replace(path)
    return path


def write_truth(clip: SyntheticClip, directory: str | Path, depth_every: int = 1) -> Path:
    """Write groundtruth.txt (TUM: timestamp tx ty tz qx qy qz qw, cam2world), intrinsics.json and depth/NNNNNN.npy (float32 metres).

    Only every `depth_every`-th frame gets a depth file, named by its frame index. Returns the directory.
    """
    from vipe_dag.export import tum

    directory = Path(directory)
    (directory / "depth").mkdir(parents=True, exist_ok=True)
    tum.write(directory / "groundtruth.txt", clip.time, clip.cam2world, overwrite=True)
    (directory / "intrinsics.json").write_text(json.dumps(clip.camera.to_json(), indent=2) + "\n")
    for row in range(0, len(clip), depth_every):
        np.save(directory / "depth" / f"{row:06d}.npy", clip.truth(row)[0])
    return directory
