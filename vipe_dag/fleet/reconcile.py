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
from vipe_dag.fleet.catalogue import code_versions, codes_of, passed_over, read_file
from vipe_dag.fleet.rows import read_records
from vipe_dag.fleet.shards import Shard
from vipe_dag.graph import STAGES, Fingerprinter, SourceIdentity

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
    fingerprinter, codes = Fingerprinter(config), code_versions(config)
    for shard, video_ids in videos.items():
        yield _state(store, shard, video_ids, fingerprinter, codes, attempts)


def _state(
    store: VideoStore, shard: Shard, video_ids: Sequence[str], fingerprinter: Fingerprinter, codes: Mapping[str, str], attempts: int
) -> ShardState:
    table = read_file(store, shard, ["video_id", "behind", "tries", *_SOURCE, *_STORED])
    rows = {} if table is None else _rows(table, fingerprinter, codes, attempts)
    passed = [] if table is None else passed_over(table)
    ignored = set(passed) - set(read_records(store, passed)[0])
    video_ids = [video_id for video_id in video_ids if video_id not in ignored]
    found: dict[Standing, list[str]] = {"current": [], "new": [], "stale": [], "given_up": []}
    for video_id in video_ids:
        found[rows.get(video_id, "new")].append(video_id)
    request = blake2b("\n".join((shard.name, *codes.values(), *found["new"], "", *found["stale"])).encode(), digest_size=8).hexdigest()
    return ShardState(shard, len(video_ids), **{standing: len(names) for standing, names in found.items()}, request=request)


def _rows(table: pa.Table, fingerprinter: Fingerprinter, codes: Mapping[str, str], attempts: int) -> dict[str, Standing]:
    """How each video of a catalogue stands. Under the configuration that it was written for, it says so itself.

    Under another one, what was as wanted is so no longer, since every fingerprint depends on the code version that changed; of what was
    not, the fingerprints are compared.
    """
    late = pc.greater(pc.list_value_length(table["behind"]), 0)
    given_up = pc.greater_equal(pc.fill_null(table["tries"], 0), attempts).to_pylist()
    if codes_of(table) == codes:
        behind = late.to_pylist()
    else:
        compared = iter(_differ(table.filter(late), fingerprinter))
        behind = [next(compared) if was_late else True for was_late in late.to_pylist()]
        given_up = [False] * len(behind)
    facts = zip(table["video_id"].to_pylist(), behind, given_up, pc.is_null(table["frames_fingerprint"]).to_pylist(), strict=True)
    return {
        name: "current" if not is_behind else "given_up" if gone else "new" if missing else "stale"
        for name, is_behind, gone, missing in facts
    }


def _differ(table: pa.Table, fingerprinter: Fingerprinter) -> list[bool]:
    """Per row whether some stage is stored with another fingerprint than the wanted one, or not at all."""
    stored = zip(*(table[name].to_pylist() for name in _STORED), strict=True)
    sources = zip(*(table[name].to_pylist() for name in _SOURCE), strict=True)
    return [
        source[0] is None or have != tuple(fingerprinter.of(SourceIdentity(*source)).values())
        for source, have in zip(sources, stored, strict=True)
    ]
