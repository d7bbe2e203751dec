"""One partition per video, named by its video_id and added when a video is registered. For up to some 2,000 videos."""

from __future__ import annotations

import dagster as dg

VIDEOS = "videos"

video_partitions = dg.DynamicPartitionsDefinition(name=VIDEOS)
