"""Transitional home of SourceRecord."""

from vipe_dag.video.records import SourceRecord

__all__ = ["SourceRecord"]
