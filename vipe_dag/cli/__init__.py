"""The command line. Exit codes: 0 all went well; 1 a video or a request failed; 2 wrong usage or configuration; 130 interrupted."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vipe_dag.errors import ConfigError, VipeDagError

DEBUG_VARIABLE = "VIPE_DAG_DEBUG"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Errors raised on purpose become one line on standard error; $VIPE_DAG_DEBUG shows all."""
    from vipe_dag.cli.commands import app
    from vipe_dag.cli.terminal import fail

    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            fail("interrupted; what is in the store stays as it was")
        return leaving.code if isinstance(leaving.code, int) else 1
    except VipeDagError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        fail(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    return 0
