"""Fingerprints: exactly what changed is computed again, and a changed algorithm cannot pass unnoticed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest

import algorithm_hashes
from vipe_dag.config import PipelineConfig, StageConfig, load_config
from vipe_dag.graph import STAGES, SourceIdentity, Stage, canonical, downstream, fingerprints, stage, upstream

ALL = {entry.name for entry in STAGES}
SOURCE = SourceIdentity(digest="0123456789abcdef")


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def altered(section: StageConfig) -> StageConfig:
    """The same configuration of a stage but for its first number."""
    name, value = next((name, value) for name, value in section if isinstance(value, int | float) and not isinstance(value, bool))
    return section.model_copy(update={name: value + 1})


def hashed(source: str) -> str:
    return algorithm_hashes.source_hash(ast.parse(source))


@pytest.fixture(scope="module")
def config() -> PipelineConfig:
    return load_config()


@pytest.mark.parametrize("name", [entry.name for entry in STAGES])
def test_a_changed_value_changes_its_stage_and_those_below(config: PipelineConfig, name: str) -> None:
    section = getattr(config, name)
    if not any(isinstance(value, int | float) and not isinstance(value, bool) for _, value in section):
        pytest.skip(f"{name} has no number to change")
    other = config.model_copy(update={name: altered(section)})
    assert changed(fingerprints(config, SOURCE), fingerprints(other, SOURCE)) == set(downstream(name))


def test_bundle_adjustment_feeds_exactly_the_depths() -> None:
    assert downstream("ba_poses") == ("ba_poses", "dense_depth", "aligned_depth")


def test_upstream_of_a_stage_runs_in_order() -> None:
    assert upstream("intrinsics") == ("frames", "keyframes", "intrinsics")
    assert set(upstream("aligned_depth")) == ALL


@pytest.mark.parametrize(
    "difference", [{"digest": "f" * 16}, {"start": 1.0}, {"end": 2.0}, {"stride": 2}], ids=lambda change: next(iter(change))
)
def test_another_clip_changes_everything(config: PipelineConfig, difference: dict[str, object]) -> None:
    assert changed(fingerprints(config, SOURCE), fingerprints(config, replace(SOURCE, **difference))) == ALL  # type: ignore[arg-type]


def test_given_intrinsics_change_calibration_and_below(config: PipelineConfig) -> None:
    given = replace(SOURCE, given_intrinsics_digest="abc")
    assert changed(fingerprints(config, SOURCE), fingerprints(config, given)) == set(downstream("intrinsics"))


def test_a_raised_algorithm_version_changes_its_stage_and_those_below(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprints(config, SOURCE)
    bumped = tuple(replace(entry, algorithm_version=entry.algorithm_version + (entry.name == "keyframes")) for entry in STAGES)
    monkeypatch.setattr("vipe_dag.graph.STAGES", bumped)
    assert changed(before, fingerprints(config, SOURCE)) == ALL - {"frames"}


def test_fingerprints_are_16_hex_digits_and_differ_between_stages(config: PipelineConfig) -> None:
    found = fingerprints(config, SOURCE)
    assert set(found) == ALL
    assert len(set(found.values())) == len(ALL)
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in found.values())


def test_fingerprints_are_the_same_in_another_process(config: PipelineConfig) -> None:
    program = (
        "from vipe_dag.config import load_config; from vipe_dag.graph import SourceIdentity, fingerprints;"
        f"print(fingerprints(load_config(), SourceIdentity({SOURCE.digest!r})))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "77"}
    )
    assert other.stdout.strip() == str(fingerprints(config, SOURCE))


def test_an_equivalent_clip_written_differently_is_the_same(config: PipelineConfig) -> None:
    assert fingerprints(config, replace(SOURCE, start=1)) == fingerprints(config, replace(SOURCE, start=1.0))


def test_canonical_text_is_fixed() -> None:
    class Example(StageConfig):
        z: float = 1e-3
        a: tuple[int, ...] = (1, 2)
        n: str | None = None
        b: bool = True

    assert canonical(Example()) == '{"a":[1,2],"b":true,"n":null,"z":0.001}'


@pytest.mark.parametrize(("left", "right"), [(1, 1.0), (True, 1), ("1", 1), (None, "null"), ((1, 2), (12,)), ({"a": {}}, {"a": None})])
def test_canonical_text_tells_values_apart(left: object, right: object) -> None:
    assert canonical(left) != canonical(right)


def test_canonical_text_ignores_the_sign_of_zero_and_the_order_of_keys() -> None:
    assert canonical(-0.0) == canonical(0.0)
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


def test_canonical_text_refuses_what_has_none() -> None:
    with pytest.raises(TypeError, match="object"):
        canonical(object())


def test_stages_follow_what_they_read() -> None:
    seen: set[str] = set()
    for entry in STAGES:
        assert set(entry.deps) <= seen
        seen.add(entry.name)


def test_every_stage_has_its_configuration() -> None:
    assert tuple(PipelineConfig.model_fields) == tuple(entry.name for entry in STAGES)


def test_an_unknown_stage_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        stage("depth")


class TestAcknowledgement:
    def test_no_algorithm_changed_unacknowledged(self) -> None:
        sentences = algorithm_hashes.unacknowledged()
        assert not sentences, "\n".join(sentences)

    def test_comments_docstrings_and_layout_do_not_count(self) -> None:
        plain = "def f(x):\n    return x+1\n"
        dressed = '"""Module."""\n# why\ndef f( x ):\n    """Adds."""\n    return (x + 1)  # one\n'
        assert hashed(plain) == hashed(dressed)

    @pytest.mark.parametrize("edit", ["def f(x):\n    return x+2\n", "def f(x):\n    return x-1\n", "def f(x, y=0):\n    return x+1\n"])
    def test_code_counts(self, edit: str) -> None:
        assert hashed(edit) != hashed("def f(x):\n    return x+1\n")

    def test_imports_are_followed_whichever_way_they_are_written(self) -> None:
        source = "import vipe_kernels.lie\nfrom vipe_kernels import flow\nfrom . import tracks\nfrom ..video import probe\n"
        assert {"vipe_kernels.lie", "vipe_kernels.flow", "vipe_dag.stages.tracks", "vipe_dag.video"} <= set(
            algorithm_hashes.imports(ast.parse(source), "vipe_dag.stages")
        )

    def test_an_edited_kernel_is_named_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = {"ba_poses": {"algorithm_version": stage("ba_poses").algorithm_version, "modules": {"vipe_kernels.lie": "new"}}}
        monkeypatch.setattr(algorithm_hashes, "present", lambda: state)
        monkeypatch.setattr(
            algorithm_hashes, "recorded", lambda: {"ba_poses": state["ba_poses"] | {"modules": {"vipe_kernels.lie": "old"}}}
        )
        (sentence,) = algorithm_hashes.unacknowledged()
        assert sentence.startswith("ba_poses: vipe_kernels.lie changed: bump ALGORITHM_VERSION")
        assert "make acknowledge" in sentence

    def test_every_stage_is_watched(self) -> None:
        for entry in STAGES:
            assert entry.module in algorithm_hashes.modules_of(entry.module), f"{entry.module} is missing"

    def test_configuration_is_not_counted_twice(self) -> None:
        assert all("vipe_dag.config" not in algorithm_hashes.modules_of(Stage(entry.name, (), 1).module) for entry in STAGES)
