"""Where frames come from: video files and picture folders, on disk or behind any fsspec URL.

`open_source(uri)` gives a VideoSource; `source.probe()` its facts; `source.iterate(clip, size)` its frames, one at a time. Decoders are
imported when a source is opened, so that the records here stay light.
"""

from __future__ import annotations

from vipe_dag.video.file import VideoFile
from vipe_dag.video.images import ImageFolder
from vipe_dag.video.records import (
    NOMINAL_FPS,
    WHOLE,
    Clip,
    FrameReader,
    FrameStream,
    Limits,
    SourceFrame,
    SourceInfo,
    SourceRecord,
    VideoSource,
    make_video_id,
    validate_video_id,
)
from vipe_dag.video.sources import expand_sources, open_source

__all__ = [
    "NOMINAL_FPS",
    "WHOLE",
    "Clip",
    "FrameReader",
    "FrameStream",
    "ImageFolder",
    "Limits",
    "SourceFrame",
    "SourceInfo",
    "SourceRecord",
    "VideoFile",
    "VideoSource",
    "expand_sources",
    "make_video_id",
    "open_source",
    "validate_video_id",
]
