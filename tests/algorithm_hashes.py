"""Which source computes each stage, hashed without comments and docstrings; run as a script it records the present state as acknowledged.

A stage is computed by its module and by the modules of vipe_kernels and vipe_dag that it imports, directly or through others of FOLLOWED,
except those that only declare data or keep it (DECLARATIONS): configuration has its own place in the fingerprint.
"""

from __future__ import annotations

import ast
import json
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vipe_dag.graph import STAGES

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_suffix(".json")
PACKAGES = ("vipe_kernels", "vipe_dag")
FOLLOWED = ("vipe_kernels", "vipe_dag.stages", "vipe_dag.video")
DECLARATIONS = frozenset(
    f"vipe_dag.{name}" for name in ("config", "config_words", "errors", "graph", "results", "schema", "sequence", "store", "strict_yaml")
)


def present() -> dict[str, dict[str, Any]]:
    """Per stage its algorithm_version and {module: hash} of the source that computes it; a stage not written yet has no modules."""
    return {
        stage.name: {
            "algorithm_version": stage.algorithm_version,
            "modules": {name: _file_hash(path) for name, path in sorted(modules_of(stage.module).items())},
        }
        for stage in STAGES
    }


def recorded() -> dict[str, dict[str, Any]]:
    """What was acknowledged last."""
    found: dict[str, dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return found


def unacknowledged() -> list[str]:
    """One sentence per stage whose source or version differs from the record."""
    before = recorded()
    sentences = []
    for name, state in present().items():
        known = before.get(name, {"algorithm_version": None, "modules": {}})
        modules = changed_modules(known["modules"], state["modules"])
        if state["algorithm_version"] != known["algorithm_version"]:
            sentences.append(f"{name}: ALGORITHM_VERSION changed; record it by `make acknowledge`")
        elif modules:
            sentences.append(
                f"{name}: {', '.join(modules)} changed: bump ALGORITHM_VERSION (vipe_dag/graph.py) if results change, "
                "and acknowledge by `make acknowledge`"
            )
    return sentences


def changed_modules(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Modules added, removed or edited, sorted."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def modules_of(module: str) -> dict[str, Path]:
    """The module and all it imports within PACKAGES, by name."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or name in found or name in DECLARATIONS:
            continue
        found[name] = path
        if name.startswith(FOLLOWED):
            waiting.extend(imports(_parsed(path), name if path.name == "__init__.py" else name.rpartition(".")[0]))
    return {name: path for name, path in found.items() if _content(_parsed(path).body)}


def imports(module: ast.Module, package: str) -> list[str]:
    """Names that a module of `package` imports; `from a import b` yields both a and a.b, as b may be a module."""
    names: list[str] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            names.append(origin)
            names.extend(f"{origin}.{alias.name}" for alias in node.names)
    return names


def source_hash(module: ast.Module) -> str:
    """16 hex digits of the syntax tree: the same for any layout, comments and docstrings, and in every version of Python."""
    return blake2b(json.dumps(_tree(module)).encode(), digest_size=8).hexdigest()


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _file_hash(path: Path) -> str:
    return source_hash(_parsed(path))


def _path(module: str) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _tree(node: object) -> Any:
    """Nested lists of node types and fields; empty fields are left out, because versions of Python differ in which they have."""
    if isinstance(node, ast.AST):
        fields = [(name, _tree(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *([name, value] for name, value in fields if value not in (None, []))]
    if isinstance(node, list):
        return [_tree(item) for item in _content(node)]
    return None if node is None else repr(node)


def _content(body: list[Any]) -> list[Any]:
    """Statements but for docstrings and other bare texts."""
    return [
        node
        for node in body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str))
    ]


def main() -> None:
    for sentence in unacknowledged():
        print("acknowledged " + sentence.split(": bump")[0].split("; record")[0])
    RECORD.write_text(json.dumps(present(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
