"""Very many videos: hash shards that a run brings up to date, a catalogue of each, questions about all of them. See docs/fleet.md."""

from __future__ import annotations
