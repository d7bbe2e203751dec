"""Write the API page: every public name of vipe_dag and vipe_kernels with its docstring. Any warning is an error.

    python docs/api.py build/api
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import warnings
from pathlib import Path

# What counts here is names and words: numba need not compile, and numerics need one thread.
os.environ.update(NUMBA_DISABLE_JIT="1", OMP_NUM_THREADS="1")

PACKAGES = ("vipe_dag", "vipe_kernels")
LEFT_OUT = ("vipe_dag.cli", "vipe_dag.__main__")
"""Programs rather than a library."""


def modules() -> list[str]:
    """Names of all modules, found without importing them; pdoc by itself stops at a package that has `__all__`."""
    found = []
    for package in PACKAGES:
        place = Path(__file__).parents[1] / package
        found += [package, *(module.name for module in pkgutil.walk_packages([str(place)], f"{package}."))]
    return [name for name in found if not name.startswith(LEFT_OUT)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder; index.html is the first page")
    out = parser.parse_args().out
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import pdoc

    import vipe_dag

    for name in vipe_dag.__all__:  # loaded on demand otherwise, which pdoc does not see
        setattr(vipe_dag, name, getattr(vipe_dag, name))
    pdoc.render.configure(footer_text="vipe-dag", search=True, show_source=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)  # what pdoc raises
        pdoc.pdoc(*modules(), output_directory=out)
    for warning in found:
        print(f"{warning.filename}:{warning.lineno}: {warning.message}", file=sys.stderr)
    print(f"{out / 'index.html'}: {len(list(out.rglob('*.html')))} pages, {len(found)} warnings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
