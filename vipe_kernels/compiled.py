"""How loops are compiled for the CPU (numba)."""

from __future__ import annotations

from typing import Any

import numba

compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compiled at first use, kept on disk, without the GIL; division by zero gives inf as in numpy."""

_FAST = {"reassoc", "contract", "nsz", "arcp"}

compiled_for_pixels: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
"""The same with sums in whatever order fills vector registers: for loops over the pixels of a patch in single precision."""

inside_for_pixels: Any = numba.njit(nogil=True, error_model="numpy", fastmath=_FAST, forceinline=True)
"""What such a loop calls. It is always made part of its caller: two copies may sum in different orders, and which of them a call
reached would depend on whether this process compiled it or read it from disk."""
