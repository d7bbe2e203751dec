"""One file or folder, on disk or behind any fsspec URL, seen the same way; whatever goes wrong there becomes a SourceError."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from vipe_dag.errors import SourceError
from vipe_dag.urls import file_system, public, redacted, refuse_credentials

READ_BYTES = 1 << 22
"""Size of one read when a whole file is streamed."""

_MAX_TEXT_BYTES = 1 << 26
_GONE = (404, 410)
"""HTTP answers that mean missing; fsspec calls every failure of a web server so."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Location:
    """uri: absolute path or URL, as it can be opened again; path: the name inside the file system `fs`."""

    uri: str
    path: str
    fs: Any

    @classmethod
    def of(cls, uri: str) -> Location:
        """Resolve a path (relative, ~) or a URL. Raises SourceError for an unknown protocol."""
        if "\0" in uri or not uri.strip():
            raise SourceError(f"{uri!r}: not a path or URL; give a video file, a folder of pictures, or a URL")
        if uri.startswith("file://"):
            uri = uri.removeprefix("file://")
        if "://" not in uri:
            path = os.path.abspath(os.path.expanduser(uri))
            fs, _ = file_system(f"file://{path}")
            return cls(path, path, fs)
        refuse_credentials(uri, SourceError)
        try:
            fs, path = file_system(uri)
        except (ValueError, ImportError) as error:
            raise SourceError(f"{public(uri)}: cannot open this kind of URL ({redacted(str(error))})") from error
        return cls(uri, path, fs)

    def __str__(self) -> str:
        """For messages: without the credentials that a URL may carry."""
        return public(self.uri)

    @property
    def local(self) -> bool:
        return "://" not in self.uri

    @property
    def _http(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """Last part of the path, without the query of a URL."""
        name = posixpath.basename(self.bare)
        return unquote(name) if self._http else name

    @property
    def parent(self) -> Location:
        return self.at(posixpath.dirname(self.bare))

    def child(self, *names: str) -> Location:
        return self.at(posixpath.join(self.bare, *names))

    def at(self, path: str) -> Location:
        """Another path of the same file system."""
        if self.local:
            return Location(path, path, self.fs)
        if self._http:
            old = urlsplit(self.uri)
            uri = urlunsplit((old.scheme, old.netloc, path, old.query, ""))
            return Location(uri, uri, self.fs)
        return Location(str(self.fs.unstrip_protocol(path)), path, self.fs)

    @property
    def bare(self) -> str:
        """The path without the query of a URL and without a slash at the end: what `at` takes."""
        path = urlsplit(self.uri).path if self._http else self.path
        return path.rstrip("/") or "/"

    def exists(self) -> bool:
        """Whether it can be seen; False also where the server refuses to tell."""
        return bool(self.fs.exists(self.path))

    def require(self) -> None:
        """Raises SourceError unless there is something readable here."""
        self._guard(lambda: self.fs.info(self.path))

    def is_folder(self) -> bool:
        """Web servers have files only."""
        return not self._http and bool(self._guard(lambda: self.fs.isdir(self.path)))

    def names(self) -> list[str]:
        """Visible entries of a folder, in natural order (img2 before img10)."""
        from natsort import natsorted

        found = self._guard(lambda: self.fs.ls(self.path, detail=False))
        names = {posixpath.basename(str(entry).rstrip("/")) for entry in found}
        return cast(list[str], natsorted(name for name in names if name and not name.startswith(".")))

    def size(self) -> int | None:
        """Bytes, or None where the server does not tell."""
        size = self._guard(lambda: self.fs.size(self.path))
        return None if size is None else int(size)

    def open(self) -> BinaryIO:
        """A stream of the bytes; each read raises SourceError instead of what the file system raises."""
        return cast(BinaryIO, _Guarded(self, self._guard(lambda: self.fs.open(self.path, "rb"))))

    def read(self, max_bytes: int) -> bytes:
        """The whole content. Raises SourceError above max_bytes."""
        pieces: list[bytes] = []
        with self.open() as stream:
            while piece := stream.read(READ_BYTES):
                pieces.append(piece)
                if sum(map(len, pieces)) > max_bytes:
                    raise SourceError(f"{self}: larger than the {max_bytes} bytes that such a file may have")
        return b"".join(pieces)

    def read_text(self) -> str:
        """The content as UTF-8."""
        try:
            return self.read(_MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"{self}: not a text file ({error})") from error

    def feed(self, update: Callable[[bytes], object]) -> None:
        """Pass the whole content through `update`, a piece at a time."""
        with self.open() as stream:
            while piece := stream.read(READ_BYTES):
                update(piece)

    def guard(self, error: Exception) -> SourceError:
        """What went wrong here, as one line with a remedy."""
        if isinstance(error, SourceError):
            return error
        reason: BaseException = error
        if self._http and isinstance(error, FileNotFoundError) and getattr(error.__cause__, "status", None) not in _GONE:
            reason = error.__cause__ or error
        elif isinstance(error, FileNotFoundError):
            return SourceError(f"{self}: no such file or folder; check the path")
        if isinstance(error, PermissionError):
            return SourceError(f"{self}: no permission to read it; change its mode or the credentials")
        said = redacted(" ".join(str(reason).split())) or "no reason given"
        return SourceError(f"{self}: cannot be read ({type(reason).__name__}: {said[:200]}); check address, network and credentials")

    def _guard(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except Exception as error:  # file systems raise what their client library raises: OSError, aiohttp, botocore, ...
            raise self.guard(error) from (None if self._http else error)  # where a server redirects to may be signed


class _Guarded:
    """A binary file whose failures are SourceErrors, so that a lost connection is not taken for the end of a truncated video."""

    def __init__(self, place: Location, stream: Any) -> None:
        self._place = place
        self._stream = stream
        self.name = str(place)

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, self._place._guard(lambda: self._stream.read(size)))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._place._guard(lambda: self._stream.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._stream.tell())

    def seekable(self) -> bool:
        """Whether any position can be reached; some web servers only send from the start. Asked before reading."""
        try:
            self._stream.seek(1)
            self._stream.seek(0)
        except (OSError, ValueError):
            return False
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
