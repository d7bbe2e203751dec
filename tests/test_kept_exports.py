"""Exports that are kept: up to date or replaced as a whole, never over anything of somebody else's, and as an asset only when asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml

from assets_defs.definitions import build_definitions
from assets_defs.exports import EXPORTS
from assets_defs.instance import add_videos
from assets_defs.jobs import PIPELINE_JOB
from exported_clip import VIDEO, Result, make_result
from stored_clip import second_generation
from vipe_dag.errors import ConfigError, SourceError, StoreError
from vipe_dag.export import FILE_NAMES, FORMATS, tum
from vipe_dag.export.kept import MANIFEST, keep_exports
from vipe_dag.graph import STAGES
from vipe_dag.operations import load_operations
from vipe_dag.store import VideoStore


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make_result(tmp_path_factory.mktemp("rendered"), count=3)


@pytest.fixture
def result(rendered: Result, tmp_path: Path) -> Result:
    """A store of each test's own."""
    shutil.copytree(rendered.store.root, tmp_path / "store")
    return dataclasses.replace(rendered, store=VideoStore(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def move_cameras(result: Result) -> np.ndarray:
    """Another generation of ba_poses becomes current; returns its poses."""
    moved = result.clip.cam2world.copy()
    moved[:, 0, 3] += 1
    second_generation(result.store, moved, video_id=VIDEO)
    return moved


class TestFolder:
    def test_holds_each_format_under_its_name_and_says_what_they_were_made_from(self, result: Result, folder: Path) -> None:
        kept = keep_exports(result.store, VIDEO, ["tum", "zarr"], folder)
        assert kept.written
        assert names(kept.path) == [MANIFEST, "assets.zarr", "tum.txt"]
        manifest = json.loads((kept.path / MANIFEST).read_text())
        pointer = result.store.current(VIDEO, "ba_poses")
        assert pointer is not None
        assert manifest["generations"]["ba_poses"] == pointer.generation
        assert kept.notes["zarr"] == ["not there, so not in it: keyframes, intrinsics, dense_depth"]
        assert kept.bytes == sum(path.stat().st_size for path in kept.path.rglob("*") if path.is_file() and path.name != MANIFEST)

    def test_takes_every_format_that_there_is(self, result: Result, folder: Path) -> None:
        pytest.importorskip("rerun", reason="rerun-sdk is not installed")
        kept = keep_exports(result.store, VIDEO, list(FORMATS), folder)
        assert names(kept.path) == sorted([MANIFEST, *FILE_NAMES.values()])
        assert list(kept.notes) == list(FORMATS)

    def test_every_format_has_a_name(self) -> None:
        assert list(FILE_NAMES) == list(FORMATS)
        assert len(set(FILE_NAMES.values())) == len(FORMATS)

    def test_is_left_alone_when_nothing_changed(self, result: Result, folder: Path) -> None:
        before = keep_exports(result.store, VIDEO, ["tum"], folder).path.stat()
        again = keep_exports(result.store, VIDEO, ["tum"], folder)
        assert not again.written
        assert again.path.stat().st_ino == before.st_ino

    def test_follows_a_new_generation(self, result: Result, folder: Path) -> None:
        keep_exports(result.store, VIDEO, ["tum"], folder)
        moved = move_cameras(result)
        kept = keep_exports(result.store, VIDEO, ["tum"], folder)
        assert kept.written
        np.testing.assert_allclose(tum.read(kept.path / "tum.txt")[1], moved, atol=1e-8)
        assert names(folder) == [VIDEO]

    def test_follows_the_list_of_formats(self, result: Result, folder: Path) -> None:
        keep_exports(result.store, VIDEO, ["tum", "kitti"], folder)
        assert names(keep_exports(result.store, VIDEO, ["kitti"], folder).path) == [MANIFEST, "kitti.txt"]

    def test_is_written_again_where_a_file_is_gone(self, result: Result, folder: Path) -> None:
        kept = keep_exports(result.store, VIDEO, ["tum", "kitti"], folder)
        (kept.path / "tum.txt").unlink()
        assert keep_exports(result.store, VIDEO, ["tum", "kitti"], folder).written
        assert (kept.path / "tum.txt").exists()

    def test_of_somebody_else_is_kept(self, result: Result, folder: Path) -> None:
        (folder / VIDEO).mkdir()
        (folder / VIDEO / "mine.txt").write_text("mine")
        with pytest.raises(SourceError, match=r"exists already and is no folder of exports; move it away, or name another folder"):
            keep_exports(result.store, VIDEO, ["tum"], folder)
        assert names(folder / VIDEO) == ["mine.txt"]

    @pytest.mark.parametrize("name", ["notes.txt", "zarr/notes.txt", "tum.txt"])
    def test_with_a_file_added_or_changed_is_kept(self, result: Result, folder: Path, name: str) -> None:
        place = keep_exports(result.store, VIDEO, ["tum"], folder).path
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("mine")
        move_cameras(result)
        with pytest.raises(SourceError, match=f"holds {name}, which the exports did not write like that; move it away"):
            keep_exports(result.store, VIDEO, ["tum"], folder)
        assert (place / name).read_text() == "mine"

    def test_stays_as_it_was_when_a_format_fails(self, result: Result, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = keep_exports(result.store, VIDEO, ["tum"], folder).path
        before = (place / "tum.txt").read_bytes()
        move_cameras(result)
        monkeypatch.setitem(sys.modules, "rerun", None)
        with pytest.raises(ConfigError, match="needs the package rerun-sdk"):
            keep_exports(result.store, VIDEO, ["tum", "rerun"], folder)
        assert (place / "tum.txt").read_bytes() == before
        assert names(folder) == [VIDEO]

    def test_stays_as_it_was_when_the_last_step_fails(self, result: Result, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = keep_exports(result.store, VIDEO, ["tum"], folder).path
        before = (place / "tum.txt").read_bytes()
        move_cameras(result)
        rename = Path.replace

        def refuse(self: Path, target: Path) -> Path:
            if Path(target) == place and not (self / "tum.txt").read_bytes() == before:
                raise OSError(5, "the disk is gone")
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(SourceError, match="cannot be written"):
            keep_exports(result.store, VIDEO, ["tum"], folder)
        assert (place / "tum.txt").read_bytes() == before
        assert names(folder) == [VIDEO]

    def test_what_a_killed_process_left_goes_after_a_day(self, result: Result, folder: Path) -> None:
        for name, age in (("old", 90_000), ("new", 0)):
            path = folder / f".{VIDEO}.{name}.part"
            path.mkdir()
            os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
        keep_exports(result.store, VIDEO, ["tum"], folder)
        assert names(folder) == [f".{VIDEO}.new.part", VIDEO]

    def test_that_does_not_exist_is_not_made(self, result: Result, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="does not exist; create it first"):
            keep_exports(result.store, VIDEO, ["tum"], tmp_path / "not-mounted")

    def test_of_a_video_without_results_says_what_to_run(self, result: Result, folder: Path) -> None:
        result.store.register(result.store.source(VIDEO).model_copy(update={"video_id": "new"}))
        with pytest.raises(StoreError, match="run the video until frames"):
            keep_exports(result.store, "new", ["tum"], folder)
        assert names(folder) == []


class TestAsset:
    @pytest.fixture
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.ephemeral() as instance:
            add_videos(instance, [VIDEO])
            yield instance

    @pytest.fixture
    def definitions(self, result: Result, folder: Path) -> dg.Definitions:
        settings = {"exports": {"formats": ["tum", "kitti"], "folder": str(folder)}}
        (Path(result.store.root) / "operations.yaml").write_text(yaml.safe_dump(settings))
        return build_definitions(root=result.store.root)

    def materialize(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        job = definitions.resolve_implicit_global_asset_job_def()
        chosen = job.get_subset(asset_selection=frozenset([dg.AssetKey(EXPORTS)]), asset_check_selection=frozenset())
        return chosen.execute_in_process(instance=instance, partition_key=VIDEO, raise_on_error=False)

    def test_is_there_only_when_formats_are_named(self, result: Result) -> None:
        graph = build_definitions(root=result.store.root).resolve_asset_graph()
        assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {stage.name for stage in STAGES}

    def test_is_beside_the_pipeline_and_not_in_its_job(self, definitions: dg.Definitions) -> None:
        node = definitions.resolve_asset_graph().get(dg.AssetKey(EXPORTS))
        assert node.group_name == EXPORTS
        assert {key.to_user_string() for key in node.parent_keys} == {"frames", "ba_poses", "aligned_depth"}
        steps = {node.name for node in definitions.resolve_job_def(PIPELINE_JOB).nodes_in_topological_order}
        assert steps == {stage.name for stage in STAGES}

    def test_writes_the_formats_and_says_where(self, definitions: dg.Definitions, instance: dg.DagsterInstance, folder: Path) -> None:
        result = self.materialize(definitions, instance)
        assert result.success
        (event,) = result.get_asset_materialization_events()
        metadata = {name: entry.value for name, entry in event.materialization.metadata.items()}
        assert metadata["path"] == str(folder / VIDEO)
        assert (metadata["status"], metadata["files"], metadata["formats"]) == ("written", 2, "tum, kitti")
        assert names(folder / VIDEO) == [MANIFEST, "kitti.txt", "tum.txt"]
        (again,) = self.materialize(definitions, instance).get_asset_materialization_events()
        assert again.materialization.metadata["status"].value == "current"

    def test_fails_in_a_line_and_keeps_what_is_not_its_own(
        self, definitions: dg.Definitions, instance: dg.DagsterInstance, folder: Path
    ) -> None:
        (folder / VIDEO).mkdir()
        (folder / VIDEO / "tum.txt").write_text("mine")
        result = self.materialize(definitions, instance)
        assert not result.success
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        assert "is no folder of exports; move it away" in str(failure.step_failure_data.error)
        assert (folder / VIDEO / "tum.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "exports: {formats: [tumm], folder: /x}",
                r"exports\.formats: no export format 'tumm'; did you mean tum\?; there are: tum",
            ),
            ("exports: {formats: [tum]}", "exports: formats need a `folder` beside them, an absolute path"),
            ("exports: {formats: [tum], folder: out}", "exports: formats need a `folder` beside them, an absolute path"),
            ("exports: {format: [tum]}", r"there is no setting exports\.format; did you mean exports\.formats\?"),
        ],
    )
    def test_a_wrong_setting_is_one_clear_line(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "operations.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said) as caught:
            load_operations(str(tmp_path))
        assert "\n" not in str(caught.value)
