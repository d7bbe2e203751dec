"""Which videos are not what the configuration asks for: what is stored, by fingerprint, against what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from vipe_dag.checks import Check, failed_blocking
from vipe_dag.config import PipelineConfig
from vipe_dag.graph import STAGES, Fingerprinter, SourceIdentity, canonical, code_version, config_digest, downstream

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore
    from vipe_dag.video import SourceRecord

Versions = Mapping[str, Mapping[str, str]]
"""Per stage, per video, the fingerprint of what is stored."""


@dataclass(frozen=True)
class Difference:
    """A video that is not as wanted. stale: stages to bring there, in running order; redo: one of them has another result already."""

    video_id: str
    wanted: Mapping[str, str]
    stale: tuple[str, ...]
    redo: bool

    @property
    def request(self) -> str:
        """Names this video in this wanted state, whichever stages are behind."""
        return request_digest(self.video_id, self.wanted)


class Targets:
    """The wanted fingerprints of many videos, remembered between calls while the configuration stays."""

    def __init__(self) -> None:
        self._config = ""
        self._fingerprinter: Fingerprinter | None = None
        self._known: dict[SourceIdentity, dict[str, str]] = {}

    def of(self, records: Mapping[str, SourceRecord], config: PipelineConfig) -> dict[str, dict[str, str]]:
        """Per video the fingerprint wanted of each stage."""
        digest = config_digest(config)
        if self._fingerprinter is None or digest != self._config:
            self._config, self._fingerprinter, self._known = digest, Fingerprinter(config), {}
        fingerprinter = self._fingerprinter
        return {video_id: self._wanted(record, fingerprinter) for video_id, record in records.items()}

    def _wanted(self, record: SourceRecord, fingerprinter: Fingerprinter) -> dict[str, str]:
        source = SourceIdentity(record.digest, record.start, record.end, record.stride, record.given_intrinsics_digest)
        found = self._known.get(source)
        if found is None:
            found = self._known[source] = fingerprinter.of(source)
        return found


def differences(wanted: Mapping[str, Mapping[str, str]], stored: Versions) -> list[Difference]:
    """The videos of `wanted`, in its order, of which some stage is stored with another fingerprint or not at all."""
    found = []
    for video_id, targets in wanted.items():
        stale = tuple(stage.name for stage in STAGES if stored[stage.name].get(video_id) != targets[stage.name])
        if stale:
            found.append(Difference(video_id, targets, stale, any(video_id in stored[name] for name in stale)))
    return found


def request_digest(video_id: str, wanted: Mapping[str, str]) -> str:
    """16 hex digits of a video and what is wanted of all its stages."""
    return blake2b(canonical({"video": video_id, "wanted": dict(wanted)}).encode(), digest_size=8).hexdigest()


def change_digest(config: PipelineConfig) -> str:
    """8 hex digits of configuration and algorithms together: what a person approves when many videos would be computed anew."""
    return blake2b(canonical([code_version(stage.name, config) for stage in STAGES]).encode(), digest_size=4).hexdigest()


def without_blocked(store: VideoStore, difference: Difference) -> Difference:
    """Without the stages below a current result that failed a blocking check: they would be built on what is known to be wrong."""
    stale = set(difference.stale)
    for stage in STAGES:
        if stage.name in difference.stale or not stale.intersection(downstream(stage.name)):
            continue
        pointer = store.current(difference.video_id, stage.name)
        if pointer is not None and failed_blocking([Check.from_json(check) for check in pointer.checks]):
            stale.difference_update(downstream(stage.name))
    return replace(difference, stale=tuple(name for name in difference.stale if name in stale))


def bring_back(store: VideoStore, difference: Difference) -> bool:
    """Points every stale stage to the generation that has the wanted fingerprint, when all have one; else changes nothing."""
    if not all(store.find(difference.video_id, name, difference.wanted[name]) for name in difference.stale):
        return False
    return all([store.point(difference.video_id, name, difference.wanted[name]) for name in difference.stale])


def coverage(wanted: Mapping[str, Mapping[str, str]], stored: Versions, stage: str) -> tuple[int, int, int]:
    """Of one stage: videos at the wanted fingerprint, videos with another one, videos with none."""
    found = [stored[stage].get(video_id) for video_id in wanted]
    current = sum(have == targets[stage] for have, targets in zip(found, wanted.values(), strict=True))
    missing = sum(have is None for have in found)
    return current, len(found) - current - missing, missing
