"""One stage of one video against a store: computed once, found again, brought back, and refused when its inputs are not there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import quick_stages
from clips import write_clip
from vipe_dag import open_video
from vipe_dag.calibration import Calibration
from vipe_dag.checks import specs
from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.errors import EstimationError, SourceError, StoreError
from vipe_dag.graph import STAGES
from vipe_dag.pipeline import current_reports, run_stage, run_video, states
from vipe_dag.store import VideoStore
from vipe_dag.video import Clip, SourceRecord, open_source

ALL = tuple(stage.name for stage in STAGES)
FRAMES = 24
CHANGED_BA = ["ba_poses.grid_columns=20"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "slide.mp4", FRAMES)


@pytest.fixture
def store(tmp_path: Path) -> VideoStore:
    return VideoStore(tmp_path / "store")


@pytest.fixture
def video_id(store: VideoStore, clip: Path) -> str:
    record = SourceRecord.of(open_source(str(clip)))
    store.register(record)
    return record.video_id


def config(*overrides: str) -> PipelineConfig:
    return load_config(overrides=overrides)


def test_a_first_run_computes_every_stage_in_order(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    reports = run_video(store, video_id, config())
    assert [(report.stage, report.status) for report in reports] == [(name, "computed") for name in ALL]
    assert calls == dict.fromkeys(ALL, 1)
    assert store.open(video_id, "aligned_depth").sizes["frame"] == FRAMES


def test_a_second_run_enters_no_stage(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    run_video(store, video_id, config())
    calls.clear()
    assert {report.status for report in run_video(store, video_id, config())} == {"current"}
    assert not calls


def test_a_changed_value_recomputes_its_stage_and_those_below(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    run_video(store, video_id, config())
    calls.clear()
    run_video(store, video_id, config(*CHANGED_BA))
    assert calls == {"ba_poses": 1, "dense_depth": 1, "aligned_depth": 1}


def test_going_back_flips_pointers_and_computes_nothing(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    first = run_video(store, video_id, config())
    run_video(store, video_id, config(*CHANGED_BA))
    calls.clear()
    back = run_video(store, video_id, config())
    assert [report.status for report in back] == ["current"] * 3 + ["flipped"] * 3
    assert [report.fingerprint for report in back] == [report.fingerprint for report in first]
    assert not calls


def test_a_report_of_a_stored_result_says_what_was_seen_when_it_was_computed(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    computed = run_video(store, video_id, config())
    found = run_video(store, video_id, config())
    for one, other in zip(computed, found, strict=True):
        assert (one.counts, one.flags, one.checks, one.compute_seconds) == (other.counts, other.flags, other.checks, other.compute_seconds)
        np.testing.assert_equal(dict(one.numbers), dict(other.numbers))
        assert one.peak_rss_mb > 10


def test_every_stage_reports_all_its_checks(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    for report in run_video(store, video_id, config()):
        assert [check.name for check in report.checks] == [spec.name for spec in specs(report.stage)]
        assert all(check.passed for check in report.checks)


def test_checks_are_kept_in_the_pointer(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    run_video(store, video_id, config(), until="frames")
    pointer = store.current(video_id, "frames")
    assert pointer is not None
    assert [check["name"] for check in pointer.checks] == ["timestamps_monotonic", "complete"]


def test_until_stops_after_that_stage(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    reports = run_video(store, video_id, config(), until="intrinsics")
    assert [report.stage for report in reports] == ["frames", "keyframes", "intrinsics"]
    assert states(store, video_id, config())["ba_poses"] == "missing"


def test_a_stage_whose_input_is_missing_says_which(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    with pytest.raises(StoreError, match=r"keyframes needs frames .* the store has none; run the video until keyframes"):
        run_stage(store, video_id, "keyframes", config())


def test_a_stage_whose_input_is_of_another_configuration_is_refused(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    run_video(store, video_id, config())
    with pytest.raises(StoreError, match=r"dense_depth needs ba_poses .* another version"):
        run_stage(store, video_id, "dense_depth", config(*CHANGED_BA))


def test_states_tell_current_stored_stale_and_missing_apart(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    run_video(store, video_id, config(), until="ba_poses")
    run_video(store, video_id, config(*CHANGED_BA), until="ba_poses")
    found = states(store, video_id, config())
    assert found == {**dict.fromkeys(ALL[:3], "current"), "ba_poses": "stored", "dense_depth": "missing", "aligned_depth": "missing"}
    assert states(store, video_id, config("ba_poses.grid_columns=16"))["ba_poses"] == "stale"


def test_nothing_is_left_to_do_only_when_all_is_current(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    assert current_reports(store, video_id, config()) is None
    run_video(store, video_id, config(), until="intrinsics")
    assert current_reports(store, video_id, config()) is None
    reports = current_reports(store, video_id, config(), until="intrinsics")
    assert reports is not None
    assert [report.status for report in reports] == ["current"] * 3


def test_a_failing_stage_leaves_what_was_there(
    store: VideoStore, video_id: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_video(store, video_id, config())[-1]

    def breaks(*_: Any, **__: Any) -> Any:
        yield from quick_stages.triangulate(store.frames(video_id), None, None)  # type: ignore[arg-type]
        raise EstimationError("lost")

    quick_stages.replace(monkeypatch, "dense_depth", "triangulate", breaks, calls)
    with pytest.raises(EstimationError, match="lost"):
        run_video(store, video_id, config(*CHANGED_BA))
    pointer = store.current(video_id, "aligned_depth")
    assert pointer is not None
    assert pointer.fingerprint == before.fingerprint
    assert len(store.generations(video_id, "dense_depth")) == 1


def test_a_failed_blocking_check_stops_what_is_below(
    store: VideoStore, video_id: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(*arguments: Any, **named: Any) -> Any:
        return dataclasses.replace(quick_stages.solve(*arguments, **named), residual_px_median=50.0)

    quick_stages.replace(monkeypatch, "ba_poses", "solve", wild, calls)
    with pytest.raises(EstimationError, match=r"ba_poses: check residual failed: median residual 50.00 px"):
        run_video(store, video_id, config())
    assert calls["dense_depth"] == 0


def test_a_video_without_parallax_passes_with_warnings(
    store: VideoStore, video_id: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def still(*arguments: Any, **named: Any) -> Any:
        poses = quick_stages.solve(*arguments, **named)
        return dataclasses.replace(poses, parallax=np.array([False]), residual_px_median=float("nan"), flags=("no_parallax",))

    def unknown(*arguments: Any, **named: Any) -> Any:
        for block in quick_stages.triangulate(*arguments, **named):
            nothing = np.zeros_like(block.measured)
            yield dataclasses.replace(block, z_depth=np.full_like(block.z_depth, np.nan), measured=nothing)

    quick_stages.replace(monkeypatch, "ba_poses", "solve", still, calls)
    quick_stages.replace(monkeypatch, "dense_depth", "triangulate", unknown, calls)
    reports = run_video(store, video_id, config())
    assert [check.name for report in reports for check in report.checks if not check.passed] == ["parallax"]
    assert reports[-1].flags == ("no_parallax", "depth_unknown")


@pytest.mark.parametrize("asset", ["keyframes", "ba_poses", "dense_depth", "aligned_depth"])
def test_rows_of_every_asset_are_found_by_frame_and_have_their_time(store: VideoStore, clip: Path, calls: Counter[str], asset: str) -> None:
    record = SourceRecord.of(open_source(str(clip)), Clip(start=0.5, stride=2))
    store.register(record)
    run_video(store, record.video_id, config())
    found = open_video(store.root, record.video_id)[asset].dataset.sel(frame=8)
    assert int(found["frame"]) == 8
    assert float(found["time"]) == pytest.approx(8 / 12)


def test_a_source_that_changed_since_it_was_registered_is_refused(store: VideoStore, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "changes.mp4", 4)
    record = SourceRecord.of(open_source(str(path)))
    store.register(record)
    write_clip(path, 4, seed=1)
    with pytest.raises(SourceError, match="no longer the video that was registered"):
        run_stage(store, record.video_id, "frames", config())
    assert store.current(record.video_id, "frames") is None


def test_an_unregistered_video_is_named(store: VideoStore) -> None:
    with pytest.raises(StoreError, match="nobody"):
        run_stage(store, "nobody", "frames", config())


def test_progress_counts_rows(store: VideoStore, video_id: str, calls: Counter[str]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    run_video(store, video_id, config(), progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert ("dense_depth", FRAMES, FRAMES) in seen
    assert max(done for stage, done, _ in seen if stage == "frames") == FRAMES


def test_a_given_calibration_is_used(store: VideoStore, clip: Path, calls: Counter[str]) -> None:
    given = Calibration("pinhole", np.array([300.0, 300, 79.5, 59.5, 0, 0, 0, 0, 0]), 160, 120)
    record = SourceRecord.of(open_source(str(clip)), given=given)
    store.register(record)
    run_video(store, record.video_id, config(), until="intrinsics")
    stored = store.open(record.video_id, "intrinsics")
    assert stored.attrs["source"] == "given"
    np.testing.assert_allclose(stored["source_params"].values, given.params)


def photos(folder: Path, focal_35mm: int) -> str:
    """A folder of three pictures, 160 x 120, that name their focal length."""
    folder.mkdir()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = focal_35mm
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (120, 160, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", exif=exif)
    return str(folder)


@pytest.mark.parametrize(
    ("focal_35mm", "source", "prior"), [(26, "metadata", (26 * 200 / np.hypot(36, 24) / 160, 0.05)), (0, "estimated", None)]
)
def test_a_focal_length_in_metadata_is_the_prior(
    store: VideoStore,
    tmp_path: Path,
    calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    focal_35mm: int,
    source: str,
    prior: tuple[float, float] | None,
) -> None:
    seen = []

    def calibrate(frames: Any, keyframes: Any, config: Any, given: Any, **named: Any) -> Any:
        seen.append((config.prior_focal, config.prior_std))
        return quick_stages.calibrate(frames, keyframes, config, given, **named)

    quick_stages.replace(monkeypatch, "intrinsics", "calibrate", calibrate, calls)
    record = SourceRecord.of(open_source(photos(tmp_path / "photos", focal_35mm)))
    store.register(record)
    run_video(store, record.video_id, config(), until="intrinsics")
    usual = config().intrinsics
    assert seen == [pytest.approx(prior or (usual.prior_focal, usual.prior_std))]
    assert store.open(record.video_id, "intrinsics").attrs["source"] == source


def test_a_given_calibration_outranks_metadata(store: VideoStore, tmp_path: Path, calls: Counter[str]) -> None:
    given = Calibration("pinhole", np.array([300.0, 300, 79.5, 59.5, 0, 0, 0, 0, 0]), 160, 120)
    record = SourceRecord.of(open_source(photos(tmp_path / "photos", 26)), given=given)
    store.register(record)
    run_video(store, record.video_id, config(), until="intrinsics")
    assert store.open(record.video_id, "intrinsics").attrs["source"] == "given"
