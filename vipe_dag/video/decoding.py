"""One pass over a video file: packets to pictures with times, pictures to upright RGB."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import SourceError
from vipe_dag.video.container import OpenVideo, Shape
from vipe_dag.video.picture import resized, upright
from vipe_dag.video.records import FrameStream
from vipe_dag.video.timing import Clock

_SAME_ASPECT = 0.01
_CUT_SECONDS = 0.25
_CUT_PERIODS = 3
_CUT_SHARE = 0.05
"""The video counts as cut off when it ends this much before the end its header gives: a quarter second or three frames where the header
speaks of the video stream, and at least a second and a twentieth where it gives one duration for sound and video together."""


class Converter:
    """Makes upright RGB of decoded pictures; colour matrix and range as the stream declares them are left to swscale."""

    def __init__(self, opened: OpenVideo, first: Any, size: tuple[int, int] | None) -> None:
        from av.video.reformatter import VideoReformatter

        self.shape: Shape = opened.shape(first)
        self._origin = opened.place
        self._size = size or self.shape.upright_size
        self._reformatter = VideoReformatter()

    def rgb(self, picture: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8. Raises SourceError when the picture changed its form within the video."""
        self._check(picture)
        plain = np.asarray(self._reformatter.reformat(picture, format="rgb24").to_ndarray(), dtype=np.uint8)
        width, height = self._size
        if self.shape.rotation % 180:
            width, height = height, width
        return upright(resized(plain, width, height), self.shape.rotation, self.shape.mirrored)

    def _check(self, picture: Any) -> None:
        width, height = self.shape.stored
        if abs(picture.width * height / (picture.height * width) - 1) > _SAME_ASPECT:
            raise SourceError(
                f"{self._origin}: the picture changes from {width}x{height} to {picture.width}x{picture.height}; "
                "take one part with --start/--end or re-encode it to one size"
            )


def pictures(opened: OpenVideo, stream: FrameStream) -> Iterator[tuple[Any, float]]:
    """Every picture that can be decoded, with its time, in presentation order; notes on `stream` what is missing, damaged or repaired.

    Raises SourceError when reading fails: a lost connection is not the end of the video.
    """
    clock = Clock(opened.format, opened.rate, opened.start)
    packets = _Packets(opened, clock)
    unit = opened.unit
    end: Fraction | None = None
    for packet in packets:
        for picture in _decoded(opened, packet, stream):
            time = clock.show(None if picture.pts is None else picture.pts * unit)
            end = clock.last + (picture.duration * unit or clock.period)
            for flag in clock.flags:
                stream.note(flag)
            yield picture, time
    if packets.cut or _ends_early(opened, end, clock.period):
        stream.note("truncated")


class _Packets:
    """The packets of the video stream, then None to flush the decoder. `cut` tells afterwards whether the file ended before its index."""

    def __init__(self, opened: OpenVideo, clock: Clock) -> None:
        self._opened, self._clock = opened, clock
        self.cut = False

    def __iter__(self) -> Iterator[Any]:
        import av

        indexed, read = self._index_length(), 0
        packets = self._opened.container.demux(self._opened.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except av.error.FFmpegError:
                self.cut = True
                break
            if packet.size == 0:
                continue
            if packet.is_corrupt and self._opened.format == "mov":
                self.cut = True
                break
            read += 1
            self._clock.packet(None if packet.dts is None else packet.dts * self._opened.unit)
            yield packet
        self._opened.check_reading()
        self.cut = self.cut or read < indexed
        yield None

    def _index_length(self) -> int:
        """Packets that the index of a mov or mp4 promises; other containers index key frames only."""
        return len(self._opened.stream.index_entries) if self._opened.format == "mov" else 0


def _decoded(opened: OpenVideo, packet: Any, stream: FrameStream) -> list[Any]:
    import av

    try:
        found = opened.stream.decode(packet)
    except av.error.FFmpegError:
        stream.note("damaged")
        return []
    sound = [picture for picture in found if not picture.is_corrupt]
    if len(sound) < len(found):
        stream.note("damaged")
    return sound


def _ends_early(opened: OpenVideo, end: Fraction | None, period: Fraction) -> bool:
    declared = opened.declared_end
    if declared is None or end is None:
        return False
    promised, of_video = declared
    slack = max(Fraction(_CUT_SECONDS), _CUT_PERIODS * period)
    if not of_video:
        slack = max(slack, Fraction(1), (promised - opened.start) * Fraction(_CUT_SHARE))
    return promised - end > slack
