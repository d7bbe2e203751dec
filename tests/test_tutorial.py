"""The tutorial runs from top to bottom, and is kept in the repository without outputs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    return dict(json.loads(NOTEBOOK.read_text(encoding="utf-8")))


def test_it_holds_no_outputs(notebook: dict[str, Any]) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_every_cell_runs_and_the_results_are_good(
    notebook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    assert len(names["points"]) > 1000
    assert len(plt.gcf().axes[0].collections) == 1
    plt.close("all")
    assert len(names["frames"]) == 20
    assert 0.5 < names["share_known"] <= 1
    assert names["found"].trajectory.ate_percent < 5
    assert names["found"].depth.abs_rel < 0.2
    assert np.isfinite(names["found"].temporal.tae_percent)
    assert "aligned_depth" in capsys.readouterr().out
