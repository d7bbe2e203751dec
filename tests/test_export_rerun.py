"""Recordings for Rerun, read back by its own reader: what is seen when, from where, and what is left out."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exported_clip import VIDEO, Result, make_result
from vipe_dag import cli, synthetic
from vipe_dag.errors import ConfigError
from vipe_dag.export import export_video
from vipe_dag.export.cloud import Thinning
from vipe_dag.export.straight import Straight

pytest.importorskip("rerun", reason="rerun-sdk is not installed")

THIN = Thinning(every=2, stride=4)


class Recording:
    """The rows of a recording by entity, in order of time; static ones have no time."""

    def __init__(self, path: Path) -> None:
        from rerun.chunk import RrdReader

        reader = RrdReader(path)
        assert reader.store().schema()  # a file that is complete has an index
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for chunk in reader.stream():
            self.rows.setdefault(chunk.entity_path.lstrip("/"), []).extend(chunk.to_record_batch().to_pylist())

    def values(self, entity: str, component: str) -> list[Any]:
        """Values of a component that has one per frame, in order of frames."""
        rows = [row for row in self.rows[entity] if row.get(component) is not None]
        return [row[component] for row in sorted(rows, key=lambda row: row.get("frame", 0))]

    def frames(self, entity: str, component: str) -> list[int]:
        return sorted(row["frame"] for row in self.rows[entity] if row.get(component) is not None)

    def times(self, entity: str, component: str) -> list[float]:
        return sorted(row["time"].total_seconds() for row in self.rows[entity] if row.get(component) is not None)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make_result(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def recording(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("rerun") / "room.rrd"
    return Recording(export_video(result.store, VIDEO, "rerun", path, thinning=THIN).path)


def test_every_frame_is_at_its_time_in_the_source(result: Result, recording: Recording) -> None:
    frames = result.store.frames(VIDEO)
    assert recording.frames("segment_0/camera/rgb", "EncodedImage:blob") == frames.frame.tolist()
    np.testing.assert_allclose(recording.times("segment_0/camera/rgb", "EncodedImage:blob"), frames.time, atol=1e-6)


def test_the_camera_is_where_it_was(result: Result, recording: Recording) -> None:
    position = np.array(recording.values("segment_0/camera", "Transform3D:translation"))[:, 0]
    columns = np.array(recording.values("segment_0/camera", "Transform3D:mat3x3"))[:, 0].reshape(-1, 3, 3)
    np.testing.assert_allclose(position, result.clip.cam2world[:, :3, 3], atol=1e-6)
    np.testing.assert_allclose(columns.transpose(0, 2, 1), result.clip.cam2world[:, :3, :3], atol=1e-6)


def test_the_pinhole_counts_from_the_corner_at_working_resolution(result: Result, recording: Recording) -> None:
    camera = result.truth.camera
    fx, fy, cx, cy = camera.params[:4]
    columns = np.array(recording.values("segment_0/camera", "Pinhole:image_from_camera"))[:, 0].reshape(-1, 3, 3)
    expected = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])
    np.testing.assert_allclose(columns.transpose(0, 2, 1), np.tile(expected, (6, 1, 1)), rtol=1e-6)
    assert recording.values("segment_0/camera", "Pinhole:resolution")[0] == [[camera.width, camera.height]]


def test_pictures_and_depth_are_those_of_the_store(result: Result, recording: Recording) -> None:
    (blob,) = recording.values("segment_0/camera/rgb", "EncodedImage:blob")[3]
    picture = np.asarray(Image.open(io.BytesIO(bytes(blob)))).astype(float)
    assert np.abs(picture - result.store.frames(VIDEO).rgb(3)).mean() < 3
    (buffer,) = recording.values("segment_0/camera/depth", "DepthImage:buffer")[3]
    stored = result.store.depth(VIDEO, "aligned_depth").depth(3)[0]
    np.testing.assert_array_equal(np.frombuffer(bytes(buffer), np.float16).reshape(stored.shape), stored.astype(np.float16))


def test_keyframes_and_segment_are_series_over_time(result: Result, recording: Recording) -> None:
    assert recording.values("keyframe", "Scalars:scalars") == [[1.0], [0.0]] * 3
    assert recording.values("segment", "Scalars:scalars") == [[0.0]] * 6
    (keyframes,) = recording.values("segment_0/keyframes", "Points3D:positions")
    np.testing.assert_allclose(keyframes, result.clip.cam2world[result.keyframe, :3, 3], atol=1e-6)


def test_the_cloud_is_that_of_the_ply(result: Result, recording: Recording, tmp_path: Path) -> None:
    (points,) = recording.values("segment_0/cloud", "Points3D:positions")
    ply = export_video(result.store, VIDEO, "ply", tmp_path / "room.ply", thinning=THIN)
    assert ply.notes[0] == f"{len(points)} points"


def test_each_segment_has_a_world_and_a_lost_frame_clears_the_camera(tmp_path: Path) -> None:
    tracked, segment = np.array([1, 0, 1, 1, 1, 1], bool), np.array([0, 0, 0, 0, 1, 1])
    result = make_result(tmp_path, tracked=tracked, segment=segment)
    written = export_video(result.store, VIDEO, "rerun", tmp_path / "room.rrd", thinning=THIN)
    assert written.notes == ("1 of 6 frames have no pose and are left out",)
    recording = Recording(written.path)
    assert recording.frames("segment_0/camera", "Transform3D:translation") == [0, 2, 3]
    assert recording.frames("segment_0/camera", "Clear:is_recursive") == [1, 4]
    assert recording.frames("segment_1/camera", "Transform3D:translation") == [4, 5]
    assert {"segment_0/cloud", "segment_1/cloud"} <= set(recording.rows)


def test_a_segment_without_a_cloud_is_mentioned_and_the_rest_is_written(result: Result, tmp_path: Path) -> None:
    blind = Thinning(every=1, stride=90, min_confidence=0, voxel=0)
    nothing = (np.full((90, 160), np.nan, np.float32), np.zeros((90, 160), np.uint8), np.zeros((90, 160), bool))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("vipe_dag.store.reader.StoredDepth.depth", lambda self, row: nothing)
        written = export_video(result.store, VIDEO, "rerun", tmp_path / "room.rrd", thinning=blind)
    (note,) = written.notes
    assert note.startswith("segment_0 has no cloud: ")
    assert "segment_0/cloud" not in Recording(written.path).rows


@pytest.mark.parametrize("scene", ["room_barrel", "room_fisheye"])
def test_a_bent_lens_is_straightened(scene: str) -> None:
    clip = synthetic.scene(scene, n_frames=2, width=160, height=120)
    straight = Straight(clip.camera)
    assert straight.bent
    pinhole = synthetic.SyntheticClip(clip.name, clip.worlds, clip.shot, clip.cam2world, straight.camera, clip.fps)
    z, expected = straight.depth(clip.truth(1)[0]), pinhole.truth(1)[0]
    seen = np.isfinite(z)
    assert seen.mean() > 0.6
    assert np.median(np.abs(z[seen] / expected[seen] - 1)) < 0.005
    difference = np.abs(straight.rgb(clip.rgb(1))[seen].astype(float) - pinhole.rgb(1)[seen])
    assert np.median(difference) < 8


def test_a_bent_lens_is_mentioned(tmp_path: Path) -> None:
    result = make_result(tmp_path, count=2, scene="room_barrel")
    (note,) = export_video(result.store, VIDEO, "rerun", tmp_path / "room.rrd", thinning=THIN).notes
    assert note.startswith("the lens is brown with distortion")


def test_without_the_package_the_extra_is_named_and_nothing_is_left(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match=r"needs the package rerun-sdk: pip install 'vipe-dag\[rerun\]'"):
        export_video(result.store, VIDEO, "rerun", tmp_path / "room.rrd")
    assert cli.main(["export", "rerun", VIDEO, str(tmp_path / "room.rrd"), "--store", result.store.root]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
