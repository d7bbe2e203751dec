"""Ingestion: what appears in a location becomes a video once, whatever happens to file, process or place."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest

from assets_defs.definitions import build_definitions
from assets_defs.ingestion import INGEST_SENSOR
from assets_defs.maintenance import RETRY_JOB
from assets_defs.partitions import VIDEOS
from platform_worlds import World, clip_in, world
from video_files import write_sound
from vipe_dag import ingest as domain
from vipe_dag.errors import SourceError
from vipe_dag.ingest import DIED, read_ledger
from vipe_dag.video import SourceRecord


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos with different contents."""
    folder = tmp_path_factory.mktemp("clips")
    return [clip_in(folder, f"clip{seed}.mp4", seed, 4) for seed in range(3)]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def place(tmp_path: Path, inbox: Path) -> Iterator[World]:
    with world(tmp_path / "store") as place:
        place.operate(ingest={"location": str(inbox)})
        yield place


def look(place: World, times: int = 2) -> list[str]:
    """The videos known after so many ticks; two are what it takes to see that a file has settled."""
    for _ in range(times):
        place.look(INGEST_SENSOR)
    return list(place.instance.get_dynamic_partitions(VIDEOS))


def test_a_file_is_taken_in_once_it_is_the_same_in_two_ticks(place: World, inbox: Path, clips: list[Path]) -> None:
    shutil.copy(clips[0], inbox / "a.mp4")
    assert look(place, 1) == []
    assert place.said.startswith("1 waiting")
    (video,) = look(place, 1)
    assert place.store.source(video).uri == str(inbox / "a.mp4")
    assert look(place) == [video]
    assert place.said == "nothing new"


def test_a_file_that_still_grows_is_left_alone(place: World, inbox: Path, clips: list[Path]) -> None:
    content = clips[0].read_bytes()
    for part in (100, 200, len(content)):
        (inbox / "a.mp4").write_bytes(content[:part])
        assert look(place, 1) == []
    assert len(look(place, 1)) == 1


def test_a_marker_beside_the_file_says_that_it_is_complete(place: World, inbox: Path, clips: list[Path]) -> None:
    place.operate(ingest={"location": str(inbox), "ready": "marker"})
    shutil.copy(clips[0], inbox / "a.mp4")
    assert look(place, 3) == []
    (inbox / "a.mp4.done").touch()
    assert len(look(place, 1)) == 1


def test_files_come_in_natural_order_and_bounded_per_tick(place: World, inbox: Path, clips: list[Path]) -> None:
    place.operate(ingest={"location": str(inbox), "files_per_tick": 2})
    for name, clip in zip(("clip10.mp4", "clip9.mp4", "sub/clip1.mp4"), clips, strict=True):
        (inbox / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip, inbox / name)
    assert [video.rpartition("-")[0] for video in look(place, 2)] == ["clip9", "clip10"]
    assert [video.rpartition("-")[0] for video in look(place, 1)] == ["clip9", "clip10", "clip1"]


def test_hidden_files_and_files_that_are_no_videos_are_not_looked_at(place: World, inbox: Path, clips: list[Path]) -> None:
    (inbox / ".hidden").mkdir()
    for name in (".a.mp4", ".hidden/b.mp4", "notes.txt"):
        shutil.copy(clips[0], inbox / name)
    assert look(place) == []
    assert read_ledger(place.store).files == {}


def test_a_changed_file_supersedes_the_video_it_was(place: World, inbox: Path, clips: list[Path]) -> None:
    shutil.copy(clips[0], inbox / "a.mp4")
    (old,) = look(place)
    shutil.copy(clips[1], inbox / "a.mp4")
    _, new = look(place)
    assert old != new
    assert read_ledger(place.store).superseded == {old}
    assert place.store.source(old).digest != place.store.source(new).digest
    assert [request.partition_key for request in place.look()] == [new]


def test_a_file_that_becomes_what_it_was_before_is_that_video_again(place: World, inbox: Path, clips: list[Path]) -> None:
    for clip in (clips[0], clips[1], clips[0]):
        (inbox / "a.mp4").unlink(missing_ok=True)
        shutil.copy(clip, inbox / "a.mp4")
        videos = look(place)
    assert read_ledger(place.store).superseded == {videos[1]}


def test_a_deletion_is_noticed_and_destroys_nothing(place: World, inbox: Path, clips: list[Path]) -> None:
    shutil.copy(clips[0], inbox / "a.mp4")
    (video,) = look(place)
    (inbox / "a.mp4").unlink()
    assert look(place, 1) == [video]
    assert "1 deleted at the source, results kept" in place.said
    assert place.store.source(video).video_id == video
    assert place.look() == []
    assert f"1 to be decoded again, but deleted at the source ({video})" in place.said


def test_a_place_that_cannot_be_listed_is_not_an_empty_one(place: World, inbox: Path, clips: list[Path]) -> None:
    shutil.copy(clips[0], inbox / "a.mp4")
    look(place)
    inbox.rename(inbox.with_name("elsewhere"))
    with pytest.raises(SourceError, match="no such file or folder"):
        domain.ingest(place.store, domain.IngestSettings(location=str(inbox)), lambda _: None)
    assert not read_ledger(place.store).gone


def test_a_location_that_is_a_file_is_refused(place: World, inbox: Path, clips: list[Path]) -> None:
    with pytest.raises(SourceError, match="is no folder that can be listed"):
        domain.ingest(place.store, domain.IngestSettings(location=str(clips[0])), lambda _: None)
    assert domain.ingest(place.store, domain.IngestSettings(location=str(inbox)), lambda _: None).taken == []


