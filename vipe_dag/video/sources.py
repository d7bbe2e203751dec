"""From what a user names to sources: which are videos, which are folders of pictures, and which are neither."""

from __future__ import annotations

import os

from vipe_dag.errors import SourceError
from vipe_dag.video.container import VIDEO_EXTENSIONS
from vipe_dag.video.file import VideoFile
from vipe_dag.video.images import TIMES_FILE, ImageFolder, is_picture, picture_folder
from vipe_dag.video.location import Location
from vipe_dag.video.records import VideoSource


def open_source(uri: str) -> VideoSource:
    """The video behind a path or URL; nothing is decoded yet. Raises SourceError: missing, one picture, a folder without pictures."""
    place = Location.of(uri)
    place.require()
    if not place.is_folder():
        if is_picture(place.name):
            raise SourceError(f"{place}: is one picture; give the folder that holds the frames")
        return VideoFile(place)
    videos = [name for name in place.names() if is_video(name)]
    if videos and not _holds_pictures(place):
        raise SourceError(f"{place}: a folder of {len(videos)} video files; name one of them, for example {videos[0]}")
    return ImageFolder(place)


def expand_sources(uris: list[str]) -> list[str]:
    """One URI per video: a folder with video files gives each of them, a folder of pictures and a file give themselves.

    Paths become absolute. A video named twice is taken once. Raises SourceError for a name that is neither, with the remedy.
    """
    found: dict[str, None] = {}
    for uri in uris:
        found.update(dict.fromkeys(_expanded(Location.of(uri))))
    return list(found)


def is_video(name: str) -> bool:
    """Whether the name ends like a video file's."""
    return name.lower().endswith(VIDEO_EXTENSIONS)


def sidecar_stems(place: Location) -> list[str]:
    """Paths that a calibration file of this source may have, without the suffix, nearest first."""
    if not place.is_folder():
        return [os.path.splitext(place.bare)[0]]
    stems = [place.bare]
    inner = picture_folder(place)
    if inner is not None and inner.bare != place.bare:
        stems.insert(0, inner.bare)
    return stems


def _expanded(place: Location) -> list[str]:
    place.require()
    if not place.is_folder():
        return [place.uri]
    videos = [place.child(name).uri for name in place.names() if is_video(name)]
    if videos:
        return videos
    if _holds_pictures(place):
        return [place.uri]
    raise SourceError(f"{place}: neither video files nor pictures in this folder; give a video, or a folder of videos or of pictures")


def _holds_pictures(place: Location) -> bool:
    return TIMES_FILE in place.names() or picture_folder(place) is not None
