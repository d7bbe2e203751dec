"""Small texts that a person writes, a configuration for instance: read whole from a path or URL, absent or not, without a listing."""

from __future__ import annotations

from pathlib import Path

from vipe_dag.errors import ConfigError
from vipe_dag.urls import file_system, public, redacted, refuse_credentials

MAX_BYTES = 1 << 20


def read_document(place: str) -> str | None:
    """The text at a path or URL; None when there is none. Raises ConfigError: no access, not UTF-8, over MAX_BYTES, credentials."""
    refuse_credentials(place, ConfigError)
    try:
        content = _object(place) if "://" in place else Path(place).expanduser().read_bytes()
    except FileNotFoundError:
        return None
    except Exception as error:  # file systems raise what their client library raises
        said = redacted(" ".join(str(error).split())) or "no reason given"
        raise ConfigError(
            f"{public(place)}: cannot be read ({type(error).__name__}: {said[:200]}); check address and permissions"
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{public(place)}: larger than the {MAX_BYTES} bytes that such a file may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{public(place)}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def _object(url: str) -> bytes:
    filesystem, path = file_system(url)
    return bytes(filesystem.cat_file(path))
