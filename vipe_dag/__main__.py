"""`python -m vipe_dag` is `vipe-dag`."""

import sys

from vipe_dag.cli import main

sys.exit(main())
