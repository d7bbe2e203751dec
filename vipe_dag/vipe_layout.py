"""Where ViPE keeps the results of a video, and in what form: the layout that the export writes and the import reads.

Indices count frames from 0. Poses are camera to world, OpenCV axes; intrinsics are pixels of the pictures, whose centres are at integers as
here (ViPE unprojects integer pixel coordinates); depth is along the optical axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CAMERAS = {"PINHOLE": ("fx", "fy", "cx", "cy"), "MEI": ("fx", "fy", "cx", "cy", "xi")}
"""Columns of intrinsics by ViPE's name of the camera."""


@dataclass(frozen=True)
class Layout:
    """Paths of the video `name` below a folder of results.

    pose: npz with data (N, 4, 4) float32 and inds (N,) int64; intrinsics: npz with data (N, 4 or 5) float32 and inds; camera: lines
    `index: NAME`; rgb: every frame; depth: zip of NNNNN.exr, one HALF channel Z; mask: zip of NNNNN.png, uint8 instance numbers, 0 the
    background; phrases: lines `number: phrase`; info: a pickle, which is written but never read.
    """

    root: Path
    name: str

    @property
    def pose(self) -> Path:
        return self.root / "pose" / f"{self.name}.npz"

    @property
    def intrinsics(self) -> Path:
        return self.root / "intrinsics" / f"{self.name}.npz"

    @property
    def camera(self) -> Path:
        return self.root / "intrinsics" / f"{self.name}_camera.txt"

    @property
    def rgb(self) -> Path:
        return self.root / "rgb" / f"{self.name}.mp4"

    @property
    def depth(self) -> Path:
        return self.root / "depth" / f"{self.name}.zip"

    @property
    def mask(self) -> Path:
        return self.root / "mask" / f"{self.name}.zip"

    @property
    def phrases(self) -> Path:
        return self.root / "mask" / f"{self.name}.txt"

    @property
    def info(self) -> Path:
        return self.root / "vipe" / f"{self.name}_info.pkl"
