"""What a caller asks for."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot work, told in one sentence: what, got, way out."""
