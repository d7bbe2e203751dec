"""A stage killed at its writes, and a catalogue: readers see the old state or the new one, whole, and going on completes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("kills forked processes", allow_module_level=True)

from clips import write_clip
from crash_stages import CATALOGUE, CHANGES

PATIENCE_SECONDS = 900
EVERY = 29
"""Writes between two kills. With 1, each of some 500 writes is hit, which takes minutes; to be done when the store's writing changes."""
FEWEST_KILLS = 1


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers saw before the first kill and after each, by what was killed."""
    base = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("crash_stages.py")
    clip = write_clip(base / "slide.mp4", 12, 64, 48)
    subprocess.run([sys.executable, str(script), str(base), str(clip), str(EVERY)], check=True, timeout=PATIENCE_SECONDS)
    return base


def seen(killed: Path, work: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (killed / f"{work}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", list(CHANGES))
def test_a_stage_killed_at_a_write_leaves_the_old_result_until_the_new_one_is_complete(killed: Path, stage: str) -> None:
    before, *after, last = seen(killed, stage)
    assert len(after) > FEWEST_KILLS
    assert after == [before] * len(after)
    assert last["pointer"] != before["pointer"]
    assert last["values"] == before["values"], "these stages give the same values under both configurations"
    assert all(found["inside"] == found["pointer"] for found in (before, last))


def test_a_catalogue_killed_at_a_write_is_heard_as_it_was(killed: Path) -> None:
    before, *after = seen(killed, CATALOGUE)
    assert len(after) > FEWEST_KILLS
    assert before["rows"] == [{"video_id": "slide", "frames": 12}]
    assert after == [before] * len(after)
