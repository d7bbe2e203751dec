"""Exports read by programs and libraries that are not ours: what comes back is what is stored, as the formats' own conventions have it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from evo.tools.file_interface import read_kitti_poses_file, read_tum_trajectory_file

from exported_clip import VIDEO, Result, make_result
from vipe_dag.evaluate.references import resize_nearest
from vipe_dag.export import export_video


@dataclass(frozen=True)
class Read:
    """cam2world (N, 4, 4), OpenCV axes; time (N,) seconds; lens: fx fy cx cy, pixel centres at integers, then the coefficients."""

    cam2world: np.ndarray
    time: np.ndarray | None = None
    lens: np.ndarray | None = None
    depth: dict[int, np.ndarray] | None = None


def tum(path: Path) -> Read:
    found = read_tum_trajectory_file(str(path))
    return Read(np.stack(found.poses_se3), found.timestamps)


def kitti(path: Path) -> Read:
    return Read(np.stack(read_kitti_poses_file(str(path)).poses_se3))


def nerfstudio(path: Path) -> Read:
    """OpenGL axes, pixels counted from the corner."""
    content = json.loads((path / "transforms.json").read_text())
    opengl = np.array([frame["transform_matrix"] for frame in content["frames"]])
    names = ("k1", "k2", "k3", "k4") if content["camera_model"] == "OPENCV_FISHEYE" else ("k1", "k2", "p1", "p2", "k3")
    head = [content["fl_x"], content["fl_y"], content["cx"] - 0.5, content["cy"] - 0.5]
    time = np.array([frame["timestamp"] for frame in content["frames"]])
    return Read(opengl @ np.diag([1.0, -1, -1, 1]), time, np.array([*head, *(content[name] for name in names)]))


def colmap(path: Path) -> Read:
    """World to camera, pixels counted from the corner."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    model = pycolmap.Reconstruction(path / "sparse" / "0")
    poses = [np.vstack([model.images[number].cam_from_world().matrix(), [0, 0, 0, 1]]) for number in sorted(model.images)]
    (camera,) = model.cameras.values()
    lens = np.array(camera.params)
    lens[2:4] -= 0.5
    return Read(np.linalg.inv(np.stack(poses)), lens=lens)


def vipe(path: Path) -> Read:
    """As ViPE's own reader: npz with data and inds, a zip of half EXR."""
    with np.load(path / "pose" / f"{VIDEO}.npz") as file:
        poses, rows = file["data"], file["inds"]
    with np.load(path / "intrinsics" / f"{VIDEO}.npz") as file:
        lens = file["data"]
        assert np.array_equal(file["inds"], rows)
    depth = {}
    with zipfile.ZipFile(path / "depth" / f"{VIDEO}.zip") as archive:
        for name in archive.namelist():
            with OpenEXR.File(io.BytesIO(archive.read(name)), separate_channels=True) as picture:
                depth[int(name.removesuffix(".exr"))] = picture.channels()["Z"].pixels
    assert np.ptp(lens, axis=0).max() == 0
    return Read(poses, lens=lens[0], depth=depth)


READERS: dict[str, Callable[[Path], Read]] = {"tum": tum, "kitti": kitti, "nerfstudio": nerfstudio, "colmap": colmap, "vipe": vipe}
LENSES = [("nerfstudio", "room"), ("colmap", "room"), ("vipe", "room")]
LENSES += [(name, scene) for scene in ("room_barrel", "room_fisheye") for name in ("nerfstudio", "colmap")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    made: dict[str, Result] = {}

    def of(scene: str) -> Result:
        if scene not in made:
            made[scene] = make_result(tmp_path_factory.mktemp(scene), count=4, scene=scene)
        return made[scene]

    return of


def read(result: Result, name: str, folder: Path) -> Read:
    return READERS[name](export_video(result.store, VIDEO, name, folder / "out").path)


@pytest.mark.parametrize("name", READERS)
def test_poses_come_back(results: Callable[[str], Result], tmp_path: Path, name: str) -> None:
    result = results("room")
    np.testing.assert_allclose(read(result, name, tmp_path).cam2world, result.clip.cam2world, atol=1e-6)


@pytest.mark.parametrize("name", ["tum", "nerfstudio"])
def test_times_come_back(results: Callable[[str], Result], tmp_path: Path, name: str) -> None:
    result = results("room")
    np.testing.assert_allclose(read(result, name, tmp_path).time, result.store.frames(VIDEO).time, atol=1e-6)


@pytest.mark.parametrize(("name", "scene"), LENSES)
def test_the_lens_at_source_resolution_comes_back(results: Callable[[str], Result], tmp_path: Path, name: str, scene: str) -> None:
    result = results(scene)
    lens = read(result, name, tmp_path).lens
    assert lens is not None
    expected = result.clip.camera.params
    np.testing.assert_allclose(lens, expected[: len(lens)], rtol=1e-6, atol=1e-6)
    assert not expected[len(lens) :].any()


def test_depth_comes_back_as_half_floats(results: Callable[[str], Result], tmp_path: Path) -> None:
    result = results("room")
    found = read(result, "vipe", tmp_path).depth
    assert found is not None
    size = result.clip.camera.height, result.clip.camera.width
    for row in range(4):
        truth = resize_nearest(result.truth.truth(row)[0], *size).astype(np.float16)
        assert found[row].dtype == np.float16
        np.testing.assert_array_equal(found[row], truth)
