"""What all tests share: one thread per worker, no telemetry, no display, and the real clips where they are at hand."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from object_store import ObjectStore, serving

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


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no pictures for Dagster and do not wait for the disk."""
    import platform_worlds

    platform_worlds.hurry(monkeypatch)


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """One S3 server for the session; tests take buckets of their own from it."""
    pytest.importorskip("s3fs", reason="s3:// stores need the extra `s3`")
    pytest.importorskip("moto.server", reason="the local S3 comes with the extra `dev`")
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 server, found by the environment as a user's would be."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
