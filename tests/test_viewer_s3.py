"""`vipe-dag view` on a store in a bucket: what is shown is downloaded, and nothing else."""

from __future__ import annotations

import time

import numpy as np
import pytest

from object_store import Call, ObjectStore
from stored_clip import VIDEO, store_clip
from vipe_dag import synthetic
from vipe_dag.schema import SHARD_FRAMES
from vipe_dag.store import VideoStore
from vipe_dag.viewer.app import FIRST_FRAMES, Viewer
from vipe_dag.viewer.video import ViewedVideo

FRAMES = 72
SHOWN = FRAMES // -(-FRAMES // FIRST_FRAMES)
IMAGES = ("rgb", "z_depth", "confidence", "measured")
SHARDS = -(-FRAMES // SHARD_FRAMES)
SHARD_INDEX_BYTES = 516
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def clip() -> synthetic.SyntheticClip:
    return synthetic.scene("room", n_frames=FRAMES, width=64, height=36, supersample=1)


@pytest.fixture
def root(s3: ObjectStore, clip: synthetic.SyntheticClip) -> str:
    root = f"s3://{s3.bucket()}/videos"
    store_clip(VideoStore(root), clip)
    return root


def of_images(calls: list[Call]) -> list[Call]:
    return [call for call in calls if any(f"/{name}/c/" in call.path for name in IMAGES)]


def size(s3: ObjectStore, root: str) -> int:
    """Bytes of all images of the store."""
    found = s3.client.find(root.removeprefix("s3://"), detail=True)
    return sum(facts["size"] for path, facts in found.items() if any(f"/{name}/c/" in path for name in IMAGES))


def test_a_picture_costs_one_request_for_each_of_its_arrays_and_one_for_the_index(s3: ObjectStore, root: str) -> None:
    video = ViewedVideo(VideoStore(root), VIDEO)
    with s3.counted() as first:
        video.pictures(40)
    with s3.counted() as second:
        video.pictures(41)
    with s3.counted() as again:
        video.pictures(40)
    assert [len(first), len(second), len(again)] == [2 * len(IMAGES), len(IMAGES), 0]
    assert sum(call.sent for call in second) < 3 * size(s3, root) / FRAMES


def test_opening_takes_a_few_requests_and_no_image(s3: ObjectStore, root: str, clip: synthetic.SyntheticClip) -> None:
    with s3.counted() as calls:
        video = ViewedVideo(VideoStore(root), VIDEO)
    assert of_images(calls) == []
    assert len(calls) <= 20
    np.testing.assert_array_equal(video.rgb(70), clip.frames().rgb(70))


def test_the_viewer_downloads_the_frames_that_it_shows(s3: ObjectStore, root: str) -> None:
    whole = size(s3, root)
    with s3.counted() as calls:
        viewer = Viewer(VideoStore(root), None, "127.0.0.1", 0)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while viewer.status != f"points of {SHOWN} of {SHOWN} frames":
            assert time.monotonic() < deadline, viewer.status
            time.sleep(0.05)
        viewer.stop()
    shown = of_images(calls)
    assert sum(call.sent for call in shown) < 1.5 * whole * SHOWN / FRAMES + SHARD_INDEX_BYTES * len(IMAGES) * SHARDS
    thumbnails = 2
    assert len(shown) <= len(IMAGES) * (SHOWN + SHARDS) + thumbnails
