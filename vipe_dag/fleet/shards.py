"""Which shard a video belongs to: decided by its id alone, so that no registry has to be kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from vipe_dag.errors import ConfigError

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore

_WORD = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, order=True)
class Shard:
    """One of `count` shards, numbered from 0."""

    number: int
    count: int

    @property
    def name(self) -> str:
        """`03-of-64`: the partition in Dagster and the name of its files; names of one count sort as numbers."""
        return f"{self.number:0{len(str(self.count - 1))}d}-of-{self.count}"


def all_shards(count: int) -> list[Shard]:
    """Every shard of a division into `count`."""
    return [Shard(number, count) for number in range(count)]


def shard_number(video_id: str, count: int) -> int:
    """The shard of a video among `count`: the first 8 bytes of BLAKE2b of its id, as a big-endian number, modulo `count`."""
    return int.from_bytes(blake2b(video_id.encode(), digest_size=8).digest(), "big") % count


def parse_shard(text: str, count: int) -> Shard:
    """`3/64` where the store has 64 shards. Raises ConfigError for other text, another count or a number that is none of them."""
    match = _WORD.fullmatch(text)
    if match is None:
        raise ConfigError(f"--shard {text}: expected K/N, for example 0/{count}")
    number, given = int(match[1]), int(match[2])
    if given != count:
        raise ConfigError(
            f"--shard {text}: the store has {count} shards; write `fleet: {{shards: {given}}}` in its operations.yaml for {given}"
        )
    if number >= count:
        raise ConfigError(f"--shard {text}: shards are numbered 0 to {count - 1}")
    return Shard(number, count)


def members(video_ids: Iterable[str], count: int) -> dict[Shard, list[str]]:
    """All shards with their videos, in the order given."""
    found: dict[Shard, list[str]] = {shard: [] for shard in all_shards(count)}
    by_number = list(found.values())
    for video_id in video_ids:
        by_number[shard_number(video_id, count)].append(video_id)
    return found


def videos_of(store: VideoStore, count: int) -> dict[Shard, list[str]]:
    """All shards with the ids that the store has, from one listing of its root, without those whose file has other content by now."""
    from vipe_dag.ingest import read_ledger

    superseded = read_ledger(store).superseded
    return members((name for name in store.names() if name not in superseded), count)
