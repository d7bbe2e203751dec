"""vipe-dag: camera poses, intrinsics and dense depth from any video, kept as data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vipe_dag.dataset import VideoDataset
    from vipe_dag.errors import ConfigError, EstimationError, SourceError, StoreError, VipeDagError
    from vipe_dag.fleet.reading import open_fleet
    from vipe_dag.store import Pointer, VideoStore, open_video

_EXPORTS = {
    "ConfigError": "vipe_dag.errors",
    "EstimationError": "vipe_dag.errors",
    "Pointer": "vipe_dag.store",
    "SourceError": "vipe_dag.errors",
    "StoreError": "vipe_dag.errors",
    "VideoDataset": "vipe_dag.dataset",
    "VideoStore": "vipe_dag.store",
    "VipeDagError": "vipe_dag.errors",
    "open_fleet": "vipe_dag.fleet.reading",
    "open_video": "vipe_dag.store",
}

__all__ = [
    "ConfigError",
    "EstimationError",
    "Pointer",
    "SourceError",
    "StoreError",
    "VideoDataset",
    "VideoStore",
    "VipeDagError",
    "open_fleet",
    "open_video",
]


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for, so that `import vipe_dag` costs nothing."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
