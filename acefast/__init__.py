"""acefast: fast, proven inference for the ACE-Step music diffusion models."""

from acefast.backends import BackendUnavailable, use_backend
from acefast.checkpoint import CheckpointError
from acefast.pipeline import Pipeline, generate, load
from acefast.request import Request, RequestError
from acefast.sampling import Cancelled, StepInfo
from acefast.song import Song

__all__ = [
    "BackendUnavailable",
    "Cancelled",
    "CheckpointError",
    "Pipeline",
    "Request",
    "RequestError",
    "Song",
    "StepInfo",
    "generate",
    "load",
    "use_backend",
]
