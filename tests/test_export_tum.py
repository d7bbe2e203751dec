"""TUM files: what is written reads back, only tracked frames are in it, nothing is overwritten by accident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vipe_dag.errors import SourceError
from vipe_dag.export import tum


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, rng=rng).as_matrix()
    poses[:, :3, 3] = rng.normal(0, 10, (count, 3))
    return poses


def test_poses_survive_the_round_trip(tmp_path: Path) -> None:
    time, poses = 1.7e9 + np.arange(50) / 30, random_poses(50)
    read_time, read_poses = tum.read(tum.write(tmp_path / "poses.txt", time, poses))
    np.testing.assert_allclose(read_time, time, atol=1e-6, rtol=0)
    np.testing.assert_allclose(read_poses, poses, atol=1e-7)


def test_a_line_is_timestamp_position_quaternion_with_w_last(tmp_path: Path) -> None:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    pose[:3, 3] = 1, 2, 3
    lines = tum.write(tmp_path / "poses.txt", np.array([0.5]), pose[None]).read_text().splitlines()
    assert lines[0] == "# timestamp tx ty tz qx qy qz qw"
    half = np.sqrt(0.5)
    np.testing.assert_allclose([float(word) for word in lines[1].split()], [0.5, 1, 2, 3, 0, 0, half, half], atol=1e-9)


def test_evo_reads_what_is_written(tmp_path: Path) -> None:
    from evo.tools.file_interface import read_tum_trajectory_file

    poses = random_poses(5)
    path = tum.write(tmp_path / "poses.txt", np.arange(5.0), poses)
    np.testing.assert_allclose(np.stack(read_tum_trajectory_file(str(path)).poses_se3), poses, atol=1e-7)


def test_frames_without_a_pose_are_left_out(tmp_path: Path) -> None:
    tracked = np.array([True, False, True, True])
    time, poses = tum.read(tum.write(tmp_path / "poses.txt", np.arange(4.0), random_poses(4), tracked))
    assert time.tolist() == [0.0, 2.0, 3.0]
    assert len(poses) == 3


def test_nothing_tracked_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no frame"):
        tum.write(tmp_path / "poses.txt", np.arange(2.0), random_poses(2), np.zeros(2, bool))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    path.write_text("mine")
    with pytest.raises(SourceError, match="exists already"):
        tum.write(path, np.arange(2.0), random_poses(2))
    assert path.read_text() == "mine"
    tum.write(path, np.arange(2.0), random_poses(2), overwrite=True)
    assert len(tum.read(path)[0]) == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        tum.write(tmp_path / "no" / "poses.txt", np.arange(2.0), random_poses(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no pose"),
        ("# only a comment\n", "holds no pose"),
        ("0 1 2 3\n", "line 1"),
        ("0 1 2 3 0 0 0 1\n1 1 2 nan 0 0 0 1\n", "line 2"),
        ("0 1 2 3 0 0 0 0\n", "line 1"),
        ("a b c d e f g h\n", "line 1"),
    ],
)
def test_a_file_that_is_no_trajectory_says_where(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(content)
    with pytest.raises(SourceError, match=message):
        tum.read(path)


def test_unsorted_lines_are_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    path.write_text("2 20 0 0 0 0 0 1\n1 10 0 0 0 0 0 1\n")
    time, poses = tum.read(path)
    assert time.tolist() == [1.0, 2.0]
    assert poses[:, 0, 3].tolist() == [10.0, 20.0]
