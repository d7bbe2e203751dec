"""Measurements of the whole: run as modules from the root of the checkout, `python -m benchmarks.NAME`."""
