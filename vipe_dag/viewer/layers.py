"""The scene: cameras, lines and points of one video (and of another generation of it) as nodes of a viser server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import viser
import viser.transforms as tf
from numpy.typing import NDArray

from vipe_dag.viewer.cloud import Cloud
from vipe_dag.viewer.paths import (
    CURRENT,
    KEYFRAME,
    OTHER,
    REFERENCE,
    frustum_lines,
    path_lines,
    polyline,
    up_direction,
    vertical_view,
)
from vipe_dag.viewer.video import ViewedVideo

if TYPE_CHECKING:
    from vipe_dag.viewer.comparison import Similarity  # imports evo, which takes a second

THUMBNAIL_WIDTH = 160
_LINE = 2.5
"""Thickness of lines on the screen, pixels."""


class Layers:
    """Puts one video into the scene. Every length is relative to the extent of the scene, which has no unit of its own."""

    def __init__(self, server: viser.ViserServer, video: ViewedVideo) -> None:
        self._server, self._video = server, video
        self._extent = video.extent()
        self._frustum = 0.08 * self._extent
        self._clouds: dict[str, viser.PointCloudHandle] = {}
        self._thumbnails: list[viser.CameraFrustumHandle] = []
        self._nodes: dict[str, list[viser.SceneNodeHandle]] = {"path": [], "keyframes": [], "sparse": [], "reference": []}
        self._other: viser.FrameHandle | None = None
        server.scene.reset()
        self._place_viewer()
        self._add_path()

    def add_reference(self, paths: Sequence[NDArray[np.float64]]) -> None:
        """Positions (n, 3) per segment, in the world of the video."""
        for number, positions in enumerate(paths):
            self._nodes["reference"].append(self._lines(f"/reference/{number}", polyline(positions), REFERENCE))

    def add_thumbnail(self, row: int, visible: bool) -> None:
        """A keyframe's picture in its camera."""
        node = self._camera(f"/thumbnails/{row}", row, KEYFRAME, small(self._video.rgb(row), THUMBNAIL_WIDTH))
        node.visible = visible
        self._thumbnails.append(node)

    def show_sparse(self, visible: bool, point_size: float) -> None:
        """The points of bundle adjustment, read when first shown."""
        if visible and not self._nodes["sparse"]:
            node = self._server.scene.add_point_cloud(
                "/sparse", self._video.sparse(), REFERENCE, point_size=2 * self._size(point_size), precision="float32"
            )
            self._nodes["sparse"].append(node)
        self._set("sparse", visible)

    def show(self, path: bool, keyframes: bool, thumbnails: bool, reference: bool) -> None:
        """Which layers are seen."""
        self._set("path", path)
        self._set("keyframes", keyframes)
        self._set("reference", reference)
        for node in self._thumbnails:
            node.visible = thumbnails

    def show_current(self, row: int, picture: NDArray[np.uint8]) -> None:
        """The camera of the current frame with its picture; none where the frame was not tracked."""
        node = self._camera("/current", row, CURRENT, small(picture, 2 * THUMBNAIL_WIDTH), scale=1.6)
        node.visible = bool(self._video.tracked[row])

    def clear_points(self) -> None:
        for handle in self._clouds.values():
            handle.remove()
        self._clouds.clear()

    def add_points(self, name: str, cloud: Cloud, point_size: float) -> None:
        """A cloud below a name of its own; replaces one of that name. `other/...` moves with the other generation."""
        if name in self._clouds:
            self._clouds.pop(name).remove()
        if len(cloud):
            self._clouds[name] = self._server.scene.add_point_cloud(
                f"/{name}",
                cloud.points,
                cloud.colours,
                point_size=self._size(point_size),
                point_shape="circle",
                point_shading="flat",
                precision="float32",
            )

    def set_point_size(self, point_size: float) -> None:
        for handle in self._clouds.values():
            handle.point_size = self._size(point_size)
        for node in self._nodes["sparse"]:
            if isinstance(node, viser.PointCloudHandle):
                node.point_size = 2 * self._size(point_size)

    def show_other(self, other: ViewedVideo, moves: dict[int, Similarity]) -> None:
        """Path and keyframes of another generation, moved onto this one."""
        self.remove_other()
        self._other = self._server.scene.add_frame("/other", show_axes=False)
        for number, move in moves.items():
            inside = other.tracked & (other.segment == number)
            self._lines(f"/other/path{number}", polyline(move.points(other.cam2world[inside, :3, 3])), OTHER)
            rows = other.keyframe[inside[other.keyframe]]
            if len(rows):
                frusta = frustum_lines(move.poses(other.cam2world[rows]), other.camera, self._frustum)
                self._lines(f"/other/keyframes{number}", frusta, OTHER, 1.5)

    def place_other(self, beside: bool) -> None:
        """Beside: to the right of this one, as its first camera sees it; people's view moves so that both are in it."""
        if self._other is not None:
            positions = self._video.cam2world[self._video.tracked, :3, 3]
            width = float(np.ptp(positions, axis=0).max()) + 2.5 * self._extent if beside else 0.0
            self._other.position = tuple(self._video.cam2world[self._first(), :3, 0] * width)
            self._place_viewer(width)

    def remove_other(self) -> None:
        if self._other is not None:
            self._other.remove()
            self._other = None
            self._clouds = {name: handle for name, handle in self._clouds.items() if not name.startswith("other/")}

    def look_through(self, client: viser.ClientHandle, row: int) -> None:
        """Moves a viewer's camera to where the frame was taken."""
        pose = self._video.cam2world[row]
        with client.atomic():
            client.camera.position = pose[:3, 3]
            client.camera.look_at = pose[:3, 3] + self._extent * pose[:3, 2]
            client.camera.up_direction = -pose[:3, 1]
            client.camera.fov = vertical_view(self._video.camera)

    def _place_viewer(self, beside: float = 0.0) -> None:
        """Behind and above the cameras, looking where they look; also for people who are connected already.

        beside: how far to the right something else stands that is to be seen as well.
        """
        video, first = self._video, self._first()
        poses = video.cam2world[video.tracked] if video.tracked.any() else video.cam2world[first : first + 1]
        up, forward = up_direction(poses), poses[0, :3, 2]
        right = video.cam2world[first, :3, 0]
        target = poses[:, :3, 3].mean(axis=0) + 0.6 * self._extent * forward + 0.6 * beside * right
        distance = self._extent + float(np.ptp(poses[:, :3, 3], axis=0).max()) + 0.45 * beside
        position = target + distance * (0.55 * up - 0.9 * forward + 0.35 * right)
        self._server.scene.set_up_direction(up)
        start = self._server.initial_camera
        start.position, start.look_at, start.up = position, target, up
        start.near, start.far = 1e-3 * self._extent, 1e3 * self._extent
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.position, client.camera.look_at, client.camera.up_direction = position, target, up

    def _first(self) -> int:
        tracked = np.flatnonzero(self._video.tracked)
        return int(tracked[0]) if len(tracked) else 0

    def _add_path(self) -> None:
        video = self._video
        lines, colours = path_lines(video.cam2world, video.tracked, video.segment)
        if len(lines):
            self._nodes["path"].append(
                self._server.scene.add_line_segments("/path", lines, colours, thickness=_LINE, thickness_units="screen")
            )
        rows = video.keyframe[video.tracked[video.keyframe]]
        if len(rows):
            frusta = frustum_lines(video.cam2world[rows], video.camera, self._frustum)
            self._nodes["keyframes"].append(self._lines("/keyframes", frusta, KEYFRAME, 1.5))

    def _lines(
        self, name: str, lines: NDArray[np.float32], colour: tuple[int, int, int], thickness: float = _LINE
    ) -> viser.SceneNodeHandle:
        return self._server.scene.add_line_segments(name, lines, colour, thickness=thickness, thickness_units="screen")

    def _camera(
        self, name: str, row: int, colour: tuple[int, int, int], picture: NDArray[np.uint8], scale: float = 1.0
    ) -> viser.CameraFrustumHandle:
        pose, camera = self._video.cam2world[row], self._video.camera
        view, aspect = vertical_view(camera), camera.width / camera.height
        # viser keeps the volume of a frustum constant; this makes its length that of our lines
        size = scale * self._frustum * float(np.cbrt(np.tan(view / 2) ** 2 * aspect / 3))
        return self._server.scene.add_camera_frustum(
            name,
            view,
            aspect,
            scale=size,
            thickness=_LINE * scale,
            thickness_units="screen",
            color=colour,
            image=picture,
            jpeg_quality=80,
            wxyz=tf.SO3.from_matrix(pose[:3, :3]).wxyz,
            position=pose[:3, 3],
            cast_shadow=False,
            receive_shadow=False,
        )

    def _size(self, point_size: float) -> float:
        return point_size * 1e-3 * self._extent

    def _set(self, layer: str, visible: bool) -> None:
        for node in self._nodes[layer]:
            node.visible = visible


def small(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The picture (H, W, 3) resized to at most that width."""
    from PIL import Image

    if picture.shape[1] <= width:
        return picture
    height = max(1, round(width * picture.shape[0] / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
