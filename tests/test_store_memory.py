"""The store contract on memory://, which is also the plainest fsspec file system."""

from __future__ import annotations

import secrets

import pytest

from store_contract import VideoStoreContract
from vipe_dag.errors import StoreError
from vipe_dag.store import VideoStore


class TestMemoryStore(VideoStoreContract):
    @pytest.fixture
    def store(self) -> VideoStore:
        return VideoStore(f"memory://store-{secrets.token_hex(8)}")


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(StoreError, match=r"nosuch://x: cannot open this kind of store"):
        VideoStore("nosuch://x")
