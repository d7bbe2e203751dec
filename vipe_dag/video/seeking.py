"""Single frames of a video file, exactly those that one pass from the start gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from vipe_dag.errors import SourceError
from vipe_dag.video.container import OpenVideo
from vipe_dag.video.decoding import Converter, pictures
from vipe_dag.video.location import Location
from vipe_dag.video.records import FrameStream, Limits, SourceFrame

_SEEKABLE = ("mov", "matroska")
"""Containers with an index and true presentation times, where a picture found by its time is the picture."""

_FORWARD_SECONDS = 2.0
"""A frame at most this far ahead is reached by decoding on, rather than by a seek."""

_EARLIER_SECONDS = (0.0, 1.0, 4.0, 16.0)
"""Seeks aim this much before the frame, in turn, until they land on a key frame that is not after it."""


class FileReader:
    """Reads frames by index and time; cheap in ascending order, else from the key frame before.

    Where a seek cannot be exact (no index or presentation times in the container, times that were repaired) it decodes from the start.
    """

    def __init__(self, place: Location, size: tuple[int, int] | None, limits: Limits) -> None:
        self._place, self._size, self._limits = place, size, limits
        self._opened: OpenVideo | None = None
        self._pictures: Iterator[tuple[Any, float]] = iter(())
        self._converter: Converter | None = None
        self._last: tuple[Any, float] | None = None

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened, self._last = None, None
        self._pictures = iter(())

    def read(self, index: int, time: float) -> SourceFrame:
        picture = self._onward(time)
        if picture is None:
            picture = self._sought(time)
        if picture is None:
            picture = self._restarted(time)
        if picture is None:
            raise SourceError(f"{self._place}: has no frame at {time} s; the file changed since it was read, run it again")
        if self._converter is None:
            self._converter = Converter(self._open(), picture, self._size)
        return SourceFrame(index, time, self._converter.rgb(picture))

    def _onward(self, time: float) -> Any:
        """The picture when it is the last one or shortly after it."""
        if self._last is None or not 0 <= time - self._last[1] <= _FORWARD_SECONDS:
            return None
        return self._last[0] if time == self._last[1] else self._decode_to(time)

    def _sought(self, time: float) -> Any:
        """The picture by a seek; None where that would not be exact."""
        opened = self._open()
        if opened.format not in _SEEKABLE:
            return None
        for earlier in _EARLIER_SECONDS:
            opened.container.seek(math.floor((time - earlier) / opened.unit), stream=opened.stream, backward=True)
            self._pictures = pictures(opened, FrameStream())
            picture = self._decode_to(time, after_key=True)
            if picture is not None:
                return picture
        return None

    def _restarted(self, time: float) -> Any:
        self.close()
        self._pictures = pictures(self._open(), FrameStream())
        return self._decode_to(time)

    def _decode_to(self, time: float, after_key: bool = False) -> Any:
        """Decode on until this time. With after_key a picture shown before the first key frame does not count: it lacks its references."""
        whole = not after_key
        for picture, shown in self._pictures:
            whole = whole or bool(picture.key_frame)
            if shown > time or (shown == time and not whole):
                break
            self._last = (picture, shown)
            if shown == time:
                return picture
        self._last = None
        return None

    def _open(self) -> OpenVideo:
        if self._opened is None:
            self._opened = OpenVideo(self._place, self._limits.max_pixels)
        return self._opened
