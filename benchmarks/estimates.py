"""What an engine made of a sequence, as it passes from the engine's process to the one that scores it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration


@dataclass(frozen=True)
class Estimate:
    """frames: how many there were; time (n,) seconds, cam2world (n, 4, 4), segment (n,) of the posed ones; camera: None where none was
    found; flags: words of the data contract; seconds: from reading the first picture to the last pose."""

    frames: int
    time: NDArray[np.float64]
    cam2world: NDArray[np.float64]
    segment: NDArray[np.int32]
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
        np.savez(path, head=json.dumps(head), time=self.time, cam2world=self.cam2world, segment=self.segment)

    @classmethod
    def load(cls, path: Path) -> Estimate:
        with np.load(path, allow_pickle=False) as content:
            head = json.loads(str(content["head"]))
            camera = head["camera"] and Calibration.from_json(head["camera"], str(path))
            arrays = content["time"], content["cam2world"], content["segment"]
        return cls(head["frames"], *arrays, camera, tuple(head["flags"]), head["seconds"])
