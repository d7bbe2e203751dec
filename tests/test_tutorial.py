"""The notebooks are kept in the repository without outputs; the tutorial runs from top to bottom. The other one: test_analysis.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import notebooks


@pytest.mark.parametrize("name", sorted(path.stem for path in notebooks.DOCS.glob("*.ipynb")))
def test_it_holds_no_outputs(name: str) -> None:
    cells = notebooks.cells(name)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_every_cell_runs_and_the_results_are_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = notebooks.run("tutorial")
    assert len(names["points"]) > 1000
    assert len(plt.gcf().axes[0].collections) == 1
    plt.close("all")
    assert len(names["frames"]) == 20
    assert 0.5 < names["share_known"] <= 1
    assert names["found"].trajectory.ate_percent < 5
    assert names["found"].depth.abs_rel < 0.2
    assert np.isfinite(names["found"].temporal.tae_percent)
    assert "aligned_depth" in capsys.readouterr().out
