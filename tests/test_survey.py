"""Many videos against their references: where references come from, medians, failures that stop nobody, and the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stored_clip import store_clip
from vipe_dag import cli, evaluate, synthetic
from vipe_dag.errors import SourceError, StoreError
from vipe_dag.evaluate import ReferenceFiles
from vipe_dag.export import tum
from vipe_dag.store import VideoStore
from vipe_dag.synthetic import SyntheticClip

FOCAL_ERRORS = {"hall-00000001": 1.0, "room-00000002": 3.0, "yard-00000003": 8.0}
LOST = "lost-00000004"


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return synthetic.scene("room", n_frames=6, width=64, height=36, supersample=1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, clip: SyntheticClip) -> VideoStore:
    """Three videos with the true path and known errors of the focal length, and one that was lost."""
    made = VideoStore(tmp_path_factory.mktemp("filled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        for video_id, percent in FOCAL_ERRORS.items():
            store_clip(made, clip, video_id=video_id, focal_factor=1 + percent / 100)
        store_clip(made, clip, video_id=LOST, tracked=np.zeros(len(clip), bool))
    return made


@pytest.fixture
def store(filled: VideoStore, tmp_path: Path) -> VideoStore:
    """A copy to register references in."""
    shutil.copytree(filled.root, tmp_path / "store")
    return VideoStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path, clip: SyntheticClip) -> Path:
    """References of all four: by id, by name without the digest, and one with depth."""
    made = tmp_path / "references"
    truth = synthetic.write_truth(clip, tmp_path / "truth")
    made.mkdir()
    for name in ("hall-00000001", "room", "yard", "lost"):
        (made / f"{name}.txt").write_bytes((truth / "groundtruth.txt").read_bytes())
        (made / f"{name}.intrinsics.json").write_bytes((truth / "intrinsics.json").read_bytes())
    (truth / "depth").rename(made / "room.depth")
    return made


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


class TestSurvey:
    def test_medians_are_over_the_videos_that_have_a_value(self, store: VideoStore, folder: Path) -> None:
        found = evaluate.survey(store, evaluate.references_in(folder, store.videos()), temporal=False)
        assert list(found.evaluations) == list(FOCAL_ERRORS)
        assert found.values("focal_error_percent") == {name: pytest.approx(value) for name, value in FOCAL_ERRORS.items()}
        medians = found.medians()
        assert medians["focal_error_percent"] == pytest.approx(3)
        assert medians["ate_rmse"] < 1e-6
        assert found.values("abs_rel") == {"room-00000002": pytest.approx(0, abs=1e-3)}
        assert "tau5" not in medians

    def test_one_bad_video_is_counted_and_stops_nobody(self, store: VideoStore, folder: Path) -> None:
        found = evaluate.survey(store, evaluate.references_in(folder, store.videos()), temporal=False)
        assert set(found.failures) == {LOST}
        assert "the estimate has 0 poses" in found.failures[LOST]
        content = json.loads(json.dumps(found.to_dict()))
        assert (content["videos"], content["evaluated"], content["failed"]) == (4, 3, 1)
        assert content["medians"]["abs_rel"]["videos"] == 1

    def test_videos_without_a_reference_are_named(self, store: VideoStore, folder: Path) -> None:
        found = evaluate.survey(store, {"hall-00000001": ReferenceFiles(folder / "room.txt")}, temporal=False)
        assert found.unreferenced == (LOST, "room-00000002", "yard-00000003")

    def test_the_picture_shows_the_spread(self, store: VideoStore, folder: Path, tmp_path: Path) -> None:
        found = evaluate.survey(store, evaluate.references_in(folder, store.videos()), temporal=False)
        (tmp_path / "spread.png").write_bytes(evaluate.survey_picture(found))
        picture = np.asarray(Image.open(tmp_path / "spread.png").convert("RGB"))
        assert picture.std() > 10


class TestWhereReferencesComeFrom:
    def test_files_of_a_folder_are_named_like_videos(self, folder: Path) -> None:
        found = evaluate.references_in(folder, ["hall-00000001", "room-00000002", "yard-00000003"])
        assert found["hall-00000001"] == ReferenceFiles(folder / "hall-00000001.txt", None, folder / "hall-00000001.intrinsics.json")
        assert found["room-00000002"].depth_dir == folder / "room.depth"
        assert found["lost"].trajectory == folder / "lost.txt"  # of no video: fails when it is evaluated, with its name

    def test_a_name_that_fits_several_videos_is_refused(self, folder: Path) -> None:
        with pytest.raises(SourceError, match=r"room\.txt: fits 2 videos, room-00000002, room-00000009"):
            evaluate.references_in(folder, ["room-00000002", "room-00000009"])

    def test_a_table_names_files_relative_to_itself(self, folder: Path) -> None:
        table = folder / "all.csv"
        table.write_text("video_id,reference,intrinsics\nroom-00000002, room.txt,\nhall-00000001,yard.txt,yard.intrinsics.json\n")
        assert evaluate.references_in(table, []) == {
            "room-00000002": ReferenceFiles(folder / "room.txt"),
            "hall-00000001": ReferenceFiles(folder / "yard.txt", None, folder / "yard.intrinsics.json"),
        }

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "holds no line"),
            ("video_id,path\na,b\n", "has the columns path, video_id; expected video_id, reference"),
            ("video_id,reference,speed\na,b,c\n", "has the columns reference, speed, video_id"),
            ("video_id,reference\na,\n", "line 2: expected a video_id and a reference"),
            ("video_id,reference\na,b,c\n", "expected video_id, reference|no more cells"),
            ("video_id,reference\na,b\na,c\n", "line 3: a was named before"),
        ],
    )
    def test_a_bad_table_is_told_by_line(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "table.csv").write_text(content)
        with pytest.raises(SourceError, match=message):
            evaluate.references_in(tmp_path / "table.csv", [])

    def test_an_empty_folder_and_anything_else_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="holds no trajectory"):
            evaluate.references_in(tmp_path, [])
        with pytest.raises(SourceError, match=r"expected a folder of trajectories or a \.csv"):
            evaluate.references_in(tmp_path / "nowhere", [])

    def test_a_registered_reference_is_used_when_none_is_given(self, store: VideoStore, folder: Path) -> None:
        evaluate.register_reference(store, "room-00000002", folder / "room.txt")
        found = evaluate.evaluate_video(store, "room-00000002", temporal=False)
        assert found.trajectory.ate_rmse < 1e-6
        assert found.reference == store.reference_place("room-00000002")
        assert list(store.referenced()) == ["room-00000002"]
        assert store.videos() == sorted([*FOCAL_ERRORS, LOST])

    def test_only_trajectories_of_videos_of_the_store_are_registered(self, store: VideoStore, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("hello")
        with pytest.raises(SourceError, match=r"other\.txt"):
            evaluate.register_reference(store, "room-00000002", tmp_path / "other.txt")
        with pytest.raises(StoreError, match="no video 'roam'"):
            evaluate.register_reference(store, "roam", folder / "room.txt")
        assert store.referenced() == {}

    def test_a_damaged_registered_reference_is_named(self, store: VideoStore) -> None:
        store.register_reference("room-00000002", b"\xff\xfe")
        with pytest.raises(SourceError, match=r"room-00000002\.txt: cannot be read"):
            evaluate.evaluate_video(store, "room-00000002")


class TestCommandLine:
    def test_one_video_prints_every_error_with_its_alignment(
        self, terminal: Callable[..., tuple[int, str, str]], store: VideoStore, folder: Path, tmp_path: Path
    ) -> None:
        words = ["--reference", folder / "room.txt", "--depth-dir", folder / "room.depth", "--depth-alignment", "scale_shift_disp"]
        code, out, _ = terminal("evaluate", "room-00000002", *words, "--store", store.root, "--out", tmp_path / "out")
        assert code == 0
        for measure in ("ate_rmse", "rpe_translation", "rotation_mean_deg", "abs_rel", "delta3", "tae_percent", "tau5", "flicker_percent"):
            assert measure in out
        assert "scale_shift_disp" in out
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["temporal"]["pairs"] == 5

    def test_many_videos_print_a_median_and_leave_files(
        self, terminal: Callable[..., tuple[int, str, str]], store: VideoStore, folder: Path, tmp_path: Path
    ) -> None:
        code, out, err = terminal("evaluate", "--reference", folder, "--store", store.root, "--out", tmp_path / "out", "--no-temporal")
        assert code == 1  # one failed
        assert "3 evaluated, 1 failed, 0 of the store without a reference" in out
        assert "median" in out
        assert "ATE [% of path]" in out
        assert err.startswith(f"error: {LOST}")
        assert len(err.strip().splitlines()) == 1
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["medians"]["focal_error_percent"]["median"] == pytest.approx(
            3
        )
        assert (tmp_path / "out" / "evaluation.png").stat().st_size > 0

    def test_a_registered_reference_serves_later_calls(
        self, terminal: Callable[..., tuple[int, str, str]], store: VideoStore, folder: Path
    ) -> None:
        place = ["--store", store.root, "--no-temporal", "--json"]
        assert terminal("evaluate", "room-00000002", "--reference", folder / "room.txt", "--register", *place)[0] == 0
        code, out, _ = terminal("evaluate", *place)
        assert code == 0
        assert json.loads(out.splitlines()[-1])["evaluated"] == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["room-00000002"], "room-00000002 has no registered reference; give a file with --reference"),
            ([], "no video has a registered reference; name a folder or table"),
            (["--reference", "nowhere"], "expected a folder of trajectories or a .csv"),
            (["room-00000002", "--reference", "nowhere.txt"], "nowhere.txt: cannot be read as a trajectory"),
        ],
    )
    def test_bad_input_is_one_line(
        self, terminal: Callable[..., tuple[int, str, str]], store: VideoStore, words: list[str], message: str
    ) -> None:
        code, _, err = terminal("evaluate", *words, "--store", store.root)
        assert code == 1
        assert message in err
        assert len(err.strip().splitlines()) == 1

    @pytest.mark.parametrize("words", [["--register"], ["--depth-dir", "x"], ["room-00000002", "--register"]])
    def test_options_of_one_video_are_wrong_usage_without_it(
        self, terminal: Callable[..., tuple[int, str, str]], store: VideoStore, words: list[str]
    ) -> None:
        assert terminal("evaluate", *words, "--store", store.root)[0] == 2


def test_registered_references_are_found_on_a_store_with_other_notes(store: VideoStore, clip: SyntheticClip, tmp_path: Path) -> None:
    store.write_note("anything.json", b"{}")
    store.register_reference("room-00000002", tum.write(tmp_path / "r.txt", clip.time, clip.cam2world).read_bytes())
    before = store.referenced()
    store.register_reference("room-00000002", tum.write(tmp_path / "s.txt", clip.time[1:], clip.cam2world[1:]).read_bytes())
    assert list(store.referenced()) == ["room-00000002"]
    assert store.referenced() != before
