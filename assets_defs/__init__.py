"""Dagster wiring only: partitions, assets, checks, the job, metadata. What a stage does is in vipe_dag."""
