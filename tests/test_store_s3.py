"""The store contract on S3 (a local stand-in), and its conditional writes: a pointer is only replaced when it is the one that was read."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from store_contract import VideoStoreContract
from vipe_dag.errors import StoreError
from vipe_dag.store import VideoStore
from vipe_dag.store.backend import FsspecBackend

pytest.importorskip("s3fs", reason="s3:// stores need the extra `s3`")
moto_server = pytest.importorskip("moto.server", reason="the local S3 comes with the extra `dev`")

OPTIONS: dict[str, Any] = {"key": "testing", "secret": "testing", "client_kwargs": {"region_name": "eu-west-1"}}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> tuple[str, dict[str, Any]]:
    import s3fs

    options, name = {**OPTIONS, "endpoint_url": endpoint}, f"bucket-{secrets.token_hex(6)}"
    s3fs.S3FileSystem(**options).mkdir(name)
    return f"s3://{name}/videos", options


class TestS3Store(VideoStoreContract):
    @pytest.fixture
    def store(self, bucket: tuple[str, dict[str, Any]]) -> VideoStore:
        return VideoStore(*bucket)


@pytest.mark.parametrize("existing", [None, b"first"])
def test_a_write_that_lost_a_race_is_repeated_on_what_the_winner_wrote(bucket: tuple[str, dict[str, Any]], existing: bytes | None) -> None:
    mine, theirs = FsspecBackend(*bucket), FsspecBackend(*bucket)
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


def test_a_writer_that_loses_every_race_says_so(bucket: tuple[str, dict[str, Any]]) -> None:
    backend = FsspecBackend(*bucket)

    def always_overtaken(_: bytes | None) -> bytes:
        backend._fs.pipe_file(backend._path("pointer"), secrets.token_bytes(8))
        return b"mine"

    with pytest.raises(StoreError, match="lost 20 races against other writers"):
        backend.update("pointer", always_overtaken)
