"""Write the API page: every public name of vipe_dag and vipe_kernels with its docstring. Any warning is an error.

python docs/api.py build/api
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

# What counts here is names and words: numba need not compile, and numerics need one thread.
os.environ.update(NUMBA_DISABLE_JIT="1", OMP_NUM_THREADS="1")

PACKAGES = ("vipe_dag", "vipe_kernels")
LEFT_OUT = ("vipe_dag.cli", "vipe_dag.__main__")
"""Programs rather than a library."""


def specifications() -> list[str]:
    """What pdoc is asked for: it walks down by itself, but stops at a package that has `__all__`, whose modules are named here."""
    found = list(PACKAGES)
    for package in PACKAGES:
        place = Path(__file__).parents[1] / package
        for name in (module.name for module in pkgutil.walk_packages([str(place)], f"{package}.")):
            parent = importlib.import_module(name.rpartition(".")[0])
            if hasattr(parent, "__all__") and not name.startswith(LEFT_OUT):
                load(parent)
                found += [name] if name.rpartition(".")[2] not in parent.__all__ else []
    return found


def load(package: ModuleType) -> None:
    """Loads the names of a package that are otherwise loaded on demand, which pdoc does not see."""
    for name in package.__all__:
        setattr(package, name, getattr(package, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder; index.html is the first page")
    out = parser.parse_args().out
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import pdoc

    pdoc.render.configure(footer_text="vipe-dag", search=True, show_source=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)  # what pdoc raises
        pdoc.pdoc(*specifications(), output_directory=out)
    for warning in found:
        print(f"{warning.filename}:{warning.lineno}: {warning.message}", file=sys.stderr)
    print(f"{out / 'index.html'}: {len(list(out.rglob('*.html')))} pages, {len(found)} warnings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
