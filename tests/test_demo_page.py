"""The demo: what it renders, what it reports, and a page that needs no other file."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stored_clip import VIDEO, store_clip
from vipe_dag import demo, plots, synthetic
from vipe_dag.store import VideoStore

SIZE = {"n_frames": 12, "width": 64, "height": 36, "supersample": 1}
SECONDS = {"frames": 1.5, "ba_poses": 6.0}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoPaths:
    return demo.prepare(tmp_path_factory.mktemp("demo"), **SIZE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VideoStore:
    made = VideoStore(tmp_path_factory.mktemp("store"))
    clip = synthetic.scene("room", **SIZE)
    poses = clip.cam2world.copy()
    poses[:, :3, 3] += np.random.default_rng(0).normal(0, 0.01, (12, 3))
    store_clip(made, clip, cam2world=poses, tracked=np.arange(12) != 3, focal_factor=1.02, depth_factor=0.5)
    return made


@pytest.fixture(scope="module")
def summary(store: VideoStore, paths: demo.DemoPaths) -> demo.DemoSummary:
    return demo.summarise(store, VIDEO, paths.truth_dir, SECONDS)


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_preparing_leaves_a_video_and_its_truth(paths: demo.DemoPaths) -> None:
    assert paths.video.name == "room.mp4"
    assert sorted(path.name for path in paths.video.parent.iterdir()) == ["room.mp4", "truth"]
    assert sorted(path.name for path in paths.truth_dir.iterdir()) == ["depth", "groundtruth.txt", "intrinsics.json"]


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    demo.prepare(tmp_path, progress=lambda done, total: seen.append((done, total)), **{**SIZE, "n_frames": 10})
    assert seen == [(i, 10) for i in range(1, 11)]


def test_the_summary_reports_the_errors_that_were_put_in(summary: demo.DemoSummary) -> None:
    assert summary.focal_error_percent == pytest.approx(2)
    assert summary.focal_estimate / summary.focal_truth == pytest.approx(1.02)
    assert 0.005 < summary.ate_rmse < 0.02
    assert summary.ate_percent == pytest.approx(100 * summary.ate_rmse / summary.path_length)
    assert summary.depth_scale == pytest.approx(2, rel=1e-3)
    assert summary.abs_rel < 1e-3
    assert (summary.frames, summary.frames_posed) == (12, 11)
    assert json.loads(json.dumps(summary.to_dict()))["seconds_per_stage"] == SECONDS


class Reader(HTMLParser):
    """Collects pictures and notes any tag left open."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
            assert dict(attrs)["alt"]
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_well_formed_file_with_every_number(
    tmp_path: Path, store: VideoStore, paths: demo.DemoPaths, summary: demo.DemoSummary
) -> None:
    page = demo.write_page(tmp_path / "new" / "index.html", store, VIDEO, paths.truth_dir, summary).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r'(src|href)="(?!data:)', page)
    for expected in (VIDEO, f"{summary.ate_percent:.2f} %", "2.00 %", "11 of 12", "ba_poses", "7.5 s"):
        assert expected in page


def test_a_run_that_computed_nothing_has_a_page_too(tmp_path: Path, store: VideoStore, paths: demo.DemoPaths) -> None:
    summary = demo.summarise(store, VIDEO, paths.truth_dir)
    page = demo.write_page(tmp_path / "index.html", store, VIDEO, paths.truth_dir, summary)
    assert "nothing had to be computed" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("stage", "name"), [("frames", "frames_strip"), ("ba_poses", "trajectory"), ("aligned_depth", "depth_strip")])
def test_each_stage_has_a_picture_small_enough_for_an_event(store: VideoStore, stage: str, name: str) -> None:
    pictures = plots.stage_pictures(store, VIDEO, stage)
    assert list(pictures) == [name]
    assert size_of(pictures[name])[0] > 300
    assert len(pictures[name]) < 48_000


def test_depth_colours_go_from_near_to_far_and_unknown_is_grey() -> None:
    colours = plots.depth_colours(np.array([[1.0, 10.0, np.nan]]), 1.0, 10.0)
    red, blue, unknown = colours[0].astype(int)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert unknown.tolist() == [plots.UNKNOWN] * 3


def test_errors_are_dark_where_depth_is_right() -> None:
    right, wrong, unknown = plots.error_colours(np.array([[2.0, 3.0, np.nan]]), np.full((1, 3), 2.0))[0].astype(int)
    assert right.sum() < 30 < wrong.sum()
    assert unknown.tolist() == [plots.UNKNOWN] * 3


def test_the_range_of_unknown_depth_is_still_a_range() -> None:
    near, far = plots.depth_range([np.full((2, 2), np.nan)])
    assert near < far


def test_a_static_camera_and_one_with_no_pose_can_be_drawn() -> None:
    still = np.tile(np.eye(4), (5, 1, 1))
    assert size_of(plots.trajectory(still)) == (720, 300)
    assert size_of(plots.trajectory(still, tracked=np.zeros(5, bool))) == (720, 300)


def test_rows_of_a_strip_are_spread_and_never_repeat() -> None:
    assert plots.spread_rows(100, 4) == [12, 37, 62, 87]
    assert plots.spread_rows(2, 4) == [0, 1]
