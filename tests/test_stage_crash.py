"""A stage killed at each of its writes, and a catalogue: readers see the old state or the new one, whole; a new run completes it."""

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

PATIENCE_SECONDS = 1800
FEWEST_WRITES = 30


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers saw before the first kill, after each, and at last, by what was killed."""
    base = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("crash_stages.py")
    clip = write_clip(base / "slide.mp4", 12, 64, 48)
    subprocess.run([sys.executable, str(script), str(base), str(clip)], check=True, timeout=PATIENCE_SECONDS)
    return base


def seen(killed: Path, work: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (killed / f"{work}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", list(CHANGES))
def test_a_stage_killed_at_any_write_leaves_the_old_result_until_the_new_one_is_complete(killed: Path, stage: str) -> None:
    before, *after, last = seen(killed, stage)
    assert len(after) > FEWEST_WRITES
    assert after == [before] * len(after)
    assert last["pointer"] != before["pointer"]
    assert last["values"] == before["values"], "these stages give the same values under both configurations"
    assert all(found["inside"] == found["pointer"] for found in (before, last))


@pytest.mark.parametrize("stage", list(CHANGES))
def test_a_run_after_a_kill_completes_the_stage(killed: Path, stage: str) -> None:
    again, (*_, last) = seen(killed, f"{stage}_again"), seen(killed, stage)
    assert len(again) > 2
    assert again == [last] * len(again)


def test_a_catalogue_killed_at_any_write_is_heard_as_it_was_and_is_written_by_the_next_run(killed: Path) -> None:
    before, *after = seen(killed, CATALOGUE)
    assert len(after) > FEWEST_WRITES
    assert before["rows"] == [{"video_id": "slide", "frames": 12}]
    assert [*after, *seen(killed, f"{CATALOGUE}_again")] == [before] * (len(after) + len(seen(killed, f"{CATALOGUE}_again")))
