"""A folder of pictures as a video: natural order, or the order and times of a TUM rgb.txt."""

from __future__ import annotations

import math
import os
import posixpath
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import SourceError
from vipe_dag.video.location import Location
from vipe_dag.video.picture import PICTURE_EXTENSIONS, PictureHeader, decode_picture, read_header, resized, sample_bits
from vipe_dag.video.records import NOMINAL_FPS, PROBE_MAX_PIXELS, WHOLE, Clip, FrameStream, Limits, SourceFrame, SourceInfo
from vipe_dag.video.selection import Selection

TIMES_FILE = "rgb.txt"
PICTURE_FOLDERS = ("rgb", "images")
"""Where a dataset folder keeps its pictures when it has none itself."""

_GENERIC_NAMES = {"rgb", "images", "image", "imgs", "frames", "color", "colour", "data"}
_MAX_FILE_BYTES = 1 << 30
_MAX_NAME = 1000
_READERS = 4
"""Most pictures that are read at a time."""


@dataclass(frozen=True)
class _Listing:
    """The pictures in order, their times in seconds, and whether those times are only nominal."""

    files: tuple[Location, ...]
    times: tuple[float, ...]
    nominal: bool


class ImageFolder:
    """A VideoSource over jpg, png, tif, bmp or webp files. The folder may be the one with the pictures or the dataset folder above it.

    An rgb.txt (lines `seconds file`, # comments) in the folder or above it gives the list and the times; without one the natural order of
    names at NOMINAL_FPS, flagged `nominal_times`. EXIF orientation is applied. 16-bit pictures become 8-bit by one factor per folder, from
    the bits that the first, middle and last picture use. All pictures must have one size.
    """

    def __init__(self, place: Location) -> None:
        self._place = place
        self._listing = _list(place)

    @property
    def uri(self) -> str:
        return self._place.uri

    @property
    def name(self) -> str:
        """The folder's name, or that of the folder above when it is as generic as `rgb`."""
        parent = self._place.parent.name
        return parent if parent and self._place.name.lower() in _GENERIC_NAMES else self._place.name

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the pictures without suffix, by source index: what datasets name their depth maps and masks after."""
        return tuple(posixpath.splitext(file.name)[0] for file in self._listing.files)

    @property
    def files(self) -> tuple[Location, ...]:
        """The pictures as they are, by source index."""
        return self._listing.files

    @cached_property
    def digest(self) -> str:
        listing = self._listing
        whole = blake2b(digest_size=16)
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), thread_name_prefix="picture") as reading:
            for file, time, content in zip(listing.files, listing.times, reading.map(_content, listing.files), strict=True):
                fields = (file.name, "" if listing.nominal else repr(time), content)
                whole.update("\0".join(fields).encode() + b"\n")
        return whole.hexdigest()

    def probe(self) -> SourceInfo:
        listing, header = self._listing, self._first
        if len(listing.files) < 2:
            raise SourceError(f"{self._place}: holds one picture ({listing.files[0].name}), but a video needs at least 2 frames")
        span = listing.times[-1] - listing.times[0]
        fps = NOMINAL_FPS if listing.nominal else (len(listing.times) - 1) / span
        return SourceInfo(
            width=header.width,
            height=header.height,
            codec=header.format.lower(),
            container="folder",
            duration=span + 1 / fps,
            fps=fps,
            frame_count=len(listing.files),
            rotation=header.rotation,
            mirrored=header.mirrored,
            bit_depth=16 if header.deep else 8,
            nominal_times=listing.nominal,
        )

    def iterate(
        self, clip: Clip = WHOLE, size: tuple[int, int] | None = None, limits: Limits | None = None, pixels: bool = True
    ) -> FrameStream:
        return FrameStream(lambda stream: self._frames(stream, clip, size, limits or Limits(), pixels), limits)

    def _frames(self, stream: FrameStream, clip: Clip, size: tuple[int, int] | None, limits: Limits, pixels: bool) -> Iterator[SourceFrame]:
        self.probe()
        if self._listing.nominal:
            stream.note("nominal_times")
        selection, threads = Selection(clip, limits, str(self._place)), min(_READERS, os.cpu_count() or 1)
        waiting: deque[tuple[int, float, Future[NDArray[np.uint8]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="picture") as reading:
            try:
                for index, time in enumerate(self._listing.times):
                    stream.check_time(self._place)
                    if selection.over(time):
                        break
                    if selection.takes(time):
                        # the header of every picture is checked, also where its pixels are not wanted
                        waiting.append((index, time, reading.submit(self._picture, index, size, limits.max_pixels, pixels)))
                    if len(waiting) > threads:
                        yield _read(*waiting.popleft())
                while waiting:
                    stream.check_time(self._place)
                    yield _read(*waiting.popleft())
            finally:
                reading.shutdown(cancel_futures=True)
        selection.close(len(self._listing.files))

    def reader(self, size: tuple[int, int] | None = None, limits: Limits | None = None) -> ImageReader:
        return ImageReader(self, size, limits or Limits())

    def _picture(self, index: int, size: tuple[int, int] | None, max_pixels: int, pixels: bool = True) -> NDArray[np.uint8]:
        first = self._first
        file = self._listing.files[index]
        content = file.read(_MAX_FILE_BYTES)
        header = read_header(content, file, max_pixels)
        if (header.width, header.height) != (first.width, first.height):
            raise SourceError(
                f"{file}: {header.width}x{header.height}, but {self._listing.files[0].name} is {first.width}x{first.height}; "
                "all pictures of a video must have one size: resize or separate them"
            )
        if not pixels:
            return np.empty((0, 0, 3), dtype=np.uint8)
        rgb = decode_picture(content, header, self._bits if header.deep else 8, file)
        return rgb if size is None else resized(rgb, *size)

    @cached_property
    def _first(self) -> PictureHeader:
        file = self._listing.files[0]
        return read_header(file.read(_MAX_FILE_BYTES), file, PROBE_MAX_PIXELS)

    @cached_property
    def _bits(self) -> int:
        """Bits that the samples of 16-bit pictures use, from three of them."""
        return max(sample_bits(file.read(_MAX_FILE_BYTES), file) for file in self._samples)

    @property
    def _samples(self) -> tuple[Location, Location, Location]:
        files = self._listing.files
        return files[0], files[len(files) // 2], files[-1]

    def focal_35mm(self) -> float | None:
        """EXIF FocalLengthIn35mmFilm in mm, when the first, middle and last picture agree on it."""
        found = {read_header(file.read(_MAX_FILE_BYTES), file, PROBE_MAX_PIXELS).focal_35mm for file in self._samples}
        return found.pop() if len(found) == 1 else None

    def at(self, index: int, size: tuple[int, int] | None, limits: Limits) -> SourceFrame:
        """One frame by its index. Raises SourceError."""
        if not 0 <= index < len(self._listing.files):
            raise SourceError(f"{self._place}: has no frame {index}; the folder changed since it was read, run it again")
        return SourceFrame(index, self._listing.times[index], self._picture(index, size, limits.max_pixels))


def _content(file: Location) -> str:
    digest = blake2b(digest_size=16)
    file.feed(digest.update)
    return digest.hexdigest()


def _read(index: int, time: float, picture: Future[NDArray[np.uint8]]) -> SourceFrame:
    return SourceFrame(index, time, picture.result())


@dataclass(frozen=True)
class ImageReader:
    """Random access to the pictures of a folder."""

    folder: ImageFolder
    size: tuple[int, int] | None
    limits: Limits

    def read(self, index: int, time: float) -> SourceFrame:
        frame = self.folder.at(index, self.size, self.limits)
        if frame.time != time:
            raise SourceError(f"{self.folder.uri}: frame {index} is now at {frame.time} s, it was at {time} s; run it again")
        return frame

    def close(self) -> None:
        """Nothing stays open between reads."""


def is_picture(name: str) -> bool:
    """Whether the name ends like a picture's."""
    return name.lower().endswith(PICTURE_EXTENSIONS)


