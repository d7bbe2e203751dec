"""`vipe-dag view` seen through a browser: the scene, the controls, other videos, a snapshot, a clean end."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import viser
from PIL import Image

import chromium
from stored_clip import FINGERPRINT, VIDEO, second_generation, store_clip
from vipe_dag import cli, synthetic
from vipe_dag.export import tum
from vipe_dag.store import VideoStore
from vipe_dag.viewer.app import Viewer
from vipe_dag.viewer.panel import Panel

FRAMES = 6
LOST = "lost-0a1b2c3d"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    clip = synthetic.scene("room", n_frames=FRAMES, width=160, height=90, supersample=1)
    store = VideoStore(folder)
    store_clip(store, clip)
    second_generation(store, clip.cam2world)
    store_clip(store, clip, video_id=LOST, tracked=np.arange(FRAMES) > 0)
    tum.write(folder / "truth.txt", clip.time, clip.cam2world)
    return folder


@pytest.fixture(scope="module")
def viewer(root: Path) -> Iterator[Viewer]:
    made = Viewer(VideoStore(root), VIDEO, "127.0.0.1", 0, root / "truth.txt")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def page(viewer: Viewer, profile: Path) -> Iterator[chromium.Page]:
    with chromium.page(profile, webgl=True) as page:
        page.open(f"http://127.0.0.1:{viewer.port}")
        page.wait_for_text(f"points of {FRAMES} of {FRAMES} frames")
        yield page


def number(label: str) -> str:
    """Where the value of a slider is typed."""
    return f"//label[.='{label}']/ancestor::*[4]//input[@inputmode]"


def choose(page: chromium.Page, label: str, option: str) -> None:
    """One of a list that opens."""
    page.click(f"//label[.='{label}']/ancestor::*[3]//input[not(@type='hidden')]")
    page.click(f"//*[@role='option'][starts-with(., '{option}')]")


def scene(page: chromium.Page, folder: Path) -> np.ndarray:
    """The part of the window that the controls do not cover, (H, W, 3)."""
    return np.asarray(Image.open(page.screenshot(folder / "scene.png")).convert("RGB"))[160:, :1000].astype(int)


def settled(page: chromium.Page, folder: Path) -> np.ndarray:
    """The scene once something is drawn in it and nothing moves."""
    previous = np.empty(0)
    deadline = time.monotonic() + chromium.PATIENCE_SECONDS
    while time.monotonic() < deadline:
        shown = scene(page, folder)
        if shown.std() > 10 and np.array_equal(shown, previous):
            return shown
        previous = shown
        time.sleep(0.25)
    raise AssertionError("the scene does not settle")


def wait_for_change(page: chromium.Page, folder: Path, before: np.ndarray) -> None:
    """Until the scene differs from what it was in more than a few pixels."""
    deadline = time.monotonic() + chromium.PATIENCE_SECONDS
    while (np.abs(scene(page, folder) - before).sum(axis=-1) > 60).sum() <= 200:
        assert time.monotonic() < deadline, "the scene stays as it is"
        time.sleep(0.25)


def test_the_scene_shows_coloured_points_and_cameras(page: chromium.Page, tmp_path: Path) -> None:
    shown = settled(page, tmp_path)
    drawn = np.abs(shown - 255).sum(axis=-1) > 60
    assert drawn.mean() > 0.02
    assert len(np.unique(shown[drawn] // 32, axis=0)) > 20


def test_moving_the_slider_changes_the_picture(page: chromium.Page, tmp_path: Path) -> None:
    before = settled(page, tmp_path)
    page.type_into(number("row"), "5")
    page.wait_for_text("frame 5 · ")
    wait_for_change(page, tmp_path, before)


def test_hiding_the_thumbnails_changes_the_picture(page: chromium.Page, tmp_path: Path) -> None:
    before = settled(page, tmp_path)
    page.click("//label[.='thumbnails']")
    wait_for_change(page, tmp_path, before)


def test_another_generation_appears_beside_this_one(page: chromium.Page, tmp_path: Path) -> None:
    before = settled(page, tmp_path)
    choose(page, "compare with", FINGERPRINT[:8])
    wait_for_change(page, tmp_path, before)


def test_playing_moves_through_the_frames(page: chromium.Page) -> None:
    page.type_into(number("speed"), "0.1")
    page.type_into(number("row"), "1")
    page.click("//label[.='play']")
    page.wait_for_text("frame 3 · ")
    page.click("//label[.='play']")


def test_the_beginning_of_a_number_that_is_being_typed_counts_as_the_least_allowed() -> None:
    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    try:
        panel = Panel(server, [VIDEO], VIDEO, lambda kind: None)
        panel.speed.value = 0.0
        panel.frame_step.value = 0
        assert (panel.settings().speed, panel.settings().frame_step) == (0.1, 1)
    finally:
        server.stop()


def test_a_snapshot_is_a_picture_of_the_scene(viewer: Viewer, page: chromium.Page, profile: Path) -> None:
    page.click("//button[contains(., 'snapshot')]")
    deadline = time.monotonic() + 40
    while not (found := list(profile.glob("*.png"))) and time.monotonic() < deadline:
        time.sleep(0.25)
    assert found[0].name.startswith(VIDEO)
    assert np.asarray(Image.open(io.BytesIO(found[0].read_bytes()))).std() > 5


def test_another_video_is_picked_from_the_list(page: chromium.Page) -> None:
    choose(page, "video", LOST)
    page.wait_for_text("not tracked", f"points of {FRAMES - 1} of {FRAMES - 1} frames")


def test_nothing_of_all_that_left_an_error_in_the_console(page: chromium.Page) -> None:
    assert page.errors() == []


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["cv2"] = None
from vipe_dag.cli import main
sys.exit(main())
"""


