"""Which shards have something to do: what their catalogues say against what the configuration asks for, shard by shard.

Nothing of the videos themselves is read. A video is new when its shard's catalogue has no row of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import pyarrow.compute as pc

from vipe_dag.config import PipelineConfig
from vipe_dag.fleet.catalogue import codes_of, passed_over, read_file
from vipe_dag.fleet.rows import read_records
from vipe_dag.fleet.shards import Shard
from vipe_dag.graph import STAGES, Fingerprinter, SourceIdentity
from vipe_dag.stale import change_digest

if TYPE_CHECKING:
    import pyarrow as pa

    from vipe_dag.store import VideoStore

Standing = Literal["current", "new", "stale", "given_up"]

_SOURCE = ["digest", "start_s", "end_s", "stride", "calibration_digest"]
_STORED = [f"{stage.name}_fingerprint" for stage in STAGES]


@dataclass(frozen=True)
class ShardState:
    """How far one shard is. Its videos are current, new (without a result), stale (some stage stored otherwise), or given up.

    Folders that are no videos do not count. request: digest of what a run would have to bring about, the same while nothing changes.
    """

    shard: Shard
    videos: int
    current: int
    new: int
    stale: int
    given_up: int
    request: str

    @property
    def due(self) -> bool:
        return self.new + self.stale > 0


def shard_states(store: VideoStore, videos: Mapping[Shard, Sequence[str]], config: PipelineConfig, attempts: int) -> Iterator[ShardState]:
    """The state of each shard. videos: see vipe_dag.fleet.shards.videos_of; attempts: failures after which a video is left alone."""
    fingerprinter, codes = Fingerprinter(config), change_digest(config)
    for shard, video_ids in videos.items():
        yield _state(store, shard, video_ids, fingerprinter, codes, attempts)


def _state(
    store: VideoStore, shard: Shard, video_ids: Sequence[str], fingerprinter: Fingerprinter, codes: str, attempts: int
) -> ShardState:
    table = read_file(store, shard, ["video_id", "behind", "tries", *_SOURCE, *_STORED])
    rows = {} if table is None else _rows(table, fingerprinter, codes, attempts)
    passed = [] if table is None else passed_over(table)
    ignored = set(passed) - set(read_records(store, passed)[0])
    video_ids = [video_id for video_id in video_ids if video_id not in ignored]
    found: dict[Standing, list[str]] = {"current": [], "new": [], "stale": [], "given_up": []}
    for video_id in video_ids:
        found[rows.get(video_id, "new")].append(video_id)
    request = blake2b("\n".join((shard.name, codes, *found["new"], "", *found["stale"])).encode(), digest_size=8).hexdigest()
    return ShardState(shard, len(video_ids), **{standing: len(names) for standing, names in found.items()}, request=request)


def _rows(table: pa.Table, fingerprinter: Fingerprinter, codes: str, attempts: int) -> dict[str, Standing]:
    """How each video of a catalogue stands. Under the configuration that it was written for, it says so itself."""
    names, tries = table["video_id"].to_pylist(), table["tries"].to_pylist()
    behind = pc.list_value_length(table["behind"]).to_pylist()
    if codes_of(table) == codes:
        given_up = [(count or 0) >= attempts for count in tries]
    else:
        behind, given_up = _behind(table, fingerprinter), [False] * len(names)
    return {
        name: "current" if not late else "given_up" if gone else "new" if late == len(STAGES) else "stale"
        for name, late, gone in zip(names, behind, given_up, strict=True)
    }


def _behind(table: pa.Table, fingerprinter: Fingerprinter) -> list[int]:
    """Per row the number of stages that are stored with another fingerprint than the wanted one, or not at all."""
    stored = zip(*(table[name].to_pylist() for name in _STORED), strict=True)
    sources = zip(*(table[name].to_pylist() for name in _SOURCE), strict=True)
    found = []
    for source, have in zip(sources, stored, strict=True):
        wanted = fingerprinter.of(SourceIdentity(*source)).values() if source[0] is not None else (None,) * len(STAGES)
        found.append(sum(one is None or one != other for one, other in zip(have, wanted, strict=True)))
    return found
