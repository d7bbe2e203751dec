"""Names inside a store, and the record that says which generation of an asset is current."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from vipe_dag.config_words import shown
from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.schema import asset_schema
from vipe_dag.video.records import validate_video_id

POINTER = "_current.json"
SOURCE = "_source.json"
ROOT = "zarr.json"
"""Describes a generation's root group, or one of its arrays, to Zarr."""
COMMIT = "commit"
"""Attribute of a generation's root group that holds its own Pointer; present and consolidated only once everything else was written."""

MAX_NAME = 200
_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")
_GENERATION = re.compile(r"([0-9a-f]{8,64})-[0-9a-f]{8}\.zarr")


class Pointer(BaseModel):
    """One complete generation of an asset.

    generation: its directory name; fingerprint: what it was computed from and by; run_id: who computed it, if named; checks: outcomes as
    JSON; bytes: stored size; written_at: UTC time of the commit.
    """

    model_config = ConfigDict(frozen=True)

    video_id: str
    asset: str
    generation: str
    fingerprint: str
    run_id: str | None
    checks: tuple[dict[str, Any], ...] = ()
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    written_at: AwareDatetime


def valid_video_id(video_id: str) -> str:
    """The id itself. Raises StoreError unless it is a plain name that stays inside the store."""
    try:
        return validate_video_id(video_id)
    except ConfigError as error:
        raise StoreError(str(error)) from error


def valid_fingerprint(fingerprint: str) -> str:
    """The fingerprint itself. Raises StoreError unless it is 8 to 64 lower-case hex digits."""
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise StoreError(f"{fingerprint!r} is not a fingerprint: expected 8 to 64 lower-case hex digits")
    return fingerprint


def asset_key(video_id: str, asset: str) -> str:
    """Key of an asset's directory. Raises StoreError for names that are not ids or assets."""
    return f"{valid_video_id(video_id)}/{asset_schema(asset).name}"


def new_generation(fingerprint: str) -> str:
    """A directory name that no other writer will choose."""
    return f"{valid_fingerprint(fingerprint)}-{secrets.token_hex(4)}.zarr"


def generation_fingerprint(name: str) -> str | None:
    """The fingerprint in a generation's directory name; None when the name is something else."""
    match = _GENERATION.fullmatch(name)
    return match[1] if match else None


def parse_pointer(content: bytes, where: str, key: str | None = None) -> Pointer:
    """Raises StoreError with the remedy when the content is not a pointer of a generation, or not of the asset at `key`."""
    try:
        pointer = Pointer.model_validate_json(content)
        if generation_fingerprint(pointer.generation) != pointer.fingerprint:
            raise ValueError(f"generation {shown(pointer.generation)} does not belong to fingerprint {shown(pointer.fingerprint)}")
        if key is not None and key != f"{pointer.video_id}/{pointer.asset}":
            raise ValueError(f"it speaks of {shown(f'{pointer.video_id}/{pointer.asset}')}")
    except (ValidationError, ValueError) as error:
        first = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
        raise StoreError(
            f"{where}: not a readable pointer ({first}). No data is lost: materialize the asset again, or delete this file "
            "and point the store at a complete generation beside it"
        ) from error
    return pointer
