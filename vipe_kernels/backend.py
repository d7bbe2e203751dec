"""Which implementation runs an operation: decided here, by where the data is, and nowhere else.

Every operation has its definition in tensor operations, which run on any device and in any floating type. Beside it stand loops compiled by
numba for float64 on the CPU (`fused`) and kernels compiled by Triton for GPUs (`gpu`): the same sums, faster.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["compiled", "triton", "tensors"]


def backend_for(data: Tensor) -> Backend:
    """`compiled` for float64 on the CPU, `triton` on a GPU where that package is installed (extra `gpu`), else `tensors`."""
    if data.device.type == "cpu":
        return "compiled" if data.dtype == torch.float64 else "tensors"
    return "triton" if data.device.type == "cuda" and _triton_is_installed() else "tensors"


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
