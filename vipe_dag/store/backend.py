"""Where a store lives: whole-object reads, atomic replacement, listing, and a Zarr store below a key. Keys are relative and use `/`."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vipe_dag.errors import StoreError
from vipe_dag.urls import file_system, open_options, redacted, refuse_credentials, version_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from zarr.abc.store import Store

Change = Callable[[bytes | None], bytes | None]
"""From the current content of an object (None = absent) to its next content; None leaves it as it is."""


CLIENTS = frozenset({"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google"})
"""Packages behind fsspec's object stores whose exceptions are no OSError: no credentials, no connection, a proxy that refuses."""


class Backend(Protocol):
    """A place that can hold a store."""

    @property
    def root(self) -> str:
        """The path or URL that a person would type."""

    def read(self, key: str) -> bytes | None:
        """The content of one object, or None when there is none."""

    def read_part(self, key: str, start: int, end: int | None) -> bytes | None:
        """Bytes start..end of one object, None when there is none; a negative start counts from its end, end None reads to it."""

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The contents of those objects that there are, fetched at once where that is faster."""

    def update(self, key: str, change: Change) -> None:
        """Replaces one object in one step, durably: readers see the old content or the new, never a part."""

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Writes objects that nobody reads before all are there, at once where that is faster; `sync` makes them durable."""

    def children(self, key: str) -> list[str]:
        """Sorted names directly below a key; empty when there is nothing."""

    def versions(self, key: str) -> dict[str, str]:
        """The names of the objects directly below a key, each with a text that changes when the object is replaced."""

    def objects(self, key: str) -> dict[str, tuple[int, float]]:
        """Every object below a key: its size in bytes and when it was written, seconds since the epoch."""

    def sync(self, key: str) -> None:
        """Makes an object, or everything below a key, survive a power cut."""

    def remove(self, key: str) -> None:
        """Removes an object, or everything below a key; nothing there is no error."""

    def zarr(self, key: str, *, read_only: bool) -> Store:
        """The Zarr store below a key."""

    def arrow(self, key: str) -> tuple[FileSystem, str]:
        """A file system of pyarrow, and the path of a key in it."""

    def url(self, key: str) -> str:
        """What other programs open to reach a key."""


def open_backend(root: str | Path, storage_options: dict[str, Any] | None = None) -> Backend:
    """A local path (or file:// URL), or any URL that fsspec knows: memory://, s3://, gs://, az://.

    storage_options go to the fsspec file system. Raises StoreError when the URL's protocol is unknown or its package is not installed.
    """
    text = os.fspath(root)
    refuse_credentials(text, StoreError)
    for scheme in ("file://", "local://"):
        text = text.removeprefix(scheme)
    if "://" not in text:
        if storage_options:
            raise StoreError(f"{text}: a local store takes no storage options, found {', '.join(storage_options)}")
        return LocalBackend(Path(text))
    return FsspecBackend(text, storage_options or {})


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns a failure of the disk or the service into a StoreError that says what was being done."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        said = redacted(" ".join(str(getattr(error, "strerror", None) or error).split()))
        raise StoreError(f"{what}: the storage failed ({said}); check address, credentials, permissions and space") from None


