"""The store contract on S3 (a local stand-in), and its conditional writes: a pointer is only replaced when it is the one that was read."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import numpy as np
import pytest

from object_store import Call, ObjectStore, methods
from store_contract import NEW, OLD, VIDEO, VideoStoreContract, motion, pixels, put_keyframes, write_frames, write_keyframes
from vipe_dag.errors import StoreError
from vipe_dag.store import VideoStore, open_video
from vipe_dag.store.backend import FsspecBackend


@pytest.fixture
def root(s3: ObjectStore) -> str:
    return f"s3://{s3.bucket()}/videos"


class TestS3Store(VideoStoreContract):
    @pytest.fixture
    def store(self, root: str) -> VideoStore:
        return VideoStore(root)


@pytest.mark.parametrize("existing", [None, b"first"])
def test_a_write_that_lost_a_race_is_repeated_on_what_the_winner_wrote(root: str, existing: bytes | None) -> None:
    mine, theirs = FsspecBackend(root, {}), FsspecBackend(root, {})
    if existing:
        mine.update("pointer", lambda _: existing)
    seen: list[bytes | None] = []

    def change(content: bytes | None) -> bytes:
        seen.append(content)
        if len(seen) == 1:
            theirs._fs.pipe_file(theirs._path("pointer"), b"winner")
        return b"mine"

    mine.update("pointer", change)
    assert seen == [existing, b"winner"]
    assert theirs.read("pointer") == b"mine"


def test_a_writer_that_loses_every_race_says_so(root: str) -> None:
    backend = FsspecBackend(root, {})

    def always_overtaken(_: bytes | None) -> bytes:
        backend._fs.pipe_file(backend._path("pointer"), secrets.token_bytes(8))
        return b"mine"

    with pytest.raises(StoreError, match="lost 20 races against other writers"):
        backend.update("pointer", always_overtaken)


# Two writers


def test_no_update_is_lost_between_writers_that_share_nothing_but_the_bucket(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vipe_dag.store.backend._UPDATES", nullcontext())  # as in processes of their own
    writers, steps = 3, 6

    def count(backend: FsspecBackend) -> None:
        for _ in range(steps):
            backend.update("count", lambda seen: str(int(seen or b"0") + 1).encode())

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(count, [FsspecBackend(root, {}) for _ in range(writers)]))
    assert FsspecBackend(root, {}).read("count") == str(writers * steps).encode()


def test_of_two_configurations_that_race_one_is_current_and_the_other_is_refused_and_kept(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vipe_dag.store.backend._UPDATES", nullcontext())
    write_keyframes(VideoStore(root), "cccccccccccccccc", 0.0)
    together = Barrier(2)

    def write(fingerprint: str) -> str | None:
        try:
            with VideoStore(root).begin(VIDEO, "keyframes", fingerprint) as writer:
                put_keyframes(writer, 1.0 if fingerprint == OLD else 2.0)
                together.wait(60)
        except StoreError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip((OLD, NEW), pool.map(write, (OLD, NEW)), strict=True))
    ((refused, reason),) = ((fingerprint, text) for fingerprint, text in said.items() if text)
    winner = OLD if refused == NEW else NEW
    assert f"another run made {winner} current" in reason
    store = VideoStore(root)
    assert motion(store) == (1.0 if winner == OLD else 2.0)
    assert store.point(VIDEO, "keyframes", refused) is not None


# Requests


def is_array_data(call: Call) -> bool:
    return "/c/" in call.path


def test_an_aligned_write_of_a_fresh_generation_downloads_no_array_data(s3: ObjectStore, root: str) -> None:
    store, rgb = VideoStore(root), pixels(0, 70)
    with s3.counted() as calls:
        write_frames(store, OLD, rgb, block=32, frames=len(rgb))
    data = [call for call in calls if is_array_data(call)]
    assert {(call.status, call.sent) for call in data if call.method == "GET" and call.status == 200} == set()
    assert methods(call for call in data if call.method == "PUT") == {"PUT": 3 + 2}, "three shards of rgb, one chunk of frame and of time"


def test_blocks_that_are_not_aligned_cost_no_request_more(s3: ObjectStore, root: str) -> None:
    store, rgb, counts = VideoStore(root), pixels(0, 70), []
    for fingerprint, block in ((OLD, 32), (NEW, 7)):
        with s3.counted() as calls:
            write_frames(store, fingerprint, rgb, block, frames=len(rgb))
        counts.append(methods(call for call in calls if is_array_data(call)))
    assert counts[0] == counts[1]


def test_opening_downloads_no_pixels_and_one_frame_downloads_less_than_a_shard(s3: ObjectStore, root: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    write_frames(VideoStore(root), OLD, rgb)
    with s3.counted() as opening:
        tree = open_video(root, VIDEO)
    assert not [call for call in opening if "/rgb/c/" in call.path]
    with s3.counted() as reading:
        found = VideoStore(root).frames(VIDEO).rgb(33)
    np.testing.assert_array_equal(found, rgb[33])
    assert 0 < sum(call.sent for call in reading if "/rgb/c/" in call.path) < 2 * found.nbytes
    np.testing.assert_array_equal(tree["frames/rgb"][39], rgb[39])


# Failures are one line


def test_a_bucket_that_is_not_there_is_no_empty_store(s3: ObjectStore) -> None:
    for ask in (VideoStore("s3://no-such-bucket/x").videos, lambda: VideoStore("s3://no-such-bucket/x").current(VIDEO, "frames")):
        with pytest.raises(StoreError, match="s3://no-such-bucket/x: there is no such bucket"):
            ask()


def test_a_service_that_does_not_answer_is_named(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}, "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(StoreError, match=r"_source\.json: the storage failed \(Could not connect.*check address"):
        VideoStore("s3://bucket/x", options).source(VIDEO)
