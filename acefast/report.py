"""What ``acefast info`` tells: versions, devices, backends and models, as plain data and as text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch

from acefast.backends import BACKENDS, why_unavailable
from acefast.checkpoint import Checkpoint, open_checkpoint
from acefast.cuda import loader
from acefast.inventory import list_models

PACKAGES = ("acefast", "torch", "transformers", "triton", "safetensors", "soundfile")


def machine() -> dict[str, Any]:
    """Versions, devices, backends (and why one cannot run), how CUDA kernels are loaded, and the models found here."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": devices(),
        "backends": {name: why_unavailable(name) or "available" for name in BACKENDS},
        "cuda": loader.paths(loader.current_sm() if torch.cuda.is_available() else None),
        "models": [
            {"name": found.name, "path": str(found.path), "problem": found.problem}
            if found.checkpoint is None
            else {"name": found.name, **checkpoint(found.checkpoint)}
            for found in list_models()
        ],
    }


def model(name: str) -> dict[str, Any]:
    """One model in detail; nothing is downloaded. Raises CheckpointError where it cannot be used."""
    found = open_checkpoint(name, offline=True)
    found.check()
    return {"models": [{"name": found.name, **checkpoint(found)}]}


def checkpoint(found: Checkpoint) -> dict[str, Any]:
    """Layout, traits and parts of a checkpoint; sizes are of the files, in bytes."""
    return {
        "path": str(found.parts[0].files[0] if found.layout in ("comfyui", "all-in-one") else found.folder),
        "layout": found.layout,
        "version": found.traits.version,
        "xl": found.traits.xl,
        "bytes": sum(part.bytes for part in found.parts),
        "parts": [
            {"name": p.name, "params": p.params, "bytes": p.bytes, "dtype": str(p.dtype).removeprefix("torch.")}
            for p in found.parts
        ],
    }


def devices() -> list[dict[str, Any]]:
    """The CPU and every GPU that torch sees; memory in bytes."""
    cpu = {
        "device": "cpu",
        "name": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
    }
    gpus = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        gpus.append(
            {
                "device": f"cuda:{i}",
                "name": about.name,
                "memory": about.total_memory,
                "capability": f"sm_{about.major}{about.minor}",
            }
        )
    return [cpu, *gpus]


def as_text(facts: dict[str, Any]) -> str:
    """The same for people."""
    lines: list[str] = []
    if "versions" in facts:
        lines.append("  ".join(f"{n} {v or '(absent)'}" for n, v in facts["versions"].items()))
        lines.append("")
        for d in facts["devices"]:
            memory = _bytes(d["memory"]) if d["memory"] else ""
            details = (d["name"], memory, d.get("capability", d.get("instructions", "")))
            lines.append(f"device   {d['device']:10} {', '.join(x for x in details if x)}")
        for name, state in facts["backends"].items():
            lines.append(f"backend  {name:10} {state}")
        lines += [f"cuda     {path:13} {state}" for path, state in facts["cuda"].items()]
        lines.append("")
    for m in facts["models"]:
        if m.get("problem"):
            lines.append(f"model    {m['name']}: cannot be used: {m['problem']}")
            continue
        lines.append(f"model    {m['name']}  {m['layout']} layout, {m['version']}, {_bytes(m['bytes'])}  {m['path']}")
        for p in m["parts"]:
            lines.append(f"           {p['name']:18} {p['params'] / 1e6:9.1f} M  {_bytes(p['bytes']):>9}  {p['dtype']}")
    if {m["name"] for m in facts["models"]} == {"demo"}:
        where = os.environ.get("ACEFAST_MODELS")
        lines.append(
            "no other models found" + (f" in {where}" if where else "; set $ACEFAST_MODELS to a folder of checkpoints")
            + " or in the hub's cache; acefast generate downloads the one it needs"
        )  # fmt: skip
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"
