"""The catalogue of a fleet, and what is asked of all videos at once."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import vipe_dag
from fleet_worlds import CORRUPT, FRAMES, GOOD, ONE, register, run, small_fleet
from platform_worlds import ALL
from vipe_dag import cli
from vipe_dag.config import load_config
from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.fleet.catalogue import write_catalogue
from vipe_dag.fleet.columns import COLUMNS
from vipe_dag.fleet.reading import Fleet
from vipe_dag.fleet.reconcile import ShardState, shard_states
from vipe_dag.fleet.shards import all_shards, shard_number, videos_of
from vipe_dag.store import VideoStore

pytestmark = pytest.mark.usefixtures("hurried")

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "fleet.md"
CHANGED = load_config(overrides=["ba_poses.grid_columns=20"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VideoStore:
    return small_fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def fleet(store: VideoStore) -> Fleet:
    return vipe_dag.open_fleet(store.root)


@pytest.fixture
def copy(store: VideoStore, tmp_path: Path) -> VideoStore:
    shutil.copytree(store.root, tmp_path / "copy")
    return VideoStore(tmp_path / "copy")


class TestCatalogue:
    def test_there_is_one_row_per_video_and_every_column_that_is_documented(self, fleet: Fleet) -> None:
        assert sorted(fleet.catalogue["video_id"]) == sorted([*GOOD, CORRUPT])
        assert list(fleet.catalogue.columns) == [name for name, _, _ in COLUMNS]

    def test_a_row_says_what_the_video_is_and_how_well_it_went(self, fleet: Fleet, store: VideoStore) -> None:
        row = fleet.catalogue.set_index("video_id").loc["a"]
        assert (row["status"], row["frames"], row["width"], row["height"], row["codec"]) == ("done", FRAMES, 64, 48, "h264")
        assert (row["camera_model"], row["focal_px"], row["focal_std_px"]) == ("pinhole", pytest.approx(51.2), 1.0)
        assert row["fps"] == pytest.approx(12)
        assert row["residual_px"] == pytest.approx(0.3)
        assert row["inlier_share"] == pytest.approx(0.9)
        assert (row["tracked_share"], row["depth_scale"], row["depth_share"]) == (1.0, 1.0, 1.0)
        assert list(row["behind"]) == []
        pointer = store.current("a", "ba_poses")
        assert pointer is not None
        assert (row["ba_poses_fingerprint"], row["ba_poses_written_at"]) == (pointer.fingerprint, pointer.written_at)
        assert row["shard"] == shard_number("a", 2)

    def test_a_video_that_failed_has_its_reason(self, fleet: Fleet) -> None:
        row = fleet.catalogue.set_index("video_id").loc[CORRUPT]
        assert (row["status"], row["failed_stage"], row["tries"], list(row["behind"])) == ("failed", "frames", 1, ALL)
        assert "broken.mp4" in row["reason"]

    def test_columns_and_filters_choose_what_is_read(self, fleet: Fleet) -> None:
        found = fleet.select(["video_id", "residual_px"], [("status", "=", "done"), ("video_id", "in", ["a", "b", CORRUPT])])
        assert list(found.columns) == ["video_id", "residual_px"]
        assert sorted(found["video_id"]) == ["a", "b"]
        assert fleet.select(["video_id"], pc.field("status") == "failed")["video_id"].tolist() == [CORRUPT]

    def test_a_column_that_does_not_exist_is_named_with_the_nearest(self, fleet: Fleet) -> None:
        with pytest.raises(ConfigError, match="no column 'residual'; did you mean residual_px"):
            fleet.select(["residual"])
        with pytest.raises(ConfigError, match="no column 'state'"):
            fleet.select(where=[("state", "=", "done")])

    def test_every_column_is_in_the_documentation(self) -> None:
        text = DOCUMENTATION.read_text(encoding="utf-8")
        stages = {f"{stage}{suffix}" for stage in ALL for suffix in ("_fingerprint", "_written_at", "_s")}
        assert [name for name, _, _ in COLUMNS if name not in stages and f"`{name}`" not in text] == []

    def test_the_file_and_the_poses_it_names_are_replaced_together(self, copy: VideoStore) -> None:
        folder = Path(copy.root) / "_catalogue"
        before = {path.name for path in folder.glob("*.zarr")}
        assert cli.main(["fleet", "catalogue", "--store", copy.root]) == 0
        named = {name for file in folder.glob("*.parquet") for name in pq.read_table(file)["pool"].to_pylist() if name}
        assert not named & before
        assert named | before == {path.name for path in folder.glob("*.zarr")}, "who reads the earlier file still finds its poses"

    def test_a_damaged_result_makes_its_row_a_failed_one(self, copy: VideoStore) -> None:
        (Path(copy.root) / "a" / "ba_poses" / "_current.json").write_text("{")
        cli.main(["fleet", "catalogue", "--store", copy.root])
        row = vipe_dag.open_fleet(copy.root).catalogue.set_index("video_id").loc["a"]
        assert row["status"] == "failed"
        assert "not a readable pointer" in row["reason"]

    def test_it_works_in_memory_as_on_a_disk(self, calls: Counter[str], tmp_path: Path) -> None:
        store = VideoStore(f"memory://{tmp_path.name}")
        register(store, tmp_path, "a", "b")
        run(store, ALL[-1])
        fleet = Fleet(store, 1)
        assert fleet.catalogue["status"].tolist() == ["done", "done"]
        assert fleet.pooled()["cam2world"].values.shape == (2 * FRAMES, 4, 4)


class TestFleet:
    def test_a_video_is_opened_with_or_without_a_catalogue(self, fleet: Fleet, copy: VideoStore) -> None:
        assert fleet.video("a")["ba_poses/cam2world"].shape == (FRAMES, 4, 4)
        shutil.rmtree(Path(copy.root) / "_catalogue")
        assert vipe_dag.open_fleet(copy.root).video("a")["frames/rgb"].shape == (FRAMES, 48, 64, 3)

    def test_without_a_catalogue_it_says_what_to_run(self, copy: VideoStore) -> None:
        shutil.rmtree(Path(copy.root) / "_catalogue")
        with pytest.raises(StoreError, match=r"has no catalogue for 2 shards; write it with `vipe-dag fleet catalogue --store .*copy`"):
            _ = vipe_dag.open_fleet(copy.root).catalogue

    def test_a_shard_without_catalogue_is_not_passed_over_in_silence(self, copy: VideoStore) -> None:
        (Path(copy.root) / "_catalogue" / "0-of-2.parquet").unlink()
        with pytest.warns(UserWarning, match="lacks 1 of 2 shards"):
            assert set(vipe_dag.open_fleet(copy.root).catalogue["shard"]) == {1}

    def test_pooled_poses_are_those_of_the_videos(self, fleet: Fleet, store: VideoStore) -> None:
        pooled = fleet.pooled()
        assert dict(pooled.sizes) == {"row": len(GOOD) * FRAMES, "world": 4, "camera": 4, "video": len(GOOD), "param": 9}
        for number, video_id in enumerate(pooled["video_id"].values):
            first, rows = int(pooled["first_row"][number]), int(pooled["rows"][number])
            part = pooled.isel(row=slice(first, first + rows))
            poses = store.open(str(video_id), "ba_poses")
            np.testing.assert_array_equal(part["cam2world"].values, poses["cam2world"].values)
            np.testing.assert_array_equal(part["time"].values, poses["time"].values)
            np.testing.assert_array_equal(pooled["params"][number].values, poses["params"].values)
            assert (part["video_index"].values == number).all()

    def test_pooled_poses_are_one_lazy_block_per_shard(self, fleet: Fleet) -> None:
        shards = len({shard_number(video_id, 2) for video_id in GOOD})
        assert fleet.pooled()["cam2world"].data.numblocks == (shards, 1, 1)

    def test_a_function_is_mapped_over_the_videos_that_are_done(self, fleet: Fleet) -> None:
        found = fleet.map(lambda video: str(video.attrs["video_id"])).compute(scheduler="sync")
        assert sorted(found) == list(GOOD)


class TestReconcile:
    def states(self, store: VideoStore, config: object = None, attempts: int = 3) -> list[ShardState]:
        return list(shard_states(store, videos_of(store, 2), config or load_config(), attempts))  # type: ignore[arg-type]

    def total(self, store: VideoStore, config: object = None, attempts: int = 3) -> dict[str, int]:
        found = self.states(store, config, attempts)
        return {name: sum(getattr(state, name) for state in found) for name in ("videos", "current", "new", "stale", "given_up")}

    def test_what_is_as_wanted_is_current_and_what_failed_is_due_until_it_is_given_up(self, store: VideoStore) -> None:
        assert self.total(store) == {"videos": 5, "current": 4, "new": 1, "stale": 0, "given_up": 0}
        assert self.total(store, attempts=1) == {"videos": 5, "current": 4, "new": 0, "stale": 0, "given_up": 1}
        assert not any(state.due for state in self.states(store, attempts=1))

    def test_another_configuration_makes_every_video_stale(self, store: VideoStore) -> None:
        assert self.total(store, CHANGED, attempts=1) == {"videos": 5, "current": 0, "new": 1, "stale": 4, "given_up": 0}

    def test_a_change_of_the_first_stage_makes_videos_stale_not_new(self, store: VideoStore) -> None:
        changed = load_config(overrides=["frames.long_side=320"])
        assert self.total(store, changed) == {"videos": 5, "current": 0, "new": 1, "stale": 4, "given_up": 0}

    def test_what_a_catalogue_called_stale_is_current_when_it_is_wanted_again(self, copy: VideoStore) -> None:
        assert cli.main(["fleet", "catalogue", "--store", copy.root, "--set", "ba_poses.grid_columns=20"]) == 0
        assert self.total(copy, CHANGED)["stale"] == 4
        assert self.total(copy) == {"videos": 5, "current": 4, "new": 1, "stale": 0, "given_up": 0}

    def test_a_video_that_the_catalogue_lacks_is_new_and_a_folder_that_is_none_is_not(self, copy: VideoStore, tmp_path: Path) -> None:
        register(copy, tmp_path, "e")
        (Path(copy.root) / "notes").mkdir()
        write_catalogue(
            copy, all_shards(2)[shard_number("notes", 2)], videos_of(copy, 2)[all_shards(2)[shard_number("notes", 2)]], load_config()
        )
        assert self.total(copy)["videos"] == 6
        assert self.total(copy)["new"] == 2

    def test_the_request_names_what_there_is_to_do(self, store: VideoStore) -> None:
        again, changed = self.states(store), self.states(store, CHANGED)
        assert [state.request for state in self.states(store)] == [state.request for state in again]
        assert not {state.request for state in again} & {state.request for state in changed}

    def test_the_command_line_says_how_far_the_shards_are(self, store: VideoStore, capfd: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["fleet", "status", "--store", store.root]) == 0
        assert capfd.readouterr().out.splitlines()[-1].split() == ["all", "2", "5", "4", "1", "0", "0"]


def test_a_shard_without_videos_has_a_catalogue_without_rows(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    assert write_catalogue(store, ONE, [], load_config()) == 0
    assert len(Fleet(store, 1).catalogue) == 0
    assert Fleet(store, 1).pooled().sizes["row"] == 0
