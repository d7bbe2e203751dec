"""Every error a user can meet. The message names the video or file, the fact, and the remedy; the class says who has to act."""

from __future__ import annotations


class VipeDagError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a defect of ours."""


class SourceError(VipeDagError):
    """A video, image folder or sidecar cannot be used: missing, unreadable, empty, or not what its name says."""


class ConfigError(VipeDagError):
    """A configuration value is unknown, out of bounds, or contradicts another."""


class EstimationError(VipeDagError):
    """An estimate cannot be computed from inputs that are well-formed. Degenerate video is flagged data, not this error."""


class StoreError(VipeDagError):
    """The store cannot be read or written: missing asset, schema violation, lost race, unreadable pointer."""
