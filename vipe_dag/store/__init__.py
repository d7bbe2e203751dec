"""The only room that touches storage: immutable generations of assets, and pointers that say which one is current. See docs/store.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vipe_dag.store.pointer import Pointer
from vipe_dag.store.video_store import Swept, VideoStore, open_video

if TYPE_CHECKING:
    from vipe_dag.store.writer import Generation

__all__ = ["Generation", "Pointer", "Swept", "VideoStore", "open_video"]


def __getattr__(name: str) -> Any:
    """Generation is loaded on demand: it needs zarr, which the Dagster definitions must not wait for."""
    if name == "Generation":
        from vipe_dag.store.writer import Generation

        return Generation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
