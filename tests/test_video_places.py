"""Sources behind URLs and in folders of videos, and how a source is named in a store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from object_store import ObjectStore
from video_files import numbers, refusal, write_pictures, write_video
from vipe_dag.calibration import Calibration
from vipe_dag.errors import ConfigError, SourceError
from vipe_dag.video import Clip, SourceRecord, expand_sources, make_video_id, open_source, validate_video_id


class _Parts(BaseHTTPRequestHandler):
    """A server that sends parts of files, as object stores and media servers do."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content) - 1), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop}/{len(content)}")
            content = content[start : stop + 1]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


class _Whole(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["parts", "whole"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Base URL of a web server on loopback over tmp_path: one that sends parts of files, one that sends whole files only."""
    handler = type("Parts", (_Parts,), {"folder": tmp_path}) if request.param == "parts" else partial(_Whole, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()


class TestWeb:
    @pytest.mark.parametrize("faststart", [True, False])
    def test_a_video_is_the_same_as_on_disk(self, server: str, tmp_path: Path, faststart: bool) -> None:
        path = write_video(tmp_path / "my clip.mp4", 12, faststart=faststart, sound=True)
        there, here = open_source(f"{server}/my%20clip.mp4"), open_source(str(path))
        assert [frame.time for frame in there.iterate()] == [frame.time for frame in here.iterate()]
        assert numbers(f"{server}/my%20clip.mp4") == list(range(12))
        assert (there.digest, there.name) == (here.digest, "my clip")

    def test_a_missing_video_is_refused(self, server: str) -> None:
        assert "no such file" in refusal(f"{server}/nothing.mp4")

    def test_credentials_and_queries_are_not_repeated(self, server: str) -> None:
        said = refusal(server.replace("http://", "http://me:secret@") + "/nothing.mp4?token=secret")
        assert "secret" not in said

    def test_a_server_that_is_not_there_is_refused(self) -> None:
        assert "http://127.0.0.1:9/v.mp4: cannot be read" in refusal("http://127.0.0.1:9/v.mp4?take=3")


class TestAnyFileSystem:
    @pytest.fixture
    def memory(self) -> Iterator[str]:
        import fsspec

        fs = fsspec.filesystem("memory")
        yield "memory://clips"
        fs.rm("/clips", recursive=True)

    def put(self, path: Path, uri: str) -> None:
        import fsspec

        with fsspec.open(uri, "wb") as stream:
            stream.write(path.read_bytes())

    def test_a_video_in_memory_is_read(self, memory: str, tmp_path: Path) -> None:
        self.put(write_video(tmp_path / "v.mp4", 12), f"{memory}/v.mp4")
        assert numbers(f"{memory}/v.mp4") == list(range(12))
        assert [numbers(uri) for uri in expand_sources([memory])] == [list(range(12))]

    def test_a_folder_in_memory_is_read(self, memory: str, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "walk", ["a.png", "b.png"])
        for path in folder.iterdir():
            self.put(path, f"{memory}/walk/rgb/{path.name}")
        (tmp_path / "rgb.txt").write_text("1 rgb/b.png\n2 rgb/a.png\n")
        self.put(tmp_path / "rgb.txt", f"{memory}/walk/rgb.txt")
        assert numbers(f"{memory}/walk") == [1, 0]
        assert expand_sources([f"{memory}/walk"])[0].endswith("clips/walk")

    def test_a_lost_connection_is_not_a_truncated_video(self, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.implementations.memory import MemoryFile

        path = write_video(tmp_path / "v.avi", 60, size=(320, 240), codec="rawvideo")
        self.put(path, f"{memory}/v.avi")
        read = MemoryFile.read

        def lost(file: MemoryFile, size: int = -1) -> bytes:
            if file.tell() > path.stat().st_size // 2:
                raise ConnectionResetError("peer went away")
            return read(file, size)

        monkeypatch.setattr(MemoryFile, "read", lost)
        with pytest.raises(SourceError, match="peer went away"):
            list(open_source(f"{memory}/v.avi").iterate())

    def test_a_video_in_a_bucket_is_read(self, tmp_path: Path, s3: ObjectStore) -> None:
        bucket = s3.bucket()
        s3.client.put_file(str(write_video(tmp_path / "v.mp4", 12, faststart=False)), f"{bucket}/clips/v.mp4")
        (uri,) = expand_sources([f"s3://{bucket}/clips"])
        assert uri == f"s3://{bucket}/clips/v.mp4"
        assert numbers(uri) == list(range(12))

    def test_an_unknown_protocol_is_refused(self) -> None:
        assert "cannot open this kind of URL" in refusal("gopher://host/v.mp4")


class TestExpand:
    def test_a_folder_of_videos_gives_each(self, tmp_path: Path) -> None:
        for name in ("v10.mp4", "v2.mp4", ".v3.mp4", "notes.txt"):
            (tmp_path / name).write_bytes(b"x")
        assert expand_sources([str(tmp_path)]) == [str(tmp_path / "v2.mp4"), str(tmp_path / "v10.mp4")]

    def test_a_folder_of_pictures_gives_itself(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "walk" / "rgb", ["a.png", "b.png"])
        assert expand_sources([str(tmp_path / "walk")]) == [str(tmp_path / "walk")]

    def test_what_is_named_twice_is_taken_once(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").write_bytes(b"x")
        assert expand_sources([str(tmp_path), str(tmp_path / "v.mp4")]) == [str(tmp_path / "v.mp4")]

    def test_a_folder_of_neither_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="neither video files nor pictures"):
            expand_sources([str(tmp_path)])

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no such file"):
            expand_sources([str(tmp_path / "gone.mp4")])

    def test_a_folder_of_videos_is_no_single_source(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").write_bytes(b"x")
        assert "a folder of 1 video files" in refusal(tmp_path)


class _Named:
    def __init__(self, name: str) -> None:
        self.name, self.uri, self.digest = name, f"/videos/{name}", "0123456789abcdef" * 2


class TestVideoId:
    @pytest.mark.parametrize(
        ("name", "video_id"),
        [
            ("kitti_seq2", "kitti_seq2-01234567"),
            ("My clip (1)", "My-clip-1-01234567"),
            ("café", "cafe-01234567"),
            ("映像", "video-01234567"),
            ("../../etc/passwd", "etc-passwd-01234567"),
            ("_current", "current-01234567"),
        ],
    )
    def test_is_a_readable_stem_and_eight_digits(self, name: str, video_id: str) -> None:
        assert make_video_id(_Named(name)) == video_id

    @given(st.text(max_size=300))
    def test_of_any_name_is_safe(self, name: str) -> None:
        assert validate_video_id(make_video_id(_Named(name)))

    @pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\\b", "_source", "-x", "a b", "é", "a.yaml", "a\n", "x" * 101])
    def test_is_refused_when_unsafe(self, bad: str) -> None:
        with pytest.raises(ConfigError, match="video id"):
            validate_video_id(bad)


class TestRecord:
    def test_survives_json(self) -> None:
        camera = Calibration("brown", np.array([500.0, 501, 320, 240, 0.1, -0.2, 0, 0, 0.3]), 640, 480)
        record = SourceRecord.of(_Named("walk"), Clip(1.0, 2.5, 2), camera)
        again = SourceRecord.model_validate_json(record.model_dump_json())
        assert again == record
        assert again.clip == Clip(1.0, 2.5, 2)
        assert again.calibration.to_json() == camera.to_json()

    def test_names_a_given_calibration_by_its_content(self) -> None:
        cameras = [Calibration("pinhole", np.array([f, f, 320, 240, 0, 0, 0, 0, 0.0]), 640, 480) for f in (500.0, 500.0, 501.0)]
        digests = [SourceRecord.of(_Named("walk"), given=camera).given_intrinsics_digest for camera in cameras]
        assert digests[0] == digests[1] != digests[2]
        assert SourceRecord.of(_Named("walk")).given_intrinsics_digest is None

    @pytest.mark.parametrize("bad", [{"video_id": "../x"}, {"stride": 0}, {"start": -1.0}, {"given_intrinsics": {"fx": float("nan")}}])
    def test_is_never_unusable(self, bad: dict) -> None:
        fields = {"video_id": "walk", "uri": "/v.mp4", "digest": "ab" * 16}
        with pytest.raises((ConfigError, SourceError)):
            SourceRecord(**(fields | bad))
