"""The definitions of a store whose stages take no time and import nothing heavy: for tests in which Dagster starts processes of its own."""

from __future__ import annotations

import sys
from types import ModuleType

import quick_stages
import vipe_dag.stages
from assets_defs import assets
from assets_defs.definitions import build_definitions

for _name, _function in quick_stages.QUICK.items():
    _stage, _, _attribute = _name.partition(".")
    _module = ModuleType(f"vipe_dag.stages.{_stage}")
    setattr(_module, _attribute, _function)
    sys.modules[_module.__name__] = _module
    setattr(vipe_dag.stages, _stage, _module)

assets.materialization_metadata = lambda *_: {}

defs = build_definitions()
