"""Where a model runs, in which dtype and how quantised: what was asked for, or what suits this machine."""

from __future__ import annotations

import contextlib

import torch

from acefast.request import RequestError

DTYPES = {
    **{"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16},
    **{"float32": torch.float32, "fp32": torch.float32},
}


def as_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the fastest here; RequestError where it cannot be used."""
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise RequestError(
            f"device must be cpu, cuda, cuda:1 or mps, or another that torch has, got {name!r}"
        ) from error
    if found.type == "meta":
        raise RequestError("device 'meta' holds no values to make songs of; take 'cpu' or leave it out")
    try:
        made = torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:200]
        raise RequestError(f"device {name!r} cannot be used: {reason}; take 'cpu' or leave it out") from error
    return made.device if found.type == "cuda" else found  # "cuda" is whichever GPU is the current one now


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes ``device`` the current GPU within the block, since launches go to that one; nothing for other devices."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def as_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or the default of ``device``; RequestError for any but the three that models come in."""
    if dtype is None:
        return torch.float32 if device.type == "mps" else torch.bfloat16
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise RequestError(f"dtype must be bfloat16, float16 or float32, got {dtype!r}")
    return found


def as_quantization(quantization: str | None, device: torch.device, family: str, lora: object = None) -> str | None:
    """How weights are quantised, "int8" or None; RequestError for anything else, and where that cannot be had.

    Args:
        family: of the checkpoint.
        lora: what is to be merged into the weights; None: nothing.
    """
    if quantization is None:
        return None
    if quantization != "int8":
        raise RequestError(f"quantization must be int8 or None, got {quantization!r:.60}")
    if family != "1.5":
        raise RequestError("quantization='int8' is for ACE-Step 1.5 alone; leave it out for v1")
    if device.type != "cpu":
        # A GPU's captured steps write to static memory, which has no place for rows as integers.
        raise RequestError(f"quantization='int8' runs on the CPU alone, not on {device.type}; leave it out there")
    if lora is not None:
        raise RequestError("a LoRA cannot be merged into 8-bit weights; load the model without quantization")
    return quantization
