"""When the real lietorch (https://github.com/princeton-vl/lietorch) does the work, and how its namesake is told apart."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

_REQUIRED = ("SO3", "SE3", "Sim3")
_NAMESAKE = "The `lietorch` on PyPI is an unrelated library for PDE-based group convolutional networks (PDE-G-CNN)."
_REMEDY = (
    "Remove that one with `pip uninstall lietorch`. vipe-dag then uses its own torch implementation; princeton-vl's lietorch is optional, "
    "only for CUDA, and not on PyPI: build it from https://github.com/princeton-vl/lietorch"
)


def real_lietorch() -> ModuleType | None:
    """princeton-vl's lietorch, or None when no package of that name is installed. Imports it.

    Raises ImportError when the package of that name is another one (PyPI's `lietorch` is a library for PDE-based group convolutional
    networks) or does not import.
    """
    try:
        module = importlib.import_module("lietorch")
    except ModuleNotFoundError as error:
        if error.name == "lietorch":
            return None
        raise ImportError(_broken(error)) from error
    except Exception as error:  # a compiled module built for another torch fails in many ways
        raise ImportError(_broken(error)) from error
    missing = [name for name in _REQUIRED if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"the installed package `lietorch` ({_place(module)}) is not princeton-vl's library of Lie groups: it has no "
            f"{', '.join(missing)}. {_NAMESAKE} {_REMEDY}"
        )
    return module


def backend_for(*tensors: Tensor) -> ModuleType | None:
    """The real lietorch where it can compute a group operation on these tensors; None where plain torch does.

    It can when all tensors are non-empty float32 or float64 on CUDA and no gradient is recorded: lietorch's gradients of a group
    element live in its tangent space, not in `data`, and would not chain with those of plain torch.
    Raises ImportError, on CUDA only, as `real_lietorch` does.
    """
    if not all(_on_cuda(tensor) and tensor.dtype in (torch.float32, torch.float64) and tensor.numel() for tensor in tensors):
        return None
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return None
    return _installed()


def dispatch(group: str, operation: str, ours: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`ours(*inputs)`, or the operation of that name of the real lietorch's `group`, broadcast alike."""
    module = backend_for(*inputs)
    if module is None:
        return ours(*inputs)
    # lietorch wants contiguous inputs of one dtype and equally many dimensions.
    batch = torch.broadcast_shapes(*(tensor.shape[:-1] for tensor in inputs))
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in inputs))
    first, *rest = (tensor.to(dtype).expand(*batch, tensor.shape[-1]).reshape(-1, tensor.shape[-1]).contiguous() for tensor in inputs)
    their_group = getattr(module, group)
    if operation == "exp":
        result = their_group.exp(first).data
    elif operation == "inv":
        result = their_group(first).inv().data
    elif operation == "mul":
        result = their_group(first).mul(their_group(rest[0])).data
    else:  # log, act, adj, adjT return tensors
        result = getattr(their_group(first), operation)(*rest)
    return result.reshape(*batch, result.shape[-1])


_installed = functools.cache(real_lietorch)


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "no file"


def _broken(error: Exception) -> str:
    return (
        f"the installed package `lietorch` does not import ({type(error).__name__}: {error}). If it is princeton-vl's library of Lie "
        f"groups, rebuild it for torch {torch.__version__}. {_NAMESAKE} {_REMEDY}"
    )
