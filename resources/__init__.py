"""Dagster resources: where results live and who is told of progress. Placement only; a value that changes a result belongs in the config."""
