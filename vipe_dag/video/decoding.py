"""One pass over a video file: packets to pictures with times, pictures to upright RGB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from heapq import heappop, heappush
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


def pictures(opened: OpenVideo, stream: FrameStream, packets: Packets | None = None) -> Iterator[tuple[Any, float]]:
    """Every picture that can be decoded from where the container stands, with its time, in presentation order.

    Notes on `stream` what is missing, damaged or repaired. Raises SourceError when reading fails: that is not the end of the video.
    """
    packets = packets or Packets(opened)
    clock = Clock(opened.format, opened.rate, opened.start)
    end: Fraction | None = None
    for packet in packets.read(clock):
        stream.check_time(opened.place)
        for picture in _decoded(opened, packet, stream):
            time = clock.show(None if picture.pts is None else picture.pts * opened.unit)
            end = clock.last + (picture.duration * opened.unit or clock.period)
            for flag in clock.flags:
                stream.note(flag)
            yield picture, time
    if packets.cut or _ends_early(opened, end, clock.period):
        stream.note("truncated")


class Packets:
    """The packets of the video stream from where the container stands, then None to flush the decoder.

    cut: known at the end, whether the file ended before its index. After a seek `positions` (decoding time -> place in the index) makes
    the pictures countable: `first` is the place of the first packet, `shown_before` a count.
    """

    def __init__(self, opened: OpenVideo, positions: Mapping[int, int] | None = None) -> None:
        self._opened, self._positions = opened, positions
        self._waiting: list[int] = []
        self._shown = 0
        self.first: int | None = None
        self.cut = False

    def read(self, clock: Clock) -> Iterator[Any]:
        """Each packet; tells the clock of it."""
        import av

        opened, read = self._opened, 0
        packets = opened.container.demux(opened.stream)
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
            if packet.is_corrupt and opened.format == "mov":
                self.cut = True
                break
            if not read:
                self._begin(packet)
            read += 1
            self._count(packet)
            clock.packet(None if packet.dts is None else packet.dts * opened.unit)
            yield packet
        opened.check_reading()
        self.cut = self.cut or read + (self.first or 0) < self._index_length()
        yield None

    def shown_before(self, pts: int) -> int:
        """Packets read so far whose picture is shown before `pts`. Ask in ascending order."""
        while self._waiting and self._waiting[0] < pts:
            heappop(self._waiting)
            self._shown += 1
        return self._shown

    def _begin(self, packet: Any) -> None:
        if self._positions is not None:
            self.first = self._positions.get(packet.dts)

    def _count(self, packet: Any) -> None:
        if self._positions is not None and packet.pts is not None:
            heappush(self._waiting, packet.pts)

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
