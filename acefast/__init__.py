"""acefast: fast, proven inference for the ACE-Step music diffusion models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acefast.backends import BackendUnavailable, use_backend
    from acefast.checkpoint import CheckpointError
    from acefast.pipeline import Pipeline, generate, load
    from acefast.request import Request, RequestError
    from acefast.sampling import Cancelled, StepInfo
    from acefast.scheduler import Scheduler
    from acefast.song import Song
    from acefast.stream import AudioChunk

__all__ = [
    "AudioChunk",
    "BackendUnavailable",
    "Cancelled",
    "CheckpointError",
    "Pipeline",
    "Request",
    "RequestError",
    "Scheduler",
    "Song",
    "StepInfo",
    "generate",
    "load",
    "use_backend",
]

# Each name is imported when it is first asked for, so that the command line is at work before torch is.
_MODULES = {
    "AudioChunk": "acefast.stream",
    "BackendUnavailable": "acefast.backends",
    "Cancelled": "acefast.sampling",
    "CheckpointError": "acefast.checkpoint",
    "Pipeline": "acefast.pipeline",
    "Request": "acefast.request",
    "RequestError": "acefast.request",
    "Scheduler": "acefast.scheduler",
    "Song": "acefast.song",
    "StepInfo": "acefast.sampling",
    "generate": "acefast.pipeline",
    "load": "acefast.pipeline",
    "use_backend": "acefast.backends",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'acefast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
