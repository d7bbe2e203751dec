"""An open video container: which stream is the video, how its pictures turn upright, what its header promises, why it cannot be used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vipe_dag.errors import SourceError
from vipe_dag.video.location import Location
from vipe_dag.video.picture import PICTURE_EXTENSIONS
from vipe_dag.video.records import PROBE_MAX_PIXELS

_MPEG = (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".insv", ".lrv")
_OTHER = (".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".ogv", ".ogm", ".mxf", ".gif", ".y4m", ".ivf", ".nut", ".dv")
_BARE_STREAMS = (".h264", ".264", ".h265", ".265", ".hevc", ".mjpeg", ".mjpg")
VIDEO_EXTENSIONS = _MPEG + _OTHER + _BARE_STREAMS

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,live_flv,ogg,mxf,gif,yuv4mpegpipe,ivf,h264,hevc,mjpeg,nut,dv,m4v,obu,"
    "aac,mp3,flac,wav,w64,aiff,ac3,eac3,dts,caf,amr"
)
"""Demuxers that may open a source. Not among them: playlists and scripts (hls, dash, concat, sdp), which can name other files and hosts.
The sound formats are there so that a sound file is called that, not unreadable."""

_MAX_THREADS = 8
_PIXEL_ASPECTS = (Fraction(1, 4), Fraction(4))
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Shape:
    """How stored pictures become upright ones: stored (width, height), turn and flip as in SourceInfo, width over height of a pixel."""

    stored: tuple[int, int]
    rotation: int
    mirrored: bool
    pixel_aspect: Fraction

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) with square pixels: the stored height is kept and the width stretched, then both are turned."""
        width, height = max(1, round(self.stored[0] * self.pixel_aspect)), self.stored[1]
        return (height, width) if self.rotation % 180 else (width, height)


class OpenVideo:
    """A container opened for one pass; close it, or use it as a context manager. Raises SourceError when there is no video to decode."""

    def __init__(self, place: Location, max_pixels: int = PROBE_MAX_PIXELS) -> None:
        self.place = place
        self.max_pixels = min(max_pixels, PROBE_MAX_PIXELS)
        self._stack = ExitStack()
        self._feed: _Feed | None = None
        try:
            self.container = self._open()
            self.format = str(self.container.format.name).split(",")[0]
            self.stream = self._video_stream()
            self.stream.thread_type = "AUTO"
            self.stream.codec_context.thread_count = min(_MAX_THREADS, os.cpu_count() or 1)
            self.stream.codec_context.options = {"max_pixels": str(self.max_pixels)}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def rate(self) -> Fraction | None:
        """Nominal frames per second, None when the container does not tell."""
        return self.stream.average_rate or self.stream.guessed_rate or None

    @property
    def start(self) -> Fraction:
        """Start of the video by its header, seconds."""
        return (self.stream.start_time or 0) * self.unit

    @property
    def unit(self) -> Fraction:
        """Seconds of one tick of the stream's timestamps."""
        return Fraction(self.stream.time_base)

    @property
    def declared_end(self) -> tuple[Fraction, bool] | None:
        """When the video ends by its header, seconds, and whether that speaks of the video stream alone."""
        if self.stream.duration:
            return self.start + self.stream.duration * self.unit, True
        if tagged := _clock_seconds(self.stream.metadata.get("DURATION", "")):
            return tagged, True
        if self.container.duration and self.container.duration > 0:
            return max(self.start, Fraction(0)) + Fraction(self.container.duration, 1_000_000), False
        return None

    def check_reading(self) -> None:
        """Raises SourceError when the bytes ended because they could not be read: that is not the end of the video."""
        if self._feed is not None and self._feed.failure is not None:
            raise self._feed.failure

    def shape(self, picture: Any) -> Shape:
        """The shape that a decoded picture has."""
        rotation, mirrored = _orientation(picture)
        aspect = Fraction(self.stream.sample_aspect_ratio or 1)
        usable = _PIXEL_ASPECTS[0] <= aspect <= _PIXEL_ASPECTS[1]
        return Shape((picture.width, picture.height), rotation, mirrored, aspect if usable else Fraction(1))

    def _open(self) -> Any:
        import av

        if self.place.size() == 0:
            raise SourceError(f"{self.place}: the file is empty; copy or record it again")
        if self.place.local:
            self.place.open().close()
        else:
            self._feed = _Feed(self._stack.enter_context(_reachable(self.place)))
        try:
            return self._stack.enter_context(av.open(self._feed or f"file:{self.place.path}", options={"format_whitelist": _FORMATS}))
        except av.error.FFmpegError as error:
            self.check_reading()
            raise SourceError(f"{self.place}: {_why_not_video(self.place)}") from error

    def _video_stream(self) -> Any:
        from av.stream import Disposition

        videos = [stream for stream in self.container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not videos:
            kinds = sorted({str(stream.type).replace("video", "a cover picture") for stream in self.container.streams})
            raise SourceError(f"{self.place}: has no video stream (only {' and '.join(kinds)}); give a file with moving pictures")
        best = self.container.streams.best("video")
        stream = next((stream for stream in videos if stream == best), videos[0])
        if stream.codec_context is None:
            raise SourceError(f"{self.place}: its codec is not supported; re-encode it, for example to H.264")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > self.max_pixels:
            raise SourceError(
                f"{self.place}: {width}x{height} pixels exceed frames.max_pixels = {self.max_pixels}; scale it down or raise the limit"
            )
        return stream


class _Feed:
    """Bytes for the decoder. It takes errors for noise and goes on, so a failure is kept here and looks to it like the end of the file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: SourceError | None = None
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        try:
            return b"" if self.failure else bytes(self._stream.read(size))
        except SourceError as error:
            self.failure = error
            return b""


@contextmanager
def _reachable(place: Location) -> Iterator[Any]:
    """The bytes of a URL at any position: as the server sends them, or, where it sends only whole files, from a temporary copy on disk."""
    with place.open() as stream:
        if stream.seekable():
            yield stream
            return
    with tempfile.TemporaryFile() as copy:
        place.feed(copy.write)
        copy.seek(0)
        yield copy


def _why_not_video(place: Location) -> str:
    with place.open() as stream:
        head = stream.read(_HEAD_BYTES)
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip"):
        return "its index (moov) is missing: the file was cut off, or copied while still being written; copy it again"
    if place.name.lower().endswith(PICTURE_EXTENSIONS):
        return "is one picture; give the folder that holds the frames"
    if head and all(byte >= 32 or byte in b"\t\n\r\f\x1b" for byte in head):
        return "is a text file, whatever its name says; give a video file"
    return "is not a video in a container that can be read, or its header is damaged; copy it again or convert it, for example to mp4"


def _orientation(picture: Any) -> tuple[int, bool]:
    """(degrees clockwise, flipped left-right before that) from the display matrix, to the nearest right angle; (0, False) without one.

    FFmpeg's matrix [a b u; c d v; x y w] sends a stored point (p, q) to (a p + c q, b p + d q) on the screen.
    """
    from av.sidedata.sidedata import Type

    data = picture.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].astype(np.float64)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(np.degrees(np.arctan2(b - c, a + d)) / 90) % 4 * 90, bool(mirrored)


def _clock_seconds(text: str) -> Fraction | None:
    """Seconds of `HH:MM:SS.fraction`, None for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None