def picture_folder(place: Location) -> Location | None:
    """The folder that holds the pictures: this one, or its rgb/ or images/; None when there is none."""
    names = place.names()
    if any(is_picture(name) for name in names):
        return place
    for name in PICTURE_FOLDERS:
        if name in names and (inner := place.child(name)).is_folder() and any(is_picture(entry) for entry in inner.names()):
            return inner
    return None


def _list(place: Location) -> _Listing:
    """Raises SourceError: no pictures, or an rgb.txt that is not usable."""
    names = place.names()
    folder = picture_folder(place)
    if TIMES_FILE in names:
        return _timed(place.child(TIMES_FILE), within=None)
    if folder is None:
        kinds = " ".join(PICTURE_EXTENSIONS)
        raise SourceError(f"{place}: no pictures in this folder ({kinds}); give a video file or the folder that holds them")
    above = folder.parent.child(TIMES_FILE)
    if above.bare != place.child(TIMES_FILE).bare and _present(above):
        listing = _timed(above, within=folder)
        if listing.files:
            return listing
    files = tuple(folder.child(name) for name in folder.names() if is_picture(name))
    return _Listing(files, tuple(index / NOMINAL_FPS for index in range(len(files))), nominal=True)


def _present(place: Location) -> bool:
    """A folder above that may not be looked into has no say."""
    try:
        return place.exists()
    except SourceError:
        return False


def _timed(times_file: Location, within: Location | None) -> _Listing:
    """Files and times of an rgb.txt; with `within` only the files directly in that folder. Raises SourceError naming the line."""
    base = times_file.parent
    files: list[Location] = []
    times: list[float] = []
    for number, line in enumerate(times_file.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{times_file}, line {number}"
        stamp, _, name = line.strip().replace(",", " ").partition(" ")
        file = _inside(base, name.strip(), where)
        if within is not None and file.parent.bare != within.bare:
            continue
        time = _seconds(stamp, where)
        if times and time <= times[-1]:
            raise SourceError(f"{where}: {time:g} s does not come after {times[-1]:g} s; sort the file and drop repeats")
        files.append(file)
        times.append(time)
    present = {folder: set(Location.at(base, folder).names()) for folder in sorted({file.parent.bare for file in files})}
    for file in files:
        if file.name not in present[file.parent.bare]:
            raise SourceError(f"{times_file}: names {file.name[:80]!r}, which is missing; restore the picture or take out the line")
    if not files and within is None:
        raise SourceError(f"{times_file}: names no pictures; expected lines of `seconds file`")
    return _Listing(tuple(files), tuple(times), nominal=False)


def _inside(base: Location, name: str, where: str) -> Location:
    path = posixpath.normpath(name.replace("\\", "/"))
    if not name or len(path) > _MAX_NAME or path.startswith(("/", "..")) or "://" in name or not is_picture(path):
        raise SourceError(f"{where}: expected `seconds file` with a picture inside the folder, found {name[:80]!r}")
    return base.child(path)


def _seconds(stamp: str, where: str) -> float:
    try:
        time = float(stamp)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise SourceError(f"{where}: {stamp[:40]!r} is not a time in seconds")
    return time
