"""What a source says about itself, what part of it is wanted, and what the store keeps of it. Light to import: no decoder, no torch."""

from __future__ import annotations

import math
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vipe_dag.calibration import Calibration
from vipe_dag.errors import ConfigError, SourceError

NOMINAL_FPS = 30.0
"""Frames per second assumed where the source names no rate (image folders, raw streams); such times carry the flag `nominal_times`."""

PROBE_MAX_PIXELS = 2**28
"""Largest picture that is looked at at all, whatever the configuration allows."""

VIDEO_ID_LENGTH = 100
_STEM_LENGTH = 48
_VIDEO_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{VIDEO_ID_LENGTH - 1}}}")


@dataclass(frozen=True)
class Clip:
    """A part of a source: frames with start <= time - time of the first frame < end (seconds, None = open), of those every stride-th.

    The first frame at or after `start` is always taken. Raises ConfigError for a negative, non-finite or empty range and a stride below 1.
    """

    start: float | None = None
    end: float | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"--{name} {value}: expected seconds >= 0, counted from the first frame")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ConfigError(f"--start {self.start or 0.0:g} --end {self.end:g}: the clip is empty; the end must come after the start")
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or self.stride < 1:
            raise ConfigError(f"--stride {self.stride}: expected a whole number >= 1")

    def begun(self, seconds: float) -> bool:
        """Whether a frame this many seconds after the first one lies at or after the start."""
        return self.start is None or seconds >= self.start

    def over(self, seconds: float) -> bool:
        """Whether a frame this many seconds after the first one lies at or after the end."""
        return self.end is not None and seconds >= self.end


WHOLE = Clip()


@dataclass(frozen=True)
class SourceInfo:
    """Facts read from the headers and the first picture, without decoding the rest.

    width, height: upright picture with square pixels, that is after rotation and pixel aspect: the "source resolution" of intrinsics.
    rotation: degrees clockwise that make the stored picture upright (0, 90, 180, 270); mirrored: it is flipped left-right before that.
    pixel_aspect: width of a stored pixel over its height. bit_depth: of the stored samples. fps: nominal rate or None.
    duration: seconds or None; frame_count: declared by the container (may be wrong) or None. nominal_times: the source has no timestamps.
    """

    width: int
    height: int
    codec: str
    container: str
    duration: float | None
    fps: float | None
    frame_count: int | None
    rotation: int = 0
    mirrored: bool = False
    pixel_aspect: float = 1.0
    bit_depth: int = 8
    nominal_times: bool = False


@dataclass(frozen=True)
class SourceFrame:
    """One frame: index in the source (presentation order), time in seconds as the container has it, rgb (H, W, 3) uint8."""

    index: int
    time: float
    rgb: NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """Bounds against hostile or mistaken input: pixels of one source picture, frames taken, seconds spanned by the frames taken, and
    seconds of a clock that one pass may decode, not counting what is done with its frames."""

    max_pixels: int = 2**26
    max_frames: int = 1_000_000
    max_seconds: float = 86_400.0
    max_decoding_s: float = 21_600.0


class FrameStream:
    """Iterator over the SourceFrames of one pass; `truncated` and `flags` are final once it is exhausted.

    truncated: the file ends before the frames that its header promises. flags: words of the data contract, sorted.
    """

    def __init__(self, start: Callable[[FrameStream], Iterator[SourceFrame]] = lambda _: iter(()), limits: Limits | None = None) -> None:
        self.truncated = False
        self._noted: set[str] = set()
        self._allowed = (limits or Limits()).max_decoding_s
        self._spent = 0.0
        self._resumed: float | None = None
        self._frames = start(self)

    def note(self, flag: str) -> None:
        """Record a flag of this pass."""
        self._noted.add(flag)
        self.truncated = self.truncated or flag == "truncated"

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(sorted(self._noted))

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> SourceFrame:
        with self.decoding():
            return next(self._frames)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """The clock runs while inside."""
        resumed = self._resumed = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - resumed
            self._resumed = None

    def check_time(self, origin: object) -> None:
        """Raises SourceError when this pass has decoded for longer than it may: a file can keep a decoder busy without showing anything."""
        running = 0.0 if self._resumed is None else time.monotonic() - self._resumed
        if self._spent + running > self._allowed:
            raise SourceError(f"{origin}: decoding took more than {self._allowed:g} s; select a part (--start, --end) or re-encode it")


