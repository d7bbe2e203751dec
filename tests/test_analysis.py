"""The examples of docs/analysis.ipynb do what it says."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pytest
import zarr

import notebooks
from fleet_worlds import CORRUPT, FRAMES, GOOD, small_fleet


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that the examples leave behind, run one after another beside a small fleet as a person would."""
    folder = tmp_path_factory.mktemp("analysis")
    plt.close("all")
    small_fleet(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        names = notebooks.run("analysis")
    return names | {"folder": folder, "figures": len(plt.get_fignums())}


def test_failures_are_listed_with_their_reasons(outcome: dict[str, Any]) -> None:
    assert outcome["failed"]["video_id"].tolist() == [CORRUPT]


def test_the_worst_videos_come_first(outcome: dict[str, Any]) -> None:
    assert outcome["worst"]["residual_px"].is_monotonic_decreasing
    assert set(outcome["worst"]["video_id"]) == set(GOOD)


def test_every_observable_focal_length_is_in_the_histogram(outcome: dict[str, Any]) -> None:
    assert outcome["videos_per_angle"].sum() == len(GOOD)
    assert outcome["videos_per_angle"][5] == len(GOOD), "0.8 of the width: 64 degrees"


def test_every_step_within_a_video_is_in_the_distribution_of_speeds(outcome: dict[str, Any]) -> None:
    assert outcome["steps_per_speed"].sum() == len(GOOD) * (FRAMES - 1)
    assert outcome["relative"].to_numpy() == pytest.approx(1.0, rel=1e-3), "the synthetic cameras move evenly"


def test_both_distributions_are_drawn(outcome: dict[str, Any]) -> None:
    assert outcome["figures"] == 2


def test_depth_has_statistics_of_every_video(outcome: dict[str, Any]) -> None:
    depths = outcome["depths"].set_index("video_id")
    assert sorted(depths.index) == list(GOOD)
    assert (depths["median"] == 2.0).all()
    assert (depths["measured"] == 1.0).all()


def test_the_subset_is_written(outcome: dict[str, Any]) -> None:
    subset = outcome["folder"] / "subset"
    assert {path.name for path in subset.iterdir()} == {"videos.csv", *(f"{video_id}.zarr" for video_id in GOOD)}
    assert zarr.open_group(subset / "a.zarr", mode="r")["ba_poses/cam2world"].shape == (FRAMES, 4, 4)  # type: ignore[union-attr]
