"""A video file as a source: facts, a streaming pass, and exact random access."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b

import numpy as np

from vipe_dag.errors import SourceError
from vipe_dag.video.container import OpenVideo
from vipe_dag.video.decoding import Converter, pictures
from vipe_dag.video.location import Location
from vipe_dag.video.numbering import numbered
from vipe_dag.video.records import WHOLE, Clip, FrameStream, Limits, SourceFrame, SourceInfo
from vipe_dag.video.seeking import FileReader
from vipe_dag.video.selection import Selection


class VideoFile:
    """A VideoSource over one file in any of the common containers, on disk or behind a URL.

    A URL is read through its file system as the decoder asks for it. A server that cannot send parts of a file is copied to an unnamed
    temporary file for each pass. The digest reads the whole file once.
    """

    def __init__(self, place: Location) -> None:
        self._place = place

    @property
    def uri(self) -> str:
        return self._place.uri

    @property
    def name(self) -> str:
        """The file name without its extension."""
        return os.path.splitext(self._place.name)[0]

    @cached_property
    def digest(self) -> str:
        content = blake2b(digest_size=16)
        self._place.feed(content.update)
        return content.hexdigest()

    def probe(self) -> SourceInfo:
        stream = FrameStream()
        with OpenVideo(self._place) as opened, stream.decoding():
            first = next(pictures(opened, stream), None)
            if first is None:
                raise SourceError(f"{self._place}: no picture in it can be decoded; re-encode it or copy it again")
            picture, _ = first
            shape = opened.shape(picture)
            width, height = shape.upright_size
            declared = opened.declared_end
            return SourceInfo(
                width=width,
                height=height,
                codec=opened.stream.codec_context.name,
                container=opened.format,
                duration=float(declared[0] - opened.start) if declared else None,
                fps=float(opened.rate) if opened.rate else None,
                frame_count=opened.stream.frames or None,
                rotation=shape.rotation,
                mirrored=shape.mirrored,
                pixel_aspect=float(shape.pixel_aspect),
                bit_depth=max(component.bits for component in picture.format.components),
                nominal_times="nominal_times" in stream.flags,
            )

    def iterate(
        self, clip: Clip = WHOLE, size: tuple[int, int] | None = None, limits: Limits | None = None, pixels: bool = True
    ) -> FrameStream:
        return FrameStream(lambda stream: self._frames(stream, clip, size, limits or Limits(), pixels), limits)

    def _frames(self, stream: FrameStream, clip: Clip, size: tuple[int, int] | None, limits: Limits, pixels: bool) -> Iterator[SourceFrame]:
        selection = Selection(clip, limits, str(self._place))
        seen = 0
        with OpenVideo(self._place, limits.max_pixels) as opened:
            converter: Converter | None = None
            for index, picture, time in numbered(opened, stream, clip):
                if selection.over(time):
                    break
                converter = converter or Converter(opened, picture, size)
                if selection.takes(time):
                    yield SourceFrame(index, time, converter.rgb(picture) if pixels else np.empty((0, 0, 3), dtype=np.uint8))
                seen = index + 1
        selection.close(seen)

    def reader(self, size: tuple[int, int] | None = None, limits: Limits | None = None) -> FileReader:
        return FileReader(self._place, size, limits or Limits())
