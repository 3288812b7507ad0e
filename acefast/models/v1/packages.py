"""The packages of the extra ``v1``: imported where a line of lyrics needs one."""

from __future__ import annotations

import importlib
from types import ModuleType

from acefast.values import RequestError


def needed(module: str, what: str) -> ModuleType:
    """The module; RequestError, in one sentence, where the package of it or of what it needs is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise RequestError(
            f"lyrics: {what} need {missing}, which is not installed; run pip install acefast[v1]"
        ) from error
