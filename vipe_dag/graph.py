"""The order of the stages and the fingerprint of each result: the one home of both facts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any

from pydantic import BaseModel

from vipe_dag.config import PipelineConfig

FINGERPRINT_HEX = 16


@dataclass(frozen=True)
class Stage:
    """One asset: the function in vipe_dag/stages/<name>.py, what it reads, and the version of its algorithm.

    Raise `algorithm_version` when the same inputs and configuration give other values than before; every stored generation of this stage
    and of those below it is then computed anew.
    """

    name: str
    deps: tuple[str, ...]
    algorithm_version: int

    @property
    def module(self) -> str:
        return f"vipe_dag.stages.{self.name}"


STAGES: tuple[Stage, ...] = (
    Stage("frames", (), algorithm_version=1),
    Stage("keyframes", ("frames",), algorithm_version=5),
    Stage("intrinsics", ("frames", "keyframes"), algorithm_version=13),
    Stage("ba_poses", ("frames", "keyframes", "intrinsics"), algorithm_version=13),
    Stage("dense_depth", ("frames", "ba_poses"), algorithm_version=1),
    Stage("aligned_depth", ("frames", "dense_depth", "ba_poses"), algorithm_version=1),
)
"""In an order in which they can run: a stage follows all its deps."""


@dataclass(frozen=True)
class SourceIdentity:
    """What of a source decides the results.

    digest of its content; clip: start and end in seconds (None = open), every stride-th frame; digest of a given calibration or None.
    """

    digest: str
    start: float | None = None
    end: float | None = None
    stride: int = 1
    given_intrinsics_digest: str | None = None


def stage(name: str) -> Stage:
    """The stage of that name. Raises KeyError."""
    return {entry.name: entry for entry in STAGES}[name]


def upstream(name: str) -> tuple[str, ...]:
    """The stage and everything it needs, in running order. Raises KeyError."""
    needed = {stage(name).name}
    for entry in reversed(STAGES):
        if entry.name in needed:
            needed.update(entry.deps)
    return tuple(entry.name for entry in STAGES if entry.name in needed)


def downstream(name: str) -> tuple[str, ...]:
    """The stage and everything computed from it, in running order. Raises KeyError."""
    return tuple(entry.name for entry in STAGES if stage(name).name in upstream(entry.name))


def fingerprints(config: PipelineConfig, source: SourceIdentity) -> dict[str, str]:
    """Per stage 16 hex digits of H(name, algorithm version, configuration, fingerprints of its deps or identity of the source).

    The same in every process and on every machine: it hashes our own canonical text, not a library's serialisation.
    """
    return Fingerprinter(config).of(source)


class Fingerprinter:
    """`fingerprints` for many sources of one configuration, whose text is made and hashed once."""

    def __init__(self, config: PipelineConfig) -> None:
        self._begun = []
        for entry in STAGES:
            version, own = canonical(entry.algorithm_version), canonical(getattr(config, entry.name))
            begun = _hash(f'{{"algorithm_version":{version},"config":{own},"inputs":{{')
            self._begun.append((entry.name, begun, sorted(entry.deps)))

    def of(self, source: SourceIdentity) -> dict[str, str]:
        """Per stage the fingerprint; see `fingerprints`."""
        found: dict[str, str] = {}
        for name, begun, deps in self._begun:
            inputs = ",".join([f'"{dep}":"{found[dep]}"' for dep in deps])
            digest = begun.copy()
            digest.update(f'{inputs}}},"source":{_source_text(name, source)},"stage":"{name}"}}'.encode())
            found[name] = digest.hexdigest()
        return found


def code_version(name: str, config: PipelineConfig) -> str:
    """16 hex digits of H(stage, algorithm version, its configuration): what decides a result apart from its inputs. Raises KeyError."""
    entry = stage(name)
    return _digest({"stage": entry.name, "algorithm_version": entry.algorithm_version, "config": getattr(config, entry.name)})


def config_digest(config: PipelineConfig) -> str:
    """16 hex digits of the whole configuration, to tell whether two processes mean the same one."""
    return _digest(config)


def canonical(value: Any) -> str:
    """Unambiguous text of a configuration value: JSON with sorted keys, floats by shortest repr (so 1 and 1.0 differ, 0.0 and -0.0 do not).

    Raises TypeError for anything but None, bool, int, float, str, sequences, mappings with text keys and pydantic models.
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        return encode_basestring_ascii(value)  # what json.dumps makes of it in ten times the time
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(float(value) + 0.0)
    if isinstance(value, list | tuple):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return "{" + ",".join(f"{json.dumps(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, BaseModel):  # last: of all these questions it is the slow one
        return canonical({name: getattr(value, name) for name in type(value).model_fields})
    raise TypeError(f"no canonical form for {value!r} of type {type(value).__name__}")


def _source_text(name: str, source: SourceIdentity) -> str:
    """Canonical text of what of the source decides a stage by itself; written out, since it is made for every video anew."""
    if name == "frames":
        end, start = (canonical(None if bound is None else float(bound)) for bound in (source.end, source.start))
        return f'{{"digest":{canonical(source.digest)},"end":{end},"start":{start},"stride":{canonical(source.stride)}}}'
    if name == "intrinsics":
        return f'{{"given_intrinsics":{canonical(source.given_intrinsics_digest)}}}'
    return "{}"


def _digest(value: Any) -> str:
    return _hash(canonical(value)).hexdigest()


def _hash(text: str) -> blake2b:
    return blake2b(text.encode(), digest_size=FINGERPRINT_HEX // 2)
