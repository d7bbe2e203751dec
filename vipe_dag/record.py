"""What a store remembers about the source of a video."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SourceRecord(BaseModel):
    """`<root>/<video_id>/_source.json`: where a video comes from and which part of it is used.

    video_id names the video in the store; uri is a path or URL; digest is hex of the content; start and end are seconds (None = open), stride takes
    every stride-th frame; given_intrinsics is a `Calibration` at source resolution as JSON, or None when it has to be estimated.
    """

    model_config = ConfigDict(frozen=True)

    video_id: str
    uri: str
    digest: str
    start: float | None = None
    end: float | None = None
    stride: int = Field(1, ge=1)
    given_intrinsics: dict[str, Any] | None = None
