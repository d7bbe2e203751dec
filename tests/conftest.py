"""What all tests share: one thread per worker, no telemetry, no display, and the real clips where they are at hand."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch, OpenCV, matplotlib or Dagster is imported. Workers share the cores; more threads each only make them wait.
for _variable, _value in {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "DAGSTER_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}.items():
    os.environ.setdefault(_variable, _value)

# Triton compiles its kernels for the GPU; without one it interprets them, which it decides when it is first imported.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")

REAL_CLIPS = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each stage was computed; all of them are replaced by quick ones."""
    import quick_stages

    return quick_stages.install(monkeypatch)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of twelve frames."""
    from clips import write_clip

    return write_clip(tmp_path_factory.mktemp("clips") / "slide.mp4", 12)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips beside the checkout; they carry licences of their own and are not part of this repository."""
    if not REAL_CLIPS.is_dir():
        pytest.skip("the real clips (../shared/data) are not on this machine")
    return REAL_CLIPS
