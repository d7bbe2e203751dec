"""How loops are compiled for the CPU (numba)."""

from __future__ import annotations

from typing import Any

import numba

compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compiled at first use, kept on disk, without the GIL; division by zero gives inf as in numpy."""

compiled_for_pixels: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
"""The same with sums in whatever order fills vector registers: for loops over the pixels of a patch in single precision."""
