"""The definitions of a store whose stages take no time and import nothing heavy: for tests in which Dagster starts processes of its own."""

from __future__ import annotations

import quick_stages
from assets_defs import assets
from assets_defs.definitions import build_definitions

quick_stages.stand_in()
assets.materialization_metadata = lambda *_: {}

defs = build_definitions()
