"""Removing results that were replaced long ago, while others may be going back to them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from vipe_dag.schema import ASSETS
from vipe_dag.store.backend import Backend
from vipe_dag.store.pointer import POINTER, ROOT, Pointer, asset_key
from vipe_dag.store.video_store import Swept

if TYPE_CHECKING:
    from vipe_dag.store.video_store import VideoStore


def collect(store: VideoStore, backend: Backend, limit: datetime, keep: int, dry_run: bool) -> list[Swept]:
    """See VideoStore.collect; limit: what was written or replaced after it stays."""
    removed: list[Swept] = []
    for video_id in store.videos():
        for asset in ASSETS:
            for pointer in _replaced(store, backend, video_id, asset, limit, keep):
                if dry_run or _remove(store, backend, pointer):
                    removed.append(Swept(_key(pointer), pointer.bytes))
    return removed


def _replaced(store: VideoStore, backend: Backend, video_id: str, asset: str, limit: datetime, keep: int) -> list[Pointer]:
    """Complete generations that may go. None when the pointer is missing or moved lately: it may have left one of them just now."""
    current = store.current(video_id, asset)
    if current is None:
        return []
    found = store.generations(video_id, asset)
    old = [p for p in found[: max(0, len(found) - keep)] if p.written_at < limit and p.generation != current.generation]
    if not old:
        return []
    key = asset_key(video_id, asset)
    _, moved = backend.objects(key)[f"{key}/{POINTER}"]
    return old if moved < limit.timestamp() else []


def _remove(store: VideoStore, backend: Backend, pointer: Pointer) -> bool:
    """Withdraws the commit first and looks at the pointer again: whoever went back to this generation in the meantime gets it back."""
    root = f"{_key(pointer)}/{ROOT}"
    commit = backend.read(root)
    backend.remove(root)
    current = store.current(pointer.video_id, pointer.asset)
    if commit is not None and current is not None and current.generation == pointer.generation:
        backend.update(root, lambda _: commit)
        return False
    backend.remove(_key(pointer))
    return True


def _key(pointer: Pointer) -> str:
    return f"{asset_key(pointer.video_id, pointer.asset)}/{pointer.generation}"
