"""What every store must do, whatever it lives on: each backend's test module subclasses VideoStoreContract and makes a store."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from vipe_dag.errors import StoreError
from vipe_dag.results import FrameBlock
from vipe_dag.sequence import luma
from vipe_dag.store import VideoStore, open_video
from vipe_dag.video.records import SourceRecord

VIDEO = "street-0a1b2c3d"
OLD, NEW = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
FRAMES_ATTRS: dict[str, Any] = {
    "width": 6,
    "height": 4,
    "source_width": 12,
    "source_height": 8,
    "rotation": 0,
    "source_uri": "/videos/street.mp4",
    "source_digest": "0a1b2c3d",
    "codec": "h264",
    "container": "mp4",
    "truncated": False,
    "fps_nominal": 30.0,
    "flags": [],
}


def pixels(seed: int, frames: int = 35) -> np.ndarray:
    """(frames, 4, 6, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (frames, 4, 6, 3), np.uint8)


def write_frames(
    store: VideoStore,
    fingerprint: str,
    rgb: np.ndarray,
    block: int = 7,
    frames: int | None = None,
    video_id: str = VIDEO,
    with_luma: bool = False,
) -> None:
    """Commits `frames` in blocks."""
    index = np.arange(len(rgb)) * 2
    with store.begin(video_id, "frames", fingerprint, run_id="run-1", sizes={"frame": frames}) as writer:
        for start in range(0, len(rgb), block):
            rows = slice(start, start + block)
            content = FrameBlock(index[rows], index[rows] / 30.0, rgb[rows])
            brightness = {"luma": content.luma} if with_luma else {}
            writer.append({"rgb": content.rgb, "frame": content.index, "time": content.time, **brightness})
        writer.attrs(FRAMES_ATTRS)


def write_keyframes(store: VideoStore, fingerprint: str, value: float, video_id: str = VIDEO) -> None:
    """Commits `keyframes` of three rows whose motion is `value`."""
    with store.begin(video_id, "keyframes", fingerprint) as writer:
        put_keyframes(writer, value)


def put_keyframes(writer: Any, value: float) -> None:
    writer.put("keyframe", np.array([0, 2]))
    writer.put("motion", np.full(3, value, np.float32))
    writer.put("segment", np.zeros(3, np.int32))
    writer.put("sharpness", np.ones(3, np.float32))
    for way in ("flow_to_next", "flow_from_next"):
        writer.put(way, np.zeros((2, 3, 4, 2), np.float16))
    writer.attrs({"flags": ["short"]})


def motion(store: VideoStore, fingerprint: str | None = None) -> float:
    return float(store.open(VIDEO, "keyframes", fingerprint)["motion"][0])