class LocalBackend:
    """A directory. An object is replaced by a temporary file, fsync, rename and fsync of the directory. Raises StoreError for a file."""

    TEMPORARY = ".tmp"

    def __init__(self, directory: Path) -> None:
        self._directory = directory.expanduser().absolute()
        if self._directory.exists() and not self._directory.is_dir():
            raise StoreError(f"{self._directory}: is a file; a store is a directory")

    @property
    def root(self) -> str:
        return str(self._directory)

    def _path(self, key: str) -> Path:
        """Raises StoreError where a symbolic link leads out of the store: who can write there must not reach what is elsewhere."""
        path = self._directory / key
        if self._leads_out(path):
            raise StoreError(f"{path}: a symbolic link leads out of the store; replace it by what it names, or link the whole store")
        return path

    def _name(self, key: str) -> str:
        """`_path` as text, without a Path where the key itself says that it stays in the store: to make one takes as long as to read."""
        if ".." in key or key.startswith("/") or os.sep != "/" or self._linked(key.split("/")):
            return str(self._path(key))
        return f"{self._directory}/{key}"

    def _leads_out(self, path: Path) -> bool:
        own, parts = self._directory.parts, path.parts
        if parts[: len(own)] == own and ".." not in parts[len(own) :] and not self._linked(parts[len(own) :]):
            return False
        root = os.path.realpath(self._directory)
        return os.path.commonpath([root, os.path.realpath(path)]) != root

    def _linked(self, parts: Sequence[str]) -> bool:
        """Whether one of these names, each below the one before it, is a symbolic link. To resolve whole paths takes ten times as long."""
        here = str(self._directory)
        for part in parts:
            here = f"{here}{os.sep}{part}"
            if os.path.islink(here):
                return True
        return False

    def read(self, key: str) -> bytes | None:
        try:
            with open(self._name(key), "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def read_part(self, key: str, start: int, end: int | None) -> bytes | None:
        try:
            with (self._directory / key).open("rb", buffering=0) as file:
                position = file.seek(start, os.SEEK_END if start < 0 else os.SEEK_SET)
                return file.read(-1 if end is None else end - position)
        except FileNotFoundError:
            return None

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        return {key: content for key in keys if (content := self.read(key)) is not None}

    def update(self, key: str, change: Change) -> None:
        path = self._path(key)
        with _UPDATES:
            content = change(self.read(key))
            if content is None:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{self.TEMPORARY}")
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _fsync_directory(path.parent)

    def write(self, objects: Mapping[str, bytes]) -> None:
        for key, content in objects.items():
            name = self._name(key)
            os.makedirs(os.path.dirname(name), exist_ok=True)
            with open(name, "wb") as file:
                file.write(content)

    def children(self, key: str) -> list[str]:
        try:
            entries = list(os.scandir(self._path(key)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        kept = (entry for entry in entries if not entry.name.endswith(self.TEMPORARY))
        return sorted(entry.name for entry in kept if not (entry.is_symlink() and self._leads_out(Path(entry.path))))

    def versions(self, key: str) -> dict[str, str]:
        found: dict[str, str] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(self._path(key)):
                if entry.is_file(follow_symlinks=False) and not entry.name.endswith(self.TEMPORARY):
                    with suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        found[entry.name] = f"{facts.st_mtime_ns}-{facts.st_size}-{facts.st_ino}"
        return found

    def objects(self, key: str) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for folder, _, names in os.walk(self._path(key)):
            for name in names:
                path = Path(folder, name)
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                found[path.relative_to(self._directory).as_posix()] = (facts.st_size, facts.st_mtime)
        return found

    def sync(self, key: str) -> None:
        top = self._path(key)
        below = list(os.walk(top))
        files = [os.path.join(folder, name) for folder, _, names in below for name in names]
        with ThreadPoolExecutor(_FLUSHES) as pool:
            list(pool.map(_fsync, [str(top)] if top.is_file() else files))
            list(pool.map(_fsync_directory, [folder for folder, _, _ in below]))
        for parent in (top.parent, *(top.parent.parents)):
            _fsync_directory(parent)
            if parent == self._directory:
                break

    def remove(self, key: str) -> None:
        path = self._directory / key
        if path.is_symlink():
            path.unlink()
        elif self._path(key).is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def zarr(self, key: str, *, read_only: bool) -> Store:
        from zarr.storage import LocalStore

        return LocalStore(self._path(key), read_only=read_only)

    def arrow(self, key: str) -> tuple[FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self._directory / key)

    def url(self, key: str) -> str:
        return str(self._directory / key)


class FsspecBackend:
    """Any file system of fsspec. An object is replaced by one PUT, conditional on what was read where the service offers that (S3)."""

    ATTEMPTS = 20
    REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")
    """S3's words for a conditional PUT that lost a race."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        self._url = url.rstrip("/") if not url.endswith("://") else url
        self._options = storage_options
        try:
            with storage_errors(url):
                self._fs, self._base = file_system(self._url, **storage_options)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: cannot open this kind of store: {redacted(str(error))}") from error

    @property
    def root(self) -> str:
        return self._url

    def _path(self, key: str) -> str:
        return f"{self._base.rstrip('/')}/{key}".rstrip("/")

    @contextmanager
    def _at(self, key: str) -> Iterator[str]:
        """The path of a key, while something is done with it. Absence passes as FileNotFoundError, every other failure is a StoreError."""
        try:
            yield self._path(key)
        except (FileNotFoundError, NotADirectoryError) as error:
            if _code(error) == "NoSuchBucket":
                raise StoreError(f"{self._url}: there is no such bucket; make it, or check the name and AWS_ENDPOINT_URL") from None
            raise
        except Exception as error:
            with storage_errors(self.url(key)):
                raise error

    def read(self, key: str) -> bytes | None:
        try:
            with self._at(key) as path:
                return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            return None

    def read_part(self, key: str, start: int, end: int | None) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self._path(key), start=start, end=end))
        except FileNotFoundError:
            return None

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        with self._at(""):
            found = self._fs.cat([self._path(key) for key in keys], on_error="return")
        contents: dict[str, bytes] = {}
        for key in keys:
            content = found[self._path(key)]
            if isinstance(content, bytes):
                contents[key] = content
                continue
            with suppress(FileNotFoundError), self._at(key):
                raise content
        return contents

    def update(self, key: str, change: Change) -> None:
        conditional = "s3" in _protocols(self._fs)
        with _UPDATES:
            for _ in range(self.ATTEMPTS):
                etag = self._etag(key) if conditional else None
                content = change(self.read(key))
                if content is None:
                    return
                if not conditional:
                    with self._at(key) as path:
                        self._fs.pipe_file(path, content)
                    return
                if self._put_if(key, content, etag):
                    return
        raise StoreError(f"{self.url(key)}: lost {self.ATTEMPTS} races against other writers of this object; run again")

    def write(self, objects: Mapping[str, bytes]) -> None:
        with self._at(""):
            self._fs.pipe({self._path(key): content for key, content in objects.items()})

    def _etag(self, key: str) -> str | None:
        try:
            with self._at(key) as path:
                return str(self._fs.info(path)["ETag"])
        except FileNotFoundError:
            return None

    def _put_if(self, key: str, content: bytes, etag: str | None) -> bool:
        """A PUT that S3 refuses when the object changed since its ETag was read, or exists although it did not. False: refused."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._at(key) as path:
            try:
                self._fs.pipe_file(path, content, **condition)
            except OSError as error:
                if not isinstance(error, FileExistsError) and _code(error) not in self.REFUSED:
                    raise
                return False
        return True

    def children(self, key: str) -> list[str]:
        try:
            with self._at(key) as path:
                names = self._fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in names} - {""})

    def versions(self, key: str) -> dict[str, str]:
        try:
            with self._at(key) as path:
                found = self._fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {str(facts["name"]).rpartition("/")[2]: f"{version_of(facts)}-{facts['size']}" for facts in found if facts["type"] == "file"}

    def objects(self, key: str) -> dict[str, tuple[int, float]]:
        base = len(self._base.rstrip("/")) + 1
        with self._at(key) as path:
            found = self._fs.find(path, detail=True)
        return {path[base:]: (int(info["size"]), _written(info)) for path, info in found.items()}

    def sync(self, key: str) -> None:
        """Nothing to do: a PUT that was answered is durable."""

    def remove(self, key: str) -> None:
        with self._at(key) as path:
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def zarr(self, key: str, *, read_only: bool) -> Store:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.url(key), storage_options=open_options(self._url, self._options), read_only=read_only)

    def arrow(self, key: str) -> tuple[FileSystem, str]:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._fs)), self._path(key)

    def url(self, key: str) -> str:
        return f"{self._url.rstrip('/')}/{key}" if not self._url.endswith("://") else self._url + key


_FLUSHES = 8
"""Files that are flushed to a disk at a time: it waits for all of them together."""

_UPDATES = threading.Lock()
"""Serialises read-and-replace within this process; between processes S3 has its conditions and a disk has the last rename."""


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _code(error: BaseException) -> str:
    """What S3 calls the reason of a failure that s3fs has translated; empty elsewhere."""
    return str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", ""))


def _written(info: dict[str, Any]) -> float:
    """When an object was last written, seconds since the epoch. Services name it differently; unknown counts as now, hence as young."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "modified", "created"):
        value = info.get(name)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return time.time()


def _fsync_directory(path: str | Path) -> None:
    if os.name != "nt":  # Windows has no directory handles to flush
        _fsync(path)


def _fsync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
