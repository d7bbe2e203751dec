"""The controls beside the scene: what they are called, what they start with, and what they are set to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import viser
from numpy.typing import NDArray

from vipe_dag.viewer.cloud import CloudFilter

ACCUMULATED, ONE_FRAME, NO_POINTS = "accumulated", "this frame", "none"
NO_COMPARISON = "none"
MAX_STEP = 0.1
"""Relative step of depth that counts as an edge."""
_BLANK = np.full((9, 16, 3), 245, np.uint8)


@dataclass(frozen=True)
class Settings:
    """What the controls say at one moment. point_size is relative to the scene's extent, in thousandths."""

    video: str
    row: int
    points: str
    choice: CloudFilter
    frame_step: int
    point_size: float
    path: bool
    keyframes: bool
    thumbnails: bool
    sparse: bool
    reference: bool
    comparison: str
    beside: bool
    playing: bool
    speed: float


class Panel:
    """Builds the controls on a server and calls `changed(kind)` when one moves.

    Kinds: video, seek (a person chose a row), row (playing did), points, size, layers, comparison, play.
    """

    def __init__(self, server: viser.ViserServer, videos: list[str], video: str, changed: Callable[[str], None]) -> None:
        gui = server.gui
        self._changed = changed
        self.video = gui.add_dropdown("video", videos, initial_value=video)
        self.row = gui.add_slider("row", 0, 1, 1, 0)
        self.facts = gui.add_markdown("")
        self.playing = gui.add_checkbox("play", False)
        self.speed = gui.add_slider("speed", 0.1, 4.0, 0.1, 1.0)
        self.picture = gui.add_image(_BLANK, label="frame", jpeg_quality=85)
        self.depth = gui.add_image(_BLANK, label="depth: red near, blue far, grey unknown", jpeg_quality=85)
        with gui.add_folder("points"):
            self.points = gui.add_dropdown("show", [ACCUMULATED, ONE_FRAME, NO_POINTS], initial_value=ACCUMULATED)
            self.confidence = gui.add_slider("confidence from", 0, 255, 1, 0)
            self.measured = gui.add_checkbox("measured only", False)
            self.no_edges = gui.add_checkbox("without depth edges", True)
            self.frame_step = gui.add_slider("every n-th frame", 1, 100, 1, 1)
            self.pixel_step = gui.add_slider("every n-th pixel", 1, 16, 1, 4)
            self.size = gui.add_slider("point size", 0.5, 20.0, 0.5, 5.0)
        with gui.add_folder("layers"):
            self.path = gui.add_checkbox("path", True)
            self.keyframes = gui.add_checkbox("keyframes", True)
            self.thumbnails = gui.add_checkbox("thumbnails", True)
            self.sparse = gui.add_checkbox("sparse map", False)
            self.reference = gui.add_checkbox("reference", True, visible=False)
        with gui.add_folder("another generation") as folder:
            self.comparison = gui.add_dropdown("compare with", [NO_COMPARISON], initial_value=NO_COMPARISON)
            self.beside = gui.add_checkbox("beside, not on top", True)
        self.comparison_folder = folder
        self.look = gui.add_button("look through this frame")
        self.snapshot = gui.add_button("snapshot (PNG)")
        self.status = gui.add_markdown("")
        self._listen("video", self.video)
        self._listen("row", self.row)
        self._listen("points", self.points, self.confidence, self.measured, self.no_edges, self.frame_step, self.pixel_step)
        self._listen("size", self.size)
        self._listen("layers", self.path, self.keyframes, self.thumbnails, self.sparse, self.reference)
        self._listen("comparison", self.comparison, self.beside)
        self._listen("play", self.playing, self.speed)

    def settings(self) -> Settings:
        """What the controls are set to now."""
        choice = CloudFilter(
            int(_within(self.confidence)), self.measured.value, MAX_STEP if self.no_edges.value else None, int(_within(self.pixel_step))
        )
        return Settings(
            video=self.video.value,
            row=int(_within(self.row)),
            points=self.points.value,
            choice=choice,
            frame_step=int(_within(self.frame_step)),
            point_size=_within(self.size),
            path=self.path.value,
            keyframes=self.keyframes.value,
            thumbnails=self.thumbnails.value,
            sparse=self.sparse.value,
            reference=self.reference.value,
            comparison=self.comparison.value,
            beside=self.beside.value,
            playing=self.playing.value,
            speed=_within(self.speed),
        )

    def open(self, rows: int, frame_step: int, pixel_step: int, generations: list[str], has_reference: bool) -> None:
        """Fits the controls to a video."""
        self.row.max = max(1, rows - 1)
        self.frame_step.max = max(2, rows // 2)
        self.comparison.options = (NO_COMPARISON, *generations)
        self.comparison_folder.visible = bool(generations)
        _assign(self.row, 0)
        _assign(self.playing, False)
        _assign(self.frame_step, frame_step)
        _assign(self.pixel_step, pixel_step)
        _assign(self.comparison, NO_COMPARISON)
        self.reference.visible = has_reference

    def move_to(self, row: int) -> None:
        """Sets the row, as a person would."""
        _assign(self.row, row)

    def show(self, picture: NDArray[np.uint8], depth: NDArray[np.uint8] | None, facts: str) -> None:
        """The current frame, its depth where there is one, and a line about it."""
        self.picture.image = picture
        self.depth.visible = depth is not None
        if depth is not None:
            self.depth.image = depth
        self.facts.content = facts

    def _listen(self, kind: str, *handles: Any) -> None:
        for handle in handles:
            handle.on_update(lambda event: self._heard(kind, event.client is not None))

    def _heard(self, kind: str, by_a_person: bool) -> None:
        """What the program sets itself it also shows itself, but for the row, which playing moves."""
        if by_a_person:
            self._changed("seek" if kind == "row" else kind)
        elif kind == "row":
            self._changed("row")


def _within(slider: viser.GuiSliderHandle[Any]) -> float:
    """Its value inside its bounds: while a number is typed the browser sends its beginning, such as the 0 of 0.5, as it is."""
    return float(min(max(slider.value, slider.min), slider.max))


def _assign(handle: Any, value: bool | int | str) -> None:
    """Sets a control; mypy takes viser's overridden property for one without a setter."""
    handle.value = value
