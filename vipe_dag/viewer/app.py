"""The viewer: one thread that answers controls, plays, and fills the scene in the background, newest wish first."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import viser
from numpy.typing import NDArray

from vipe_dag.errors import VipeDagError
from vipe_dag.plots import depth_colours, depth_range
from vipe_dag.store import VideoStore
from vipe_dag.viewer.cloud import Cloud, CloudFilter, pixel_step_for
from vipe_dag.viewer.layers import Layers, small
from vipe_dag.viewer.panel import ACCUMULATED, NO_COMPARISON, ONE_FRAME, Panel, Settings
from vipe_dag.viewer.video import ViewedVideo, generation_names, viewable

PANEL_WIDTH = 480
"""Pixels of the pictures in the panel."""
MAX_THUMBNAILS = 16
FIRST_FRAMES = 24
"""Frames of the accumulated cloud that a video starts with."""
FIRST_POINTS = 600_000
MAX_POINTS = 4_000_000
"""Bound of the points in the scene: beyond it pixels are taken more sparsely."""
SNAPSHOT_SECONDS = 20.0


class Viewer:
    """Serves the videos of a store until `stop`. Raises StoreError, SourceError or EstimationError before anything is served."""

    def __init__(self, store: VideoStore, video_id: str | None, host: str, port: int, reference: Path | None = None) -> None:
        """video_id: the first to show, None for any. reference: a trajectory (TUM or KITTI) of it, moved onto it by similarities."""
        self._store, self._first_video = store, viewable(store, video_id)
        video = ViewedVideo(store, self._first_video)
        self._reference = _read_reference(video, reference) if reference is not None else []
        self._pending: set[str] = set()
        self._condition = threading.Condition()
        self._stopped = False
        self._jobs: deque[Callable[[], None]] = deque()
        with redirect_stdout(io.StringIO()):  # its banner
            self._server = viser.ViserServer(host=host, port=port, label="vipe-dag", verbose=False)
        self._server.gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        self._panel = Panel(self._server, store.names(), self._first_video, self._wish)
        self._panel.snapshot.on_click(lambda event: self._download(event.client))
        self._panel.look.on_click(lambda event: self._look(event.client))
        self._other: ViewedVideo | None = None
        self._shown_segment: int | None = None
        self._colours = (1.0, 2.0)
        self._open(video)
        self._thread = threading.Thread(target=self._work, name="viewer", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.get_port())

    @property
    def status(self) -> str:
        """What the panel says below the controls: how many points are there, or what went wrong."""
        return str(self._panel.status.content)

    def stop(self) -> None:
        """Ends serving; idempotent."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join()
        with redirect_stdout(io.StringIO()):  # its farewell
            self._server.stop()

    def wait(self) -> None:
        """Until `stop` from elsewhere or an interrupt."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def snapshot(self, client: viser.ClientHandle) -> bytes:
        """What a person sees, as PNG on white. Raises TimeoutError when the browser does not answer."""
        from PIL import Image

        shown = client.get_render(client.camera.image_height, client.camera.image_width, transport_format="png", timeout=SNAPSHOT_SECONDS)
        picture = Image.fromarray(shown).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        buffer = io.BytesIO()
        flat.save(buffer, format="PNG")
        return buffer.getvalue()

    # What people do

    def _wish(self, kind: str) -> None:
        with self._condition:
            self._pending.add(kind)
            self._condition.notify_all()

    def _download(self, client: viser.ClientHandle | None) -> None:
        if client is None:
            return
        row = self._panel.settings().row
        try:
            name = f"{self._video.video_id}_{int(self._video.frame[row]):06d}.png"
            client.send_file_download(name, self.snapshot(client), save_immediately=True)
        except (RuntimeError, TimeoutError) as error:
            self._say(f"no snapshot: {error}")

    def _look(self, client: viser.ClientHandle | None) -> None:
        if client is not None:
            self._layers.look_through(client, self._panel.settings().row)

    # The thread

    def _work(self) -> None:
        clock, moment = time.monotonic(), 0.0
        while True:
            playing = self._panel.playing.value
            with self._condition:
                if not self._pending and not self._stopped and not self._jobs:
                    self._condition.wait(0.02 if playing else None)
                if self._stopped:
                    return
                wishes, self._pending = self._pending, set()
            settings = self._panel.settings()
            try:
                if wishes & {"play", "seek"}:
                    clock, moment = time.monotonic(), float(self._video.time[settings.row])
                if wishes:
                    self._answer(wishes, settings)
                elif not (playing and self._play(settings, moment + (time.monotonic() - clock) * settings.speed)) and self._jobs:
                    self._jobs.popleft()()
                if playing and settings.row == len(self._video) - 1:
                    clock, moment = time.monotonic(), float(self._video.time[0])
            except VipeDagError as error:
                self._jobs.clear()
                self._say(str(error))

    def _answer(self, wishes: set[str], settings: Settings) -> None:
        if "video" in wishes and settings.video != self._video.video_id:
            self._open(ViewedVideo(self._store, settings.video))
            return
        if "comparison" in wishes:
            self._compare(settings)
        if "layers" in wishes:
            self._show_layers(settings)
        if "size" in wishes:
            self._layers.set_point_size(settings.point_size)
        if wishes & {"row", "seek"}:
            self._show_row(settings)
        if wishes & {"points", "comparison"}:
            self._show_points(settings)

    def _play(self, settings: Settings, moment: float) -> bool:
        """Moves to the row of that moment; was it another one."""
        row = int(np.searchsorted(self._video.time, moment, side="right")) - 1
        row = min(max(row, 0), len(self._video) - 1)
        if row == settings.row:
            return False
        self._panel.move_to(row)
        return True

    def _open(self, video: ViewedVideo) -> None:
        self._jobs.clear()
        self._video, self._other = video, None
        self._layers = Layers(self._server, video)
        self._generations = generation_names(self._store, video.video_id)
        rows = video.keyframe[video.tracked[video.keyframe]]
        self._without_thumbnail = rows[np.unique(np.linspace(0, len(rows) - 1, MAX_THUMBNAILS).astype(int))].tolist() if len(rows) else []
        reference = self._reference if video.video_id == self._first_video else []
        self._layers.add_reference(reference)
        step = max(1, -(-len(video) // FIRST_FRAMES))
        pixels = pixel_step_for(video.camera.width, video.camera.height, min(len(video), FIRST_FRAMES), FIRST_POINTS)
        self._panel.open(len(video), step, min(pixels, 16), list(self._generations), bool(reference))
        first = video.depth(0)
        self._colours = depth_range([] if first is None else [first[0]])
        settings = self._panel.settings()
        self._shown_segment = int(video.segment[settings.row])
        self._show_row(settings)
        self._show_layers(settings)
        self._show_points(settings)

    def _show_row(self, settings: Settings) -> None:
        video, row = self._video, settings.row
        rgb, depth = video.pictures(row)
        words = [f"frame {video.frame[row]}", f"{video.time[row]:.2f} s", f"segment {video.segment[row]}"]
        words += ["keyframe"] if row in video.keyframe else []
        words += [] if video.tracked[row] else ["**not tracked**"]
        words += [] if depth is not None else ["no depth yet: run the video until aligned_depth"]
        picture = None if depth is None else small(depth_colours(depth[0], *self._colours), PANEL_WIDTH)
        self._panel.show(small(rgb, PANEL_WIDTH), picture, " · ".join(words))
        self._layers.show_current(row, rgb)
        moved_on = int(video.segment[row]) != self._shown_segment
        self._shown_segment = int(video.segment[row])
        if settings.points == ONE_FRAME or (settings.points == ACCUMULATED and moved_on):
            self._show_points(settings)

    def _show_layers(self, settings: Settings) -> None:
        self._layers.show(settings.path, settings.keyframes, settings.thumbnails, settings.reference)
        self._layers.show_sparse(settings.sparse, settings.point_size)

    def _show_points(self, settings: Settings) -> None:
        """One frame at once; an accumulated cloud frame by frame in the background, the nearest to the current frame first."""
        self._jobs.clear()
        self._say("")
        with self._server.atomic():
            self._layers.clear_points()
            if settings.points == ONE_FRAME:
                self._add_points(settings.row, "points/frame", settings.choice, settings.point_size)
        if settings.points == ACCUMULATED and self._video.depth_asset is not None:
            rows = self._rows(settings)
            choice = self._bounded(settings.choice, len(rows))
            for done, row in enumerate(rows, 1):
                self._jobs.append(lambda row=row, done=done: self._accumulate(row, done, len(rows), choice))  # type: ignore[misc]
        self._jobs.append(self._next_thumbnail)

    def _rows(self, settings: Settings) -> list[int]:
        """Every n-th row of the current segment; segments have origins of their own and are not mixed."""
        video = self._video
        inside = np.flatnonzero(video.tracked & (video.segment == video.segment[settings.row]))[:: settings.frame_step]
        return [int(row) for row in inside[np.argsort(np.abs(inside - settings.row), kind="stable")]]

    def _bounded(self, choice: CloudFilter, frames: int) -> CloudFilter:
        count = frames * (1 if self._other is None else 2)
        least = pixel_step_for(self._video.camera.width, self._video.camera.height, count, MAX_POINTS)
        return CloudFilter(choice.min_confidence, choice.measured_only, choice.max_step, max(choice.pixel_step, least))

    def _accumulate(self, row: int, done: int, total: int, choice: CloudFilter) -> None:
        self._add_points(row, f"points/{row}", choice, self._panel.settings().point_size)
        sparse = (
            "" if choice.pixel_step == self._panel.settings().choice.pixel_step else f", every {choice.pixel_step}th pixel to stay small"
        )
        self._say(f"points of {done} of {total} frames{sparse}")

    def _add_points(self, row: int, name: str, choice: CloudFilter, point_size: float) -> None:
        self._layers.add_points(name, self._video.cloud(row, choice), point_size)
        if self._other is not None and int(self._other.segment[row]) in self._moves:
            cloud, move = self._other.cloud(row, choice), self._moves[int(self._other.segment[row])]
            self._layers.add_points(f"other/{name}", Cloud(move.points(cloud.points).astype(np.float32), cloud.colours), point_size)

    def _next_thumbnail(self) -> None:
        if self._without_thumbnail:
            self._layers.add_thumbnail(self._without_thumbnail.pop(), self._panel.thumbnails.value)
            self._jobs.append(self._next_thumbnail)

    def _compare(self, settings: Settings) -> None:
        from vipe_dag.viewer.comparison import generation_onto

        fingerprint = self._generations.get(settings.comparison)
        if settings.comparison == NO_COMPARISON or fingerprint is None:
            self._other = None
            self._layers.remove_other()
            return
        other = ViewedVideo(self._store, self._video.video_id, fingerprint)
        self._other, self._moves = other, generation_onto(other, self._video)
        self._layers.show_other(other, self._moves)
        self._layers.place_other(settings.beside)

    def _say(self, text: str) -> None:
        self._panel.status.content = text


def _read_reference(video: ViewedVideo, path: Path) -> list[NDArray[np.float64]]:
    from vipe_dag.evaluate import read_reference
    from vipe_dag.viewer.comparison import reference_paths

    return reference_paths(video, read_reference(path))
