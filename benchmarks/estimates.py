"""What an engine made of a sequence, as it passes from the engine's process to the one that scores it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration

_ARRAYS = ("time", "cam2world", "segment", "position_std")


@dataclass(frozen=True)
class Estimate:
    """frames: how many there were; time (n,) seconds, cam2world (n, 4, 4), segment (n,), position_std (n,) of the posed ones, the last
    NaN where an engine does not tell; camera: None where none was found; flags: words of the data contract; seconds: from reading the
    first picture to the last pose."""

    frames: int
    time: NDArray[np.float64]
    cam2world: NDArray[np.float64]
    segment: NDArray[np.int32]
    position_std: NDArray[np.float64]
    camera: Calibration | None
    flags: tuple[str, ...]
    seconds: float

    def save(self, path: Path) -> None:
        head = {
            "frames": self.frames,
            "camera": self.camera and self.camera.to_json(),
            "flags": self.flags,
            "seconds": self.seconds,
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(path, head=np.array(json.dumps(head)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Estimate:
        with np.load(path, allow_pickle=False) as content:
            head = json.loads(str(content["head"]))
            camera = head["camera"] and Calibration.from_json(head["camera"], str(path))
            time, cam2world, segment, std = (content[name] for name in _ARRAYS)
            return cls(head["frames"], time, cam2world, segment, std, camera, tuple(head["flags"]), head["seconds"])
