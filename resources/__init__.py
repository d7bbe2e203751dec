"""Dagster resources: where results live and who is told of progress. Placement only: no value that changes a result."""
