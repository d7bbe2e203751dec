"""Decode a source to the working resolution: the first asset."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.config import FramesConfig
from vipe_dag.results import FrameBlock
from vipe_dag.sequence import luma
from vipe_dag.video import Clip, Limits, SourceFrame, VideoSource
from vipe_dag.video.picture import working_size

BLOCK_FRAMES = 32
CACHED_FRAMES = 64


@dataclass(frozen=True)
class FramesInfo:
    """What is to know about decoded frames besides their pixels.

    width, height: working resolution; source_width, source_height: upright source; rotation in degrees clockwise, already applied.
    fps_nominal: rate named by the container, 0 when it names none. declared_frame_count: of the whole source by its header, or None.
    truncated, flags: what the pass found out (see the data contract), thus complete only after it.
    """

    width: int
    height: int
    source_width: int
    source_height: int
    rotation: int
    source_uri: str
    source_digest: str
    codec: str
    container: str
    fps_nominal: float
    declared_frame_count: int | None
    truncated: bool
    flags: tuple[str, ...]


class FrameDecoder:
    """One pass over the frames of a clip, in blocks of at most BLOCK_FRAMES; `info` is there once the pass is over.

    At most one block of pixels is held. With the profile `reference` the pictures are decoded and timed but not kept: rgb is (n, 0, 0, 3).
    Raises SourceError while iterating.
    """

    def __init__(self, source: VideoSource, config: FramesConfig, clip: Clip | None = None) -> None:
        self._source, self._config, self._clip = source, config, clip or Clip()
        self._info: FramesInfo | None = None

    @property
    def info(self) -> FramesInfo:
        """Raises RuntimeError before the last block was taken: `truncated` is not known earlier."""
        if self._info is None:
            raise RuntimeError("FramesInfo is complete only after the last block; iterate over the decoder first")
        return self._info

    def __iter__(self) -> Iterator[FrameBlock]:
        facts = self._source.probe()
        size = working_size(facts.width, facts.height, self._config.long_side)
        stream = self._source.iterate(self._clip, size, limits(self._config), pixels=self._config.profile != "reference")
        block: list[SourceFrame] = []
        for frame in stream:
            block.append(frame)
            if len(block) == BLOCK_FRAMES:
                yield _packed(block)
                block = []
        if block:
            yield _packed(block)
        self._info = FramesInfo(
            width=size[0],
            height=size[1],
            source_width=facts.width,
            source_height=facts.height,
            rotation=facts.rotation,
            source_uri=self._source.uri,
            source_digest=self._source.digest,
            codec=facts.codec,
            container=facts.container,
            fps_nominal=facts.fps or 0.0,
            declared_frame_count=facts.frame_count,
            truncated=stream.truncated,
            flags=stream.flags,
        )


def decode(source: VideoSource, config: FramesConfig, clip: Clip | None = None) -> FrameDecoder:
    """Frames of a clip (None = the whole source) at working resolution, block by block.

    The longer side becomes config.long_side unless the source is smaller; each side is rounded to the nearest pixel; pixels are area
    averages and centres map by c -> s * (c + 0.5) - 0.5.
    """
    return FrameDecoder(source, config, clip)


def limits(config: FramesConfig) -> Limits:
    """The bounds of a configuration against hostile input."""
    return Limits(config.max_pixels, config.max_frames, config.max_seconds)


def ahead(blocks: Iterable[FrameBlock]) -> Iterator[FrameBlock]:
    """The same blocks in order; while one is written the next is decoded on another thread. Like `parallel.ahead`, without torch."""
    source = iter(blocks)
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoding:
        pending = decoding.submit(next, source, None)
        while (block := pending.result()) is not None:
            pending = decoding.submit(next, source, None)
            yield block


class DecodedFrames:
    """A FrameSequence that keeps no pixels in the store: rows are decoded from the source when asked for, CACHED_FRAMES of them kept.

    frame (T,) int64 and time (T,) float64 are those of an earlier pass over the same source. Ascending rows cost one decode each; other
    rows start at the key frame before them. Raises SourceError when the source no longer is what it was.
    """

    def __init__(
        self, source: VideoSource, config: FramesConfig, frame: NDArray[np.int64], time: NDArray[np.float64], width: int, height: int
    ) -> None:
        self.frame, self.time, self.width, self.height = frame, time, width, height
        self._reader = source.reader((width, height), limits(config))
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.frame)

    def rgb(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of one row. Raises IndexError outside 0 .. T - 1."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        with self._lock:
            if row not in self._cache:
                self._cache[row] = self._reader.read(int(self.frame[row]), float(self.time[row])).rgb
            self._cache.move_to_end(row)
            if len(self._cache) > CACHED_FRAMES:
                self._cache.popitem(last=False)
            return self._cache[row]

    def luma(self, row: int) -> NDArray[np.uint8]:
        """(H, W) luma of one row. Raises as `rgb` does."""
        return luma(self.rgb(row))

    def close(self) -> None:
        """Close the source; later rows that are not cached open it again."""
        self._reader.close()


def _packed(frames: list[SourceFrame]) -> FrameBlock:
    return FrameBlock(
        index=np.array([frame.index for frame in frames], dtype=np.int64),
        time=np.array([frame.time for frame in frames], dtype=np.float64),
        rgb=np.stack([frame.rgb for frame in frames]),
    )
