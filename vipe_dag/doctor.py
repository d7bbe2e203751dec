"""Examines an installation and a store: what would otherwise surface as an odd error in the middle of a run."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vipe_dag.errors import VipeDagError

Level = Literal["ok", "warning", "broken"]

PACKAGES = ("torch", "dagster", "zarr", "numcodecs", "xarray", "av", "imagecodecs", "cv2", "scipy", "pydantic")
OUR_PACKAGES = ("vipe_dag", "vipe_kernels", "assets_defs", "resources")
COMMON_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "prores")
LOW_DISK_BYTES = 5e9
LOW_MEMORY_BYTES = 3e9


@dataclass(frozen=True)
class Finding:
    """One fact: `ok`, a `warning` that limits something, or `broken`, which makes runs fail. The message says what to do."""

    subject: str
    level: Level
    message: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(root: str | None = None) -> list[Finding]:
    """All findings; never raises. root: of a store to examine too."""
    probes: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("lietorch", _lietorch),
        ("image codec", _image_codec),
        ("depth codec", _depth_codec),
        ("ffmpeg", _ffmpeg),
        ("names", _names),
        ("memory", _memory),
        ("dagster", _dagster),
    ]
    if root is not None:
        probes.append(("store", lambda: _store(root)))
    findings: list[Finding] = []
    for subject, probe in probes:
        try:
            findings.extend(probe())
        except Exception as error:  # a probe that fails is a finding, whatever the reason
            findings.append(Finding(subject, "broken", f"{type(error).__name__}: {error}"))
    return findings


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken binary package raises anything
            yield Finding(name, "broken", f"cannot be imported: {error}; run `make setup` again")
            continue
        yield Finding(name, "ok", str(getattr(module, "__version__", "present")))


def _torch() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("device", "ok", f"CPU, {torch.get_num_threads()} threads")
        return
    memory = torch.cuda.get_device_properties(0).total_memory
    yield Finding("device", "ok", f"{torch.cuda.get_device_name(0)}, {memory / 1e9:.0f} GB")


def _lietorch() -> Iterator[Finding]:
    from vipe_kernels.lie import real_lietorch

    try:
        found = real_lietorch()
    except ImportError as error:
        yield Finding("lietorch", "broken", " ".join(str(error).split()))
        return
    yield Finding("lietorch", "ok", "princeton-vl's, used on CUDA" if found else "not installed, and not needed")


def _image_codec() -> Iterator[Finding]:
    import imagecodecs
    import numpy as np

    ramp = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    if not np.array_equal(imagecodecs.jpegxl_decode(imagecodecs.jpegxl_encode(ramp, lossless=True)), ramp):
        yield Finding("image codec", "broken", "JPEG XL is not lossless here; reinstall imagecodecs")
        return
    yield Finding("image codec", "ok", "lossless JPEG XL")


def _depth_codec() -> Iterator[Finding]:
    import numpy as np
    import pcodec.standalone as pcodec
    from pcodec import ChunkConfig

    values = np.linspace(1, 9, 1000).astype(np.float16)
    restored = pcodec.simple_decompress(pcodec.simple_compress(values, ChunkConfig()))
    if restored is None or not np.array_equal(restored, values):
        yield Finding("depth codec", "broken", "pcodec does not restore float16; reinstall pcodec")
        return
    yield Finding("depth codec", "ok", "pcodec float16")


def _ffmpeg() -> Iterator[Finding]:
    import av
    import av.codec

    version = ".".join(str(part) for part in av.library_versions["libavcodec"])
    missing = [name for name in COMMON_DECODERS if name not in av.codec.codecs_available]
    if missing:
        yield Finding("ffmpeg", "warning", f"libavcodec {version} lacks decoders for {', '.join(missing)}; such videos cannot be read")
        return
    yield Finding("ffmpeg", "ok", f"libavcodec {version}, decoders {', '.join(COMMON_DECODERS)}")


def _names() -> Iterator[Finding]:
    owners = importlib.metadata.packages_distributions()
    for name in OUR_PACKAGES:
        others = sorted(set(owners.get(name, ["vipe-dag"])) - {"vipe-dag"})
        module = importlib.import_module(name)
        ours = Path(str(importlib.import_module("vipe_dag").__file__)).parents[1]
        if others or not Path(str(module.__file__)).is_relative_to(ours):
            owner = ", ".join(others) or module.__file__
            yield Finding("names", "broken", f"the package {name} that Python imports belongs to {owner}; use an environment without it")
            return
    yield Finding("names", "ok", f"{', '.join(OUR_PACKAGES)} are ours")


def _memory() -> Iterator[Finding]:
    import psutil

    free = psutil.virtual_memory().available
    level: Level = "ok" if free > LOW_MEMORY_BYTES else "warning"
    yield Finding("memory", level, f"{free / 1e9:.1f} GB available" + ("" if level == "ok" else "; a run takes up to 2 GB"))


def _dagster() -> Iterator[Finding]:
    home = os.environ.get("DAGSTER_HOME")
    if home and not Path(home).is_absolute():
        yield Finding("dagster", "broken", f"DAGSTER_HOME={home} is not an absolute path")
        return
    yield Finding("dagster", "ok", f"DAGSTER_HOME={home}" if home else "its book is kept beside the results, in ROOT/_dagster")


def _store(root: str) -> Iterator[Finding]:
    from vipe_dag.placement import config_file, configuration, is_local, local_path
    from vipe_dag.store import VideoStore

    if is_local(root):
        yield from _directory(local_path(root))
    try:
        configuration(root)
        yield Finding("configuration", "ok", config_file(root) or "defaults")
        yield Finding("store", "ok", f"{len(VideoStore(root).videos())} videos in {root}")
    except VipeDagError as error:
        yield Finding("store", "broken", str(error))


def _directory(path: Path) -> Iterator[Finding]:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Finding("writing", "ok", f"{existing} can be written")
    except OSError as error:
        yield Finding("writing", "broken", f"{existing} cannot be written: {error.strerror}; choose another --store")
    free = shutil.disk_usage(existing).free
    level: Level = "ok" if free > LOW_DISK_BYTES else "warning"
    yield Finding("disk", level, f"{free / 1e9:.0f} GB free" + ("" if level == "ok" else "; a minute of video takes about 1 GB"))
