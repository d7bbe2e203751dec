"""The house rules that a reviewer would otherwise have to watch: directions of imports, light imports, names, dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vipe_dag.graph import STAGES

ROOT = Path(__file__).parents[1]
OURS = ("vipe_kernels", "vipe_dag", "assets_defs", "resources")
DAGSTER = frozenset({"dagster", "dagster_webserver", "dagster_graphql"})
STORAGE = frozenset({"zarr", "numcodecs", "xarray", "fsspec", "s3fs"})
LIGHT = ("vipe_dag", "vipe_dag.config", "vipe_dag.graph", "vipe_dag.store", "vipe_dag.runner", "vipe_dag.cli", "assets_defs.definitions")
MAY_IMPORT_OF_OURS = {
    "vipe_kernels": {"vipe_kernels"},
    "vipe_dag": {"vipe_dag", "vipe_kernels"},
    "assets_defs": {"assets_defs", "resources", "vipe_dag", "vipe_kernels"},
    "resources": {"resources", "vipe_dag", "vipe_kernels"},
}
RUNS_DAGSTER = "vipe_dag/runner.py"
"""The program behind `vipe-dag run`, on top of both packages: alone in vipe_dag it reaches Dagster, inside functions only."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def modules_imported(path: Path) -> Iterator[str]:
    """Absolute names that a file imports, anywhere in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])])


def packages_imported(path: Path) -> set[str]:
    return {name.split(".")[0] for name in modules_imported(path)}


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.splitlines() if (path := ROOT / name).is_file()]


@pytest.mark.parametrize("package", OURS)
def test_imports_point_one_way(package: str) -> None:
    for path in sources(package):
        allowed = MAY_IMPORT_OF_OURS[package]
        if path.relative_to(ROOT).as_posix() == RUNS_DAGSTER:
            allowed = set(OURS)
        assert packages_imported(path) & set(OURS) <= allowed, path


def test_dagster_is_imported_only_by_its_wiring() -> None:
    for package in ("vipe_kernels", "vipe_dag"):
        for path in sources(package):
            if path.relative_to(ROOT).as_posix() != RUNS_DAGSTER:
                assert not packages_imported(path) & DAGSTER, path


def test_the_command_line_starts_without_dagster() -> None:
    program = f"import sys, vipe_dag.cli, vipe_dag.runner; print(*sorted({set(DAGSTER)!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


def test_kernels_know_tensors_only() -> None:
    allowed = {"torch", "numpy", "scipy", "numba", "triton", "cv2", "vipe_kernels", "lietorch"} | set(sys.stdlib_module_names)
    for path in sources("vipe_kernels"):
        assert packages_imported(path) <= allowed, path


def test_stages_know_no_store() -> None:
    for path in sources("vipe_dag/stages"):
        assert not packages_imported(path) & STORAGE, path
        assert not {name for name in modules_imported(path) if name.startswith("vipe_dag.store")}, path


def test_every_stage_of_the_graph_has_its_module() -> None:
    assert {f"{stage.name}.py" for stage in STAGES} <= {path.name for path in sources("vipe_dag/stages")}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_neither_torch_nor_opencv(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'cv2'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


@pytest.mark.parametrize("package", OURS)
def test_the_installed_package_is_ours(package: str) -> None:
    assert set(packages_distributions()[package]) == {"vipe-dag"}


def test_the_unrelated_lietorch_is_no_dependency() -> None:
    assert "lietorch" not in {requirement.name.lower() for requirement in REQUIREMENTS + EXTRAS}


def test_every_imported_package_is_a_declared_dependency() -> None:
    declared = {requirement.name.lower() for requirement in REQUIREMENTS + EXTRAS}
    providers = packages_distributions()
    optional = {"lietorch"}
    for package in OURS:
        for path in sources(package):
            for name in packages_imported(path) - set(sys.stdlib_module_names) - set(OURS) - optional:
                # a distribution that is one compiled file is not listed: its name stands for itself
                assert {provider.lower() for provider in providers.get(name, [name])} & declared, f"{path} imports {name}"


def test_every_dependency_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for requirement in REQUIREMENTS + EXTRAS:
        if requirement.name != "vipe-dag":
            (line,) = (line for line in lines if re.search(rf'"{re.escape(requirement.name)}\b(?![-.\w])', line))
            assert re.search(r"# \w", line), f"{requirement.name} has no reason"


def test_every_direct_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {constraint.name.lower() for constraint in constraints if str(constraint.specifier).startswith("==")}
    assert {requirement.name.lower() for requirement in REQUIREMENTS + EXTRAS} - {"vipe-dag"} <= pinned


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for package in OURS for path in sources(package) if path.name in drawers]


def test_no_path_of_a_single_machine_is_tracked() -> None:
    machine_path = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work|mnt)/[\w.-]")
    for path in tracked():
        if path.suffix in {".png", ".jpg", ".npz", ".mp4"} or path == Path(__file__):
            continue
        found = machine_path.search(path.read_text(encoding="utf-8", errors="ignore"))
        assert found is None, f"{path}: {found and found.group()}"


@pytest.mark.parametrize("package", ["vipe_dag", "vipe_kernels"])
def test_the_libraries_tell_type_checkers_that_they_are_typed(package: str) -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in setuptools["package-data"][package]


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
