"""Which picture of the source each decoded one is; a long part before the clip is passed over by a seek where the count stays exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

from vipe_dag.video.container import OpenVideo
from vipe_dag.video.decoding import Packets, pictures
from vipe_dag.video.records import Clip, FrameStream

_WORTH_SEEKING_SECONDS = 5.0
_REORDER_SECONDS = 2.0
"""Seeks aim this much before the clip: the index knows decoding times, which are up to this much before the times shown."""


def numbered(opened: OpenVideo, stream: FrameStream, clip: Clip) -> Iterator[tuple[int, Any, float]]:
    """(index, picture, time) of the first picture and of all from shortly before the clip on; index in order of presentation."""
    passing = enumerate(pictures(opened, stream))
    first = next(passing, None)
    if first is None:
        return
    yield 0, *first[1]
    if clip.start is not None and clip.start >= _WORTH_SEEKING_SECONDS and _index_is_whole(opened):
        landed = _landed(opened, stream, first[1][1] + clip.start)
        if landed is not None:
            yield from landed
            return
        opened.container.seek(opened.stream.index_entries[0].timestamp, stream=opened.stream)
        passing = enumerate(pictures(opened, stream))
        next(passing)
    for index, (picture, time) in passing:
        yield index, picture, time


def _index_is_whole(opened: OpenVideo) -> bool:
    """Whether this is a mov or mp4 whose index lists every picture once, by its decoding time."""
    entries = opened.stream.index_entries
    if opened.format != "mov" or len(entries) != opened.stream.frames or any(entry.is_discard for entry in entries):
        return False
    return len({entry.timestamp for entry in entries}) == len(entries)


def _landed(opened: OpenVideo, stream: FrameStream, seconds: float) -> Iterator[tuple[int, Any, float]] | None:
    """Pictures from a key frame before `seconds` on; None when there is nothing to land on.

    The number of a picture is the place of the key frame in the index plus the packets since then that are shown before it, so what a
    decoder drops after a seek shifts nothing.
    """
    entries = opened.stream.index_entries
    key = entries.search_timestamp(math.floor((seconds - _REORDER_SECONDS) / opened.unit))
    if key <= 0:
        return None
    packets = Packets(opened, {entry.timestamp: place for place, entry in enumerate(entries)})
    opened.container.seek(entries[key].timestamp, stream=opened.stream)
    following = pictures(opened, stream, packets)
    head = next(following, None)
    if head is None or packets.first is None or head[0].pts is None or head[1] > seconds:
        return None
    return ((packets.first + packets.shown_before(picture.pts), picture, time) for picture, time in chain([head], following))