def test_a_poisoned_file_is_quarantined_with_its_reason_and_the_others_come_in(place: World, inbox: Path, clips: list[Path]) -> None:
    place.operate(ingest={"location": str(inbox), "attempts": 2})
    (inbox / "a.mp4").write_bytes(b"no video at all" * 100)
    write_sound(inbox / "b.mp4")
    shutil.copy(clips[0], inbox / "c.mp4")
    assert len(look(place, 3)) == 1
    entries = {Path(name).name: entry for name, entry in read_ledger(place.store).files.items()}
    assert {name: entry.state for name, entry in entries.items()} == {"a.mp4": "quarantine", "b.mp4": "quarantine", "c.mp4": "taken"}
    assert "b.mp4" in (entries["b.mp4"].reason or "")
    assert place.said == f"2 in quarantine ({', '.join(str(entries[name].reason) for name in ('a.mp4', 'b.mp4'))})"


def test_quarantine_ends_on_demand_or_with_a_new_content(place: World, inbox: Path, clips: list[Path]) -> None:
    place.operate(ingest={"location": str(inbox), "attempts": 1})
    for name in ("a.mp4", "b.mp4"):
        (inbox / name).write_bytes(b"no video at all" * 100)
    assert look(place, 3) == []
    shutil.copy(clips[0], inbox / "b.mp4")
    assert len(look(place)) == 1
    definitions = build_definitions(root=str(place.root))
    assert definitions.resolve_job_def(RETRY_JOB).execute_in_process(instance=place.instance).success
    assert read_ledger(place.store).files[str(inbox / "a.mp4")].state == "waiting"


def test_a_file_that_kills_the_process_ends_in_quarantine(
    place: World, inbox: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(clips[0], inbox / "a.mp4")
    look(place, 1)

    def die(*_: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr("vipe_dag.registration.read_source", die)
    settings = domain.IngestSettings(location=str(inbox), attempts=2)
    for _ in range(2):
        with pytest.raises(SystemExit):
            domain.ingest(place.store, settings, lambda _: None)
    assert len(domain.ingest(place.store, settings, lambda _: None).quarantined) == 1
    assert read_ledger(place.store).files[str(inbox / "a.mp4")].reason == DIED


def test_a_process_killed_before_it_remembers_takes_nothing_in_twice(
    place: World, inbox: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(clips[0], inbox / "a.mp4")
    look(place, 1)

    def add_and_die(video_id: str) -> None:
        place.instance.add_dynamic_partitions(VIDEOS, [video_id])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        domain.ingest(place.store, domain.IngestSettings(location=str(inbox)), add_and_die)
    assert len(look(place, 1)) == 1
    assert [entry.state for entry in read_ledger(place.store).files.values()] == ["taken"]


def test_one_content_in_two_files_is_one_video(place: World, inbox: Path, clips: list[Path]) -> None:
    for name in ("a", "b"):
        (inbox / name).mkdir()
        shutil.copy(clips[0], inbox / name / "clip.mp4")
    (video,) = look(place)
    assert place.store.source(video).uri == str(inbox / "a" / "clip.mp4")
    shutil.rmtree(inbox / "b")
    look(place, 1)
    assert not read_ledger(place.store).gone


def test_a_thousand_files_at_once_are_each_taken_in_once_and_in_order_though_a_tick_is_killed_half_way(
    place: World, inbox: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def read(uri: str) -> SourceRecord:
        opened.append(Path(uri).stem)
        if len(opened) == 600:
            raise SystemExit(9)
        return SourceRecord(video_id=opened[-1], uri=uri, digest=f"{int(opened[-1][1:]):016x}")

    monkeypatch.setattr("vipe_dag.registration.read_source", read)
    monkeypatch.setattr("vipe_dag.registration.require_frames", lambda _: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    place.operate(ingest={"location": str(inbox), "files_per_tick": 400})
    names = [f"v{number}" for number in range(1000)]
    for name in names:
        (inbox / f"{name}.mp4").write_bytes(b"x")
    assert look(place, 1) == []
    known, ticks = 0, 0
    while known < len(names) and ticks < 50:  # a slow machine opens fewer in the seconds of a tick
        ticks += 1
        with suppress(SystemExit):
            assert len(look(place, 1)) - known <= 400
        videos = list(place.instance.get_dynamic_partitions(VIDEOS))
        known = len(videos)
        assert videos == names[:known]
    assert place.store.names() == sorted(names)
    assert max(Counter(opened).values()) == 2, "of a tick that was killed, files are looked at once more"
    before = len(opened)
    assert look(place, 2) == names
    assert len(opened) == before


def test_objects_of_any_file_system_are_taken_in(place: World, clips: list[Path]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/inbox/a.mp4", clips[0].read_bytes())
    place.operate(ingest={"location": "memory://inbox"})
    (video,) = look(place)
    assert place.store.source(video).uri == "memory:///inbox/a.mp4"
    memory.rm("/inbox", recursive=True)


def test_the_sensor_starts_with_dagster_where_a_location_is_named(place: World) -> None:
    assert build_definitions(root=str(place.root)).resolve_sensor_def(INGEST_SENSOR).default_status == dg.DefaultSensorStatus.RUNNING
    place.operate()
    assert build_definitions(root=str(place.root)).resolve_sensor_def(INGEST_SENSOR).default_status == dg.DefaultSensorStatus.STOPPED
    look(place, 1)
    assert place.said.startswith("nothing is watched")
