"""The report: one page without any other file, that says what the store holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stored_clip import FINGERPRINT, VIDEO, second_generation, store_clip
from test_demo_page import Reader
from vipe_dag import synthetic
from vipe_dag.config import load_config
from vipe_dag.errors import SourceError, StoreError
from vipe_dag.pipeline import wanted
from vipe_dag.report import motion, write_report
from vipe_dag.store import VideoStore

URI = '/videos/<b>"&.mp4'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VideoStore:
    made = VideoStore(tmp_path_factory.mktemp("store"))
    store_clip(made, synthetic.scene("room", n_frames=8, width=64, height=36, supersample=1), tracked=np.arange(8) != 3, uri=URI)
    return made


@pytest.fixture(scope="module")
def page(store: VideoStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tmp_path_factory.mktemp("page") / "report.html", store, VIDEO).read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_file(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.sources) == 9
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_every_subject_has_its_section(page: str) -> None:
    for title in ("Camera path", "Speed and rotation", "Focal length", "Residuals per keyframe", "Depth", "Checks", "Configuration"):
        assert f"<h2>{title}" in page


def test_it_names_the_video_its_source_and_its_fingerprints(page: str) -> None:
    for expected in (VIDEO, "/videos/&lt;b&gt;&quot;&amp;.mp4", FINGERPRINT, "7 of 8", "another configuration"):
        assert expected in page


def test_a_result_of_a_known_configuration_shows_its_values(tmp_path: Path) -> None:
    other = VideoStore(tmp_path / "store")
    store_clip(other, synthetic.scene("room", n_frames=4, width=64, height=36, supersample=1))
    fast = wanted(other, VIDEO, load_config("fast"))["ba_poses"]
    second_generation(other, other.open(VIDEO, "ba_poses")["cam2world"].values, fast)
    page = write_report(tmp_path / "report.html", other, VIDEO).read_text(encoding="utf-8")
    assert "preset fast" in page
    assert "ba_poses.grid_columns" in page


def test_speed_and_rotation_of_a_known_motion() -> None:
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = [0.0, 1.0, 3.0, 9.0]
    poses[:, :3, :3] = Rotation.from_rotvec(np.outer([0, 1, 2, 3], [0, 0, 30]), degrees=True).as_matrix()
    found = motion(np.array([0.0, 0.5, 1.0, 1.5]), poses, np.ones(4, bool), np.array([0, 0, 0, 1], np.int32))
    assert found.time.tolist() == [0.5, 1.0]
    assert found.speed == pytest.approx([2.0, 4.0])
    assert found.turn == pytest.approx([60.0, 60.0])


def test_a_frame_that_was_not_tracked_is_bridged_at_its_own_time() -> None:
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0.0, np.nan, 2.0]
    found = motion(np.array([0.0, 1.0, 2.0]), poses, np.array([True, False, True]), np.zeros(3, np.int32))
    assert found.speed.tolist() == [1.0]


def test_an_existing_page_is_kept(store: VideoStore, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(SourceError, match=r"exists already; .*--overwrite"):
        write_report(out, store, VIDEO)
    assert out.read_text() == "mine"
    assert VIDEO in write_report(out, store, VIDEO, overwrite=True).read_text(encoding="utf-8")


def test_a_missing_folder_says_what_to_do(store: VideoStore, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist; create it first"):
        write_report(tmp_path / "nowhere" / "report.html", store, VIDEO)


def test_an_unknown_video_is_named_with_the_nearest(store: VideoStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"no video 'rom-0a1b2c3d' in .*{VIDEO}"):
        write_report(tmp_path / "report.html", store, "rom-0a1b2c3d")
