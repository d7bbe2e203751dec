"""What went wrong with videos of a shard, kept beside its catalogue: a video is entered before it is computed, and leaves when it is done.

So a video that ends the process is found by the next run as one that failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from vipe_dag.errors import StoreError
from vipe_dag.fleet.shards import Shard

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

FOLDER = "catalogue"
"""Note folder `<root>/_catalogue` of everything that is kept about shards."""
DIED = "the process ended while this video was computed"


class Failure(BaseModel):
    """Of one video. request: vipe_dag.stale.request_digest of what was wanted; tries: runs in which it failed; stage: where, if known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: str
    tries: int
    reason: str
    stage: str | None = None


class Journal(BaseModel):
    """Videos of one shard that failed, or are being computed."""

    model_config = ConfigDict(extra="forbid")

    failures: dict[str, Failure] = {}


def read_journal(store: VideoStore, shard: Shard) -> Journal:
    """Raises StoreError for a document that is damaged."""
    content = store.note(_name(shard))
    if content is None:
        return Journal()
    try:
        return Journal.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(
            f"{store.root}/_{_name(shard)}: not readable ({error.errors()[0]['msg']}); delete it, and videos that failed are tried again"
        ) from error


def write_journal(store: VideoStore, shard: Shard, journal: Journal) -> None:
    """Replaces what is written down of a shard, as a whole."""
    store.write_note(_name(shard), (journal.model_dump_json(indent=1) + "\n").encode())


def _name(shard: Shard) -> str:
    return f"{FOLDER}/{shard.name}.json"