class VideoStoreContract:
    """Subclasses give a fixture `store` (an empty VideoStore) and `write_raw(store, key, content)` (past the store's own API)."""

    @pytest.fixture
    def store(self) -> VideoStore:
        raise NotImplementedError

    def write_raw(self, store: VideoStore, key: str, content: bytes) -> None:
        """Damages an object as a disk or a person would."""
        store._backend.update(key, lambda _: content)

    # Sources

    def test_an_empty_store_has_no_videos(self, store: VideoStore) -> None:
        assert store.videos() == []

    def test_a_registered_source_comes_back(self, store: VideoStore) -> None:
        given = {"width": 120, "height": 80, "fx": 100.0, "fy": 100.0, "cx": 59.5, "cy": 39.5}
        record = SourceRecord(video_id=VIDEO, uri="/videos/street.mp4", digest="0a1b2c3d" * 4, start=1.5, stride=2, given_intrinsics=given)
        store.register(record)
        assert store.source(VIDEO) == record
        assert store.videos() == [VIDEO]

    def test_an_unknown_video_is_answered_with_the_nearest_ids(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        for ask in (
            lambda: store.source("street-0a1b"),
            lambda: open_video(store, "street-0a1b"),
            lambda: store.open("street-0a1b", "frames"),
        ):
            with pytest.raises(StoreError, match=f"no video 'street-0a1b'.*did you mean {VIDEO}"):
                ask()

    def test_an_unreadable_source_record_names_file_and_remedy(self, store: VideoStore) -> None:
        self.write_raw(store, f"{VIDEO}/_source.json", b'{"video_id": "x"')
        with pytest.raises(StoreError, match=r"_source\.json: not a readable source record.*run the video again"):
            store.source(VIDEO)

    # Names stay inside the root

    @pytest.mark.parametrize("video_id", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "_dagster", ".hidden", "a\x00b", "a" * 300])
    def test_a_video_id_cannot_leave_the_root(self, store: VideoStore, video_id: str) -> None:
        with pytest.raises(StoreError, match="video id"):
            store.current(video_id, "frames")
        with pytest.raises(StoreError, match="video id"), store.begin(video_id, "frames", OLD):
            pass

    def test_an_unknown_asset_is_answered_with_the_nearest_name(self, store: VideoStore) -> None:
        with pytest.raises(StoreError, match="unknown asset 'keyframe'; did you mean keyframes"):
            store.current(VIDEO, "keyframe")

    @pytest.mark.parametrize("fingerprint", ["", "../../x", "ABCDEF12", "abc"])
    def test_a_fingerprint_is_lower_case_hex(self, store: VideoStore, fingerprint: str) -> None:
        with pytest.raises(StoreError, match="not a fingerprint"), store.begin(VIDEO, "frames", fingerprint):
            pass

    # Writing and reading back

    @pytest.mark.parametrize("block", [1, 7, 32, 35, 100])
    @pytest.mark.parametrize("announced", [True, False])
    def test_blocks_of_any_size_are_read_back_bit_exact(self, store: VideoStore, block: int, announced: bool) -> None:
        rgb = pixels(0, 70)
        write_frames(store, OLD, rgb, block, len(rgb) if announced else None)
        dataset = store.open(VIDEO, "frames")
        np.testing.assert_array_equal(dataset["rgb"], rgb)
        np.testing.assert_array_equal(dataset["time"], np.arange(70) / 15.0)
        assert dataset["rgb"].dtype == np.uint8

    def test_the_pointer_says_what_was_committed(self, store: VideoStore) -> None:
        assert store.current(VIDEO, "keyframes") is None
        before = datetime.now(UTC)
        with store.begin(VIDEO, "keyframes", OLD, run_id="run-7") as writer:
            put_keyframes(writer, 1.0)
            writer.checks([{"name": "moves", "passed": np.True_, "numbers": {"px": float("nan")}}])
        pointer = store.current(VIDEO, "keyframes")
        assert pointer is not None
        assert (pointer.video_id, pointer.asset, pointer.fingerprint, pointer.run_id) == (VIDEO, "keyframes", OLD, "run-7")
        assert pointer.checks == ({"name": "moves", "passed": True, "numbers": {"px": "NaN"}},)
        assert pointer.bytes > 0
        assert before <= pointer.written_at <= datetime.now(UTC)
        assert pointer.generation in store.path(VIDEO, "keyframes")
        assert store.generations(VIDEO, "keyframes") == [pointer]

    def test_images_are_lazy_and_chunked_by_shard(self, store: VideoStore) -> None:
        write_frames(store, OLD, pixels(0))
        assert store.open(VIDEO, "frames")["rgb"].chunks == ((32, 3), (4,), (6,), (3,))
        assert store.open(VIDEO, "frames", chunks={"frame": 10})["rgb"].chunks[0] == (10, 10, 10, 5)
        assert store.open(VIDEO, "frames", chunks=None)["rgb"].chunks is None

    def test_labels_are_coordinates(self, store: VideoStore) -> None:
        write_frames(store, OLD, pixels(0))
        write_keyframes(store, OLD, 1.0)
        assert set(store.open(VIDEO, "frames").coords) == {"frame", "time"}
        assert set(store.open(VIDEO, "keyframes").coords) == {"keyframe"}
        assert store.open(VIDEO, "frames")["rgb"].sel(frame=4).shape == (4, 6, 3)

    def test_depth_keeps_nan_inf_and_plain_booleans(self, store: VideoStore) -> None:
        z_depth = np.array([[1.5, np.nan], [np.inf, 1e9]], np.float32)[None].repeat(3, 0)
        with store.begin(VIDEO, "dense_depth", OLD) as writer:
            writer.append({"z_depth": z_depth, "confidence": np.full((3, 2, 2), 7, np.uint8), "measured": np.isfinite(z_depth)})
            writer.attrs({"scale_source": "arbitrary", "flags": []})
        dataset = store.open(VIDEO, "dense_depth")
        assert (dataset["z_depth"].dtype, dataset["measured"].dtype) == (np.float16, np.bool_)
        np.testing.assert_array_equal(dataset["z_depth"][0], [[1.5, np.nan], [np.inf, np.inf]])
        assert not any("_FillValue" in {**v.attrs, **v.encoding} for v in dataset.variables.values())
        depth, confidence, measured = store.depth(VIDEO).depth(2)
        assert (depth.dtype, confidence.dtype, measured.dtype) == (np.float32, np.uint8, np.bool_)
        np.testing.assert_array_equal(measured, [[True, False], [False, True]])

    def test_attributes_come_back_as_plain_values(self, store: VideoStore) -> None:
        with store.begin(VIDEO, "keyframes", OLD) as writer:
            put_keyframes(writer, 1.0)
            writer.attrs(
                {"share": np.float32(0.5), "count": np.int64(3), "names": ("a", "b"), "unknown": float("nan"), "nested": {"x": [1.0]}}
            )
        attrs = store.open(VIDEO, "keyframes").attrs
        assert (attrs["share"], attrs["count"], attrs["names"], attrs["nested"]) == (0.5, 3, ["a", "b"], {"x": [1.0]})
        assert np.isnan(float(attrs["unknown"]))
        json.dumps(attrs, allow_nan=False)

    def test_open_video_is_a_tree_and_a_snapshot(self, store: VideoStore) -> None:
        rgb = pixels(0)
        write_frames(store, OLD, rgb)
        write_keyframes(store, OLD, 1.0)
        tree = open_video(store, VIDEO)
        write_keyframes(store, NEW, 2.0)
        assert set(tree.children) == {"frames", "keyframes"}
        np.testing.assert_array_equal(tree["frames/rgb"], rgb)
        assert float(tree["keyframes/motion"][0]) == 1.0
        assert tree.attrs["generations"]["keyframes"]["fingerprint"] == OLD
        assert float(open_video(store, VIDEO)["keyframes/motion"][0]) == 2.0

    def test_a_registered_video_without_assets_opens_empty(self, store: VideoStore) -> None:
        store.register(SourceRecord(video_id=VIDEO, uri="x.mp4", digest="0a1b2c3d" * 4))
        assert not open_video(store, VIDEO).children

    def test_a_missing_asset_says_what_there_is(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        with pytest.raises(StoreError, match=f"{VIDEO} has no frames.*it has: keyframes; run the video until frames"):
            store.open(VIDEO, "frames")
        with pytest.raises(StoreError, match=f"no keyframes of fingerprint {NEW}.*complete generations: {OLD}"):
            store.open(VIDEO, "keyframes", NEW)

    # Row by row

    def test_frames_are_read_row_by_row(self, store: VideoStore) -> None:
        rgb = pixels(3, 40)
        write_frames(store, OLD, rgb)
        frames = store.frames(VIDEO)
        assert (len(frames), frames.height, frames.width) == (40, 4, 6)
        np.testing.assert_array_equal(frames.frame, np.arange(40) * 2)
        for row in (0, 1, 2, 39, 5, 6, 31, 32):
            np.testing.assert_array_equal(frames.rgb(row), rgb[row])
        with pytest.raises(IndexError):
            frames.rgb(40)

    @pytest.mark.parametrize("with_luma", [True, False])
    def test_luma_is_that_of_the_colours_whether_stored_or_not(self, store: VideoStore, with_luma: bool) -> None:
        rgb = pixels(3, 40)
        write_frames(store, OLD, rgb, with_luma=with_luma)
        frames = store.frames(VIDEO)
        for row in (0, 1, 2, 39, 5, 31, 32):
            np.testing.assert_array_equal(frames.luma(row), luma(rgb[row]))
        assert ("luma" in store.open(VIDEO, "frames")) == with_luma

    def test_single_rows_of_luma_are_what_was_written(self, store: VideoStore) -> None:
        rgb = pixels(3, 40)
        write_frames(store, OLD, rgb, with_luma=True)
        reader = store.rows(VIDEO, "frames", "luma")
        for row in (39, 0, 31, 32, 0):
            np.testing.assert_array_equal(reader.row(row), luma(rgb[row]))

    def test_rows_walked_through_are_asked_for_together_where_that_is_wanted(self, store: VideoStore) -> None:
        rgb = pixels(3, 80)
        write_frames(store, OLD, rgb, with_luma=True)
        opened, asked = store.opened(VIDEO, "frames"), []

        def counted(key: str, start: int, end: int | None) -> bytes | None:
            asked.append((key, start))
            return opened.read_part(key, start, end)

        reader = replace(opened, read_part=counted).rows("luma", ahead_bytes=2**20)
        for row in range(0, 80, 2):
            np.testing.assert_array_equal(reader.row(row), luma(rgb[row]))
        assert len(asked) == 6  # of each of three shards its index and its rows
        for row in (70, 3, 50, 3):
            np.testing.assert_array_equal(reader.row(row), luma(rgb[row]))
        asked.clear()
        reader = replace(opened, read_part=counted).rows("luma")
        for row in range(40, 44):
            np.testing.assert_array_equal(reader.row(row), luma(rgb[row]))
        assert len(asked) == 5  # of its shard the index, then each row alone

    def test_single_rows_are_what_the_whole_array_holds(self, store: VideoStore) -> None:
        rgb = pixels(3, 40)
        write_frames(store, OLD, rgb)
        reader = store.rows(VIDEO, "frames", "rgb")
        assert (len(reader), reader.shape) == (40, rgb.shape)
        for row in (39, 0, 31, 32, 0):
            np.testing.assert_array_equal(reader.row(row), rgb[row])
        for outside in (-1, 40):
            with pytest.raises(IndexError):
                reader.row(outside)
        with pytest.raises(StoreError, match="one chunk per frame"):
            store.rows(VIDEO, "frames", "time")
        with pytest.raises(StoreError, match="expected an array depth"):
            store.rows(VIDEO, "frames", "depth")

    def test_single_rows_of_depth_keep_nan_inf_and_booleans(self, store: VideoStore) -> None:
        depth = np.array([[[np.nan, np.inf, 1.5]], [[2.0, 3.0, np.nan]]], np.float16)
        with store.begin(VIDEO, "dense_depth", OLD) as writer:
            writer.append({"z_depth": depth, "confidence": (depth > 1).astype(np.uint8), "measured": depth > 1.6})
            writer.attrs({"scale_source": "arbitrary", "flags": []})
        for name, values in (("z_depth", depth), ("confidence", (depth > 1).astype(np.uint8)), ("measured", depth > 1.6)):
            for row in (1, 0):
                found = store.rows(VIDEO, "dense_depth", name).row(row)
                assert found.dtype == values.dtype
                np.testing.assert_array_equal(found, values[row])

    # Commit

    def test_nothing_is_visible_before_the_block_is_left(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        with store.begin(VIDEO, "keyframes", NEW) as writer:
            put_keyframes(writer, 2.0)
            assert motion(store) == 1.0
            assert [p.fingerprint for p in store.generations(VIDEO, "keyframes")] == [OLD]
            assert store.point(VIDEO, "keyframes", NEW) is None
        assert motion(store) == 2.0

    @pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
    def test_an_exception_leaves_nothing(self, store: VideoStore, exception: type[BaseException]) -> None:
        write_keyframes(store, OLD, 1.0)

        def fail() -> None:
            with store.begin(VIDEO, "keyframes", NEW) as writer:
                put_keyframes(writer, 2.0)
                raise exception

        with pytest.raises(exception):
            fail()
        assert motion(store) == 1.0
        assert store.sweep(timedelta(0), now=datetime.now(UTC) + timedelta(hours=1)) == []

    def test_an_opened_generation_outlives_the_next_commit(self, store: VideoStore) -> None:
        old, new = pixels(0), pixels(1)
        write_frames(store, OLD, old)
        dataset, frames = store.open(VIDEO, "frames"), store.frames(VIDEO)
        write_frames(store, NEW, new)
        np.testing.assert_array_equal(dataset["rgb"], old)
        np.testing.assert_array_equal(frames.rgb(3), old[3])
        np.testing.assert_array_equal(store.open(VIDEO, "frames")["rgb"], new)

    def test_going_back_is_a_flip(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        write_keyframes(store, NEW, 2.0)
        pointer = store.point(VIDEO, "keyframes", OLD)
        assert pointer is not None
        assert pointer.fingerprint == OLD
        assert motion(store) == 1.0
        assert motion(store, NEW) == 2.0
        assert [p.fingerprint for p in store.generations(VIDEO, "keyframes")] == [OLD, NEW]

    def test_pointing_at_an_unknown_fingerprint_changes_nothing(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        assert store.point(VIDEO, "keyframes", NEW) is None
        assert motion(store) == 1.0

    def test_two_writers_of_one_fingerprint_both_succeed(self, store: VideoStore) -> None:
        together = Barrier(2)

        def write(value: float) -> None:
            with store.begin(VIDEO, "keyframes", NEW) as writer:
                put_keyframes(writer, value)
                together.wait(20)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, (1.0, 2.0)))
        assert len(store.generations(VIDEO, "keyframes")) == 2
        assert motion(store) in (1.0, 2.0)

    def test_a_run_overtaken_by_another_configuration_is_refused_and_kept(self, store: VideoStore) -> None:
        def overtaken() -> None:
            with store.begin(VIDEO, "keyframes", OLD) as writer:
                put_keyframes(writer, 1.0)
                write_keyframes(store, NEW, 2.0)

        with pytest.raises(StoreError, match=r"another run made bbbb.* current.*run again"):
            overtaken()
        assert motion(store) == 2.0
        assert store.point(VIDEO, "keyframes", OLD) is not None
        assert motion(store) == 1.0

    # Damage

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"generation": "x"}', b"\xff\xfe"])
    def test_a_damaged_pointer_names_file_and_remedy_and_a_rerun_repairs_it(self, store: VideoStore, content: bytes) -> None:
        write_keyframes(store, OLD, 1.0)
        self.write_raw(store, f"{VIDEO}/keyframes/_current.json", content)
        with pytest.raises(StoreError, match=r"_current\.json: not a readable pointer.*materialize the asset again"):
            store.open(VIDEO, "keyframes")
        write_keyframes(store, NEW, 2.0)
        assert motion(store) == 2.0

    def test_a_damaged_pointer_can_be_pointed_at_what_is_there(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        self.write_raw(store, f"{VIDEO}/keyframes/_current.json", b"{")
        assert store.point(VIDEO, "keyframes", OLD) is not None
        assert motion(store) == 1.0

    def test_a_pointer_cannot_lead_out_of_its_asset(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        pointer = store.current(VIDEO, "keyframes")
        assert pointer is not None
        evil = pointer.model_copy(update={"generation": f"../../../{OLD}-00000000.zarr"})
        self.write_raw(store, f"{VIDEO}/keyframes/_current.json", evil.model_dump_json().encode())
        with pytest.raises(StoreError, match="not a readable pointer"):
            store.open(VIDEO, "keyframes")

    @pytest.mark.parametrize("damage", ["gone", "cut"])
    def test_a_pointer_to_a_lost_generation_says_so(self, store: VideoStore, damage: str) -> None:
        write_keyframes(store, OLD, 1.0)
        pointer = store.current(VIDEO, "keyframes")
        assert pointer is not None
        key = f"{VIDEO}/keyframes/{pointer.generation}"
        if damage == "gone":
            store._backend.remove(key)
        else:
            self.write_raw(store, f"{key}/zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
        for read in (store.open, store.group):
            with pytest.raises(StoreError, match=f"names {pointer.generation}, which is missing or incomplete.*materialize"):
                read(VIDEO, "keyframes")
        assert store.point(VIDEO, "keyframes", OLD) is None

    # Schema

    def test_every_fault_is_named_at_commit_with_expected_and_found(self, store: VideoStore) -> None:
        def commit() -> None:
            with store.begin(VIDEO, "keyframes", OLD) as writer:
                writer.put("motion", np.zeros(3, np.float32))
                writer.put("segment", np.zeros(2, np.int32))
                writer.attrs({"flags": ["bad word"]})

        with pytest.raises(StoreError) as caught:
            commit()
        text = str(caught.value)
        assert text.startswith(f"{VIDEO}, keyframes: not committed")
        assert "keyframe: expected int64 ('keyframe',), found nothing" in text
        assert "segment: expected 3 along frame (as in motion), found 2" in text
        assert "attribute flags: expected words of" in text

    def test_time_must_increase(self, store: VideoStore) -> None:
        def commit() -> None:
            with store.begin(VIDEO, "frames", OLD) as writer:
                writer.append({"rgb": pixels(0, 3), "frame": np.arange(3), "time": np.array([0.0, 0.5, 0.5])})
                writer.attrs(FRAMES_ATTRS)

        with pytest.raises(StoreError, match=r"time: expected strictly increasing.*0\.5 then 0\.5 at rows 1, 2"):
            commit()
        assert store.current(VIDEO, "frames") is None

    def test_an_announced_length_is_held(self, store: VideoStore) -> None:
        with pytest.raises(StoreError, match="frame: expected the announced 36, found 35 in rgb"):
            write_frames(store, OLD, pixels(0), frames=36)
        with pytest.raises(StoreError, match="announced with 34 frames, found 35 or more"):
            write_frames(store, OLD, pixels(0), frames=34)

    def test_frames_of_profile_reference_have_no_pixels(self, store: VideoStore) -> None:
        with store.begin(VIDEO, "frames", OLD) as writer:
            writer.append({"frame": np.arange(3), "time": np.arange(3.0)})
            writer.attrs({**FRAMES_ATTRS, "profile": "reference"})
        assert "rgb" not in store.open(VIDEO, "frames")

    @pytest.mark.parametrize(
        ("write", "message"),
        [
            (lambda w: w.put("motoin", 1), "no variable 'motoin'.*did you mean motion"),
            (lambda w: w.put("segment", np.zeros(3)), "segment must be int32, found float64"),
            (lambda w: w.append({"keyframe": np.arange(2)}), "keyframe has no frame dimension"),
            (lambda w: w.append({"motion": np.zeros(2, "f4"), "segment": np.zeros(3, "i4")}), "one length along frame"),
            (lambda w: (w.put("motion", np.zeros(3, "f4")), w.put("motion", np.zeros(3, "f4"))), "motion was already written"),
            (lambda w: w.attrs({"commit": 1}), "the store writes the attributes commit itself"),
            (lambda w: w.attrs({"flags": object()}), "found object"),
        ],
    )
    def test_a_wrong_write_is_refused_where_it_happens(self, store: VideoStore, write: Any, message: str) -> None:
        with pytest.raises(StoreError, match=f"{VIDEO}, keyframes.*{message}"), store.begin(VIDEO, "keyframes", OLD) as writer:
            write(writer)

    # Upkeep

    def test_objects_written_together_are_all_there(self, store: VideoStore) -> None:
        contents = {f"_together/{name}": name.encode() * 3 for name in ("a", "b/c", "b/d/e")}
        store.backend.write(contents)
        store.backend.sync("_together")
        assert store.backend.read_many([*contents, "_together/f"]) == contents

    def test_a_listing_says_which_objects_were_replaced(self, store: VideoStore) -> None:
        for name, content in {"a": b"1", "b": b"2", "below/c": b"3"}.items():
            store.backend.update(f"_listed/{name}", lambda _, content=content: content)
        before = store.backend.versions("_listed")
        store.backend.update("_listed/b", lambda _: b"4")
        after = store.backend.versions("_listed")
        assert set(before) == set(after) == {"a", "b"}
        assert [name for name in before if after[name] != before[name]] == ["b"]
        assert store.backend.versions("_nothing") == {}

    def test_sweep_removes_only_old_half_written_generations(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        write_keyframes(store, NEW, 2.0)
        half = f"{VIDEO}/keyframes/{NEW}-00000000.zarr"
        self.write_raw(store, f"{half}/zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        assert store.sweep(timedelta(hours=1)) == []
        swept = store.sweep(timedelta(hours=1), now=datetime.now(UTC) + timedelta(hours=2))
        assert [(s.key, s.bytes > 0) for s in swept] == [(half, True)]
        assert [p.fingerprint for p in store.generations(VIDEO, "keyframes")] == [OLD, NEW]
        assert motion(store) == 2.0

    def test_sweep_spares_what_a_pointer_names(self, store: VideoStore) -> None:
        write_keyframes(store, OLD, 1.0)
        pointer = store.current(VIDEO, "keyframes")
        assert pointer is not None
        self.write_raw(store, f"{VIDEO}/keyframes/{pointer.generation}/zarr.json", b"{}")
        assert store.sweep(timedelta(0), now=datetime.now(UTC) + timedelta(hours=1)) == []