def serving(root: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`vipe-dag view` as a process of its own, as where torch and OpenCV are not installed, and all it printed up to its address."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "view", VIDEO, "--store", str(root), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    printed = ""
    while "Ctrl-C" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    return process, printed


def test_it_listens_on_loopback_and_ctrl_c_ends_it(root: Path) -> None:
    process, printed = serving(root)
    try:
        listening = {c.laddr.ip for c in psutil.Process(process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    finally:
        process.send_signal(signal.SIGINT)
    assert listening == {"127.0.0.1"}
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+  \(Ctrl-C to stop\)\n", printed)
    assert process.wait(30) == 0


def test_it_says_so_when_others_can_reach_it(root: Path) -> None:
    process, printed = serving(root, "--host", "0.0.0.0")
    process.send_signal(signal.SIGINT)
    assert "warning: 0.0.0.0 is not loopback: whoever reaches port" in printed
    assert process.wait(30) == 0


def error_of(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = cli.main(["view", *map(str, arguments), "--port", "0"])
    (line,) = capfd.readouterr().err.splitlines()
    return code, line


def test_an_unknown_video_is_named_with_the_nearest(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, line = error_of(capfd, "rom-0a1b2c3d", "--store", root)
    assert code == 1
    assert re.match(f"error: no video 'rom-0a1b2c3d' in .*{VIDEO}", line)


def test_a_video_without_poses_says_what_to_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = VideoStore(tmp_path)
    with store.begin("early-0a1b2c3d", "keyframes", "0123456789abcdef") as w:
        w.put("keyframe", np.array([0]))
        w.put("motion", np.zeros(2, np.float32))
        w.put("segment", np.zeros(2, np.int32))
        w.put("sharpness", np.zeros(2, np.float32))
        for way in ("flow_to_next", "flow_from_next"):
            w.put(way, np.zeros((1, 3, 4, 2), np.float16))
        w.attrs({"flags": []})
    code, line = error_of(capfd, "early-0a1b2c3d", "--store", tmp_path)
    assert code == 1
    assert "early-0a1b2c3d has no ba_poses" in line
    assert "run the video until ba_poses" in line


def test_a_reference_that_cannot_be_read_is_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, line = error_of(capfd, VIDEO, "--store", root, "--reference", root / "missing.txt")
    assert code == 1
    assert "missing.txt: cannot be read as a trajectory" in line


def test_a_port_that_is_taken_is_wrong_usage(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["view", VIDEO, "--store", str(root), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use" in capfd.readouterr().err
