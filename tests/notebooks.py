"""Notebooks of the documentation, run as a person would: cell after cell, in one namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def cells(name: str) -> list[dict[str, Any]]:
    """Of docs/NAME.ipynb."""
    return list(json.loads((DOCS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"])


def run(name: str) -> dict[str, Any]:
    """The names that the cells leave behind. Raises what a cell raises; the traceback says which."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), names)
    return names
