"""The root of the store, as Dagster hands it to an asset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore


class VideoStoreResource(dg.ConfigurableResource[Any]):
    """Opens the VideoStore at `root`."""

    root: str = Field(description="Directory or fsspec URL under which every video has its folder.")

    def open(self) -> VideoStore:
        """The domain object; assets use nothing else of this resource."""
        from vipe_dag.store import VideoStore

        return VideoStore(self.root)
