"""Numerics of vipe-dag: tensors in, tensors out. No files, no Dagster, no Zarr."""
