"""Where an export goes: written beside its place under another name, it takes its own name when it is complete.

A process that is killed leaves a hidden `.NAME.*.part`, which the next export to that place removes when it is a day old.
"""

from __future__ import annotations

import glob
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vipe_dag.errors import SourceError

_UNFINISHED = ".part"
_LITTER_SECONDS = 86_400.0


@contextmanager
def complete_file(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """The path to write a file to; on leaving the block it becomes `out`, an exception removes it.

    Raises SourceError when `out` exists and `overwrite` is False, when its folder does not exist, and when writing fails.
    """
    out = Path(out)
    if out.is_dir() or (out.exists() and not overwrite):
        raise SourceError(f"{out}: exists already; choose another name{'' if out.is_dir() else ' or give --overwrite'}")
    with _sibling(out) as temporary:
        yield temporary


@contextmanager
def complete_folder(out: str | Path) -> Iterator[Path]:
    """The folder to fill; on leaving the block it becomes `out`, which may be an empty folder; an exception removes it.

    Raises SourceError when `out` exists and is not an empty folder, when its own folder does not exist, and when writing fails.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SourceError(f"{out}: exists already; choose another name or remove it")
    with _sibling(out) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def replaced_folder(out: str | Path) -> Iterator[Path]:
    """The folder to fill; on leaving the block it takes the place of `out`, which stays as it was until then, or for good on an exception.

    Raises SourceError when the folder of `out` does not exist, and when writing fails.
    """
    out, old = Path(out).absolute(), None
    try:
        with _sibling(out) as temporary:
            temporary.mkdir()
            yield temporary
            if out.exists():
                old = _beside(out)
                out.replace(old)
    except BaseException:
        if old is not None and not out.exists():
            old.replace(out)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _remove_litter(out: Path) -> None:
    """Removes what processes that were killed left beside `out`, when it is so old that nobody writes to it any more."""
    limit = time.time() - _LITTER_SECONDS
    for path in out.parent.glob(f".{glob.escape(out.name)}.*{_UNFINISHED}"):
        if path.stat().st_mtime < limit:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _beside(out: Path) -> Path:
    """A name in the same folder that nobody else has."""
    return out.absolute().with_name(f".{out.absolute().name}.{secrets.token_hex(4)}{_UNFINISHED}")


@contextmanager
def _sibling(out: Path) -> Iterator[Path]:
    if not out.absolute().parent.is_dir():
        raise SourceError(f"{out}: the folder {out.parent} does not exist; create it first")
    temporary = _beside(out)
    try:
        _remove_litter(out.absolute())
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise SourceError(
            f"{out}: cannot be written ({error.strerror or error}); choose a place with room that you may write to"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
