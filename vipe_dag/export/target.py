"""Where an export goes: written beside its place under another name, it takes its own name when it is complete."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vipe_dag.errors import SourceError


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
def _sibling(out: Path) -> Iterator[Path]:
    if not out.absolute().parent.is_dir():
        raise SourceError(f"{out}: the folder {out.parent} does not exist; create it first")
    temporary = out.absolute().with_name(f".{out.absolute().name}.{secrets.token_hex(4)}.part")
    try:
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