class FrameReader(Protocol):
    """Random access to single frames of a source."""

    def read(self, index: int, time: float) -> SourceFrame:
        """The frame with this index and time, as one pass of `iterate` gave them. Raises SourceError when the source no longer has it."""

    def close(self) -> None: ...


class VideoSource(Protocol):
    """One video: a file, a folder of pictures, or either behind a URL."""

    @property
    def uri(self) -> str:
        """Absolute path or URL."""

    @property
    def name(self) -> str:
        """Readable stem, not unique."""

    @property
    def digest(self) -> str:
        """32 hex digits of BLAKE2b over the whole content (for a folder: names, contents and given times), read as a stream, once."""

    def probe(self) -> SourceInfo:
        """Headers and first picture. Raises SourceError."""

    def iterate(
        self, clip: Clip = WHOLE, size: tuple[int, int] | None = None, limits: Limits | None = None, pixels: bool = True
    ) -> FrameStream:
        """Frames of `clip` in presentation order, each resized to `size` (width, height; None = source resolution) by area averaging.

        With pixels=False the pictures are decoded and counted but not converted; rgb is then (0, 0, 3). Raises SourceError.
        """

    def reader(self, size: tuple[int, int] | None = None, limits: Limits | None = None) -> FrameReader:
        """Random access at `size`. Raises SourceError."""


class SourceRecord(BaseModel):
    """What the store keeps of a source: where it is, what it contained, which part is wanted, and the calibration given with it.

    given_intrinsics is the layout of a sidecar (see vipe_dag.calibration), at source resolution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    video_id: str
    uri: str = Field(min_length=1)
    digest: str = Field(pattern="^[0-9a-f]{16,128}$")
    start: float | None = None
    end: float | None = None
    stride: int = 1
    given_intrinsics: dict[str, Any] | None = None

    @field_validator("video_id")
    @classmethod
    def _safe(cls, value: str) -> str:
        return validate_video_id(value)

    @model_validator(mode="after")
    def _usable(self) -> SourceRecord:
        _ = self.clip, self.calibration
        return self

    @classmethod
    def of(cls, source: VideoSource, clip: Clip = WHOLE, given: Calibration | None = None, video_id: str | None = None) -> SourceRecord:
        """The record of a source; reads it once for its digest. Raises SourceError, ConfigError."""
        return cls(
            video_id=video_id or make_video_id(source),
            uri=source.uri,
            digest=source.digest,
            start=clip.start,
            end=clip.end,
            stride=clip.stride,
            given_intrinsics=given.to_json() if given else None,
        )

    @property
    def clip(self) -> Clip:
        return Clip(self.start, self.end, self.stride)

    @property
    def calibration(self) -> Calibration | None:
        return Calibration.from_json(self.given_intrinsics, self.uri) if self.given_intrinsics is not None else None

    @property
    def given_intrinsics_digest(self) -> str | None:
        """32 hex digits that change with the given calibration; None where none is given."""
        calibration = self.calibration
        return calibration.digest if calibration else None


def make_video_id(source: VideoSource) -> str:
    """Readable ASCII stem of the source, a dash, and 8 hex digits of its content digest: equal names with other contents do not collide."""
    ascii_name = unicodedata.normalize("NFKD", source.name).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_name)[:_STEM_LENGTH].strip("-_") or "video"
    return f"{stem}-{source.digest[:8]}"


def validate_video_id(value: str) -> str:
    """The id itself, when it is safe as a folder name and a partition key on every system. Raises ConfigError."""
    if not _VIDEO_ID.fullmatch(value):
        raise ConfigError(
            f"video id {value[:120]!r}: expected 1 to {VIDEO_ID_LENGTH} ASCII letters, digits, '-' or '_', the first a letter or digit"
        )
    return value
