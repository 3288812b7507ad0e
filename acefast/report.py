"""What ``acefast info`` tells: versions, devices, backends and models, as plain data and as text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch

from acefast.backends import BACKENDS, why_unavailable
from acefast.checkpoint import Checkpoint, Part, open_checkpoint
from acefast.cpu.extension import instructions
from acefast.cuda import loader
from acefast.inventory import list_models
from acefast.memory import GB, Job, Networks, fits, free_memory, plan

GPU_SIZES = (8, 12, 16, 24, 48, 80)  # GB, of which plans are told
PACKAGES = ("acefast", "torch", "transformers", "triton", "safetensors", "soundfile")


def machine() -> dict[str, Any]:
    """Versions, devices, backends (and why one cannot run), how CUDA kernels are loaded, which instructions the CPU's
    use, and the models found here."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": devices(),
        "backends": {name: why_unavailable(name) or "available" for name in BACKENDS},
        "cuda": loader.paths(loader.current_sm() if torch.cuda.is_available() else None),
        "cpu": instructions(),
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
    """Layout, traits and parts of a checkpoint, and what is not loaded of it; sizes are of the files, in bytes."""
    return {
        "path": str(found.parts[0].files[0] if found.layout in ("comfyui", "all-in-one") else found.folder),
        "layout": found.layout,
        "version": found.traits.version,
        "xl": found.traits.xl,
        "bytes": sum(part.bytes for part in [*found.parts, *found.unused]),
        "parts": [_part(part) for part in found.parts],
        "unused": [_part(part) for part in found.unused],
    }


def _part(part: Part) -> dict[str, Any]:
    dtype = str(part.dtype).removeprefix("torch.")
    return {"name": part.name, "params": part.params, "bytes": part.bytes, "dtype": dtype}


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


def plans(model: str, seconds: float, songs: int, dtype: torch.dtype) -> dict[str, Any]:
    """The memory of a job on a GPU's kernels and on this machine, see ``acefast.memory``; in bytes.

    ``gpus``: for those of several sizes and those that are here, what "auto" takes there. Raises CheckpointError for a
    model that is neither here nor published.
    """
    networks, job = Networks.named(model), Job(seconds, songs)
    found, cuda = [], torch.device("cuda")
    here = [(d["device"], d["memory"], free_memory(torch.device(d["device"]))) for d in devices()]
    sizes = [(f"a GPU of {gb} GB", gb * GB, gb * GB) for gb in GPU_SIZES]
    for name, total, free in [*sizes, *here]:
        gpu = name != "cpu"
        given = (networks, job, dtype, cuda if gpu else torch.device("cpu"))
        fast, low = (plan(*given, memory, total=total, kernels=gpu) for memory in ("fast", "low"))
        room = free is None or fits(fast, free), free is None or fits(low, free)
        found.append(
            {
                **{"device": name, "memory": total, "free": free, "tile_frames": fast.tile_frames},
                **{"fast": fast.peak, "low": low.peak, "takes": "fast" if room[0] else "low" if room[1] else None},
            }
        )
    shown = plan(networks, job, dtype, cuda, total=GPU_SIZES[-1] * GB, kernels=True)
    low = plan(networks, job, dtype, cuda, "low", total=GPU_SIZES[-1] * GB, kernels=True)
    return {
        "plan": {
            **{"model": networks.name, "seconds": seconds, "songs": songs, "dtype": str(dtype).removeprefix("torch.")},
            **{"weights": shown.weights, "work": shown.work, "stages": {"fast": shown.stages, "low": low.stages}},
            **{"peak": {"fast": shown.peak, "low": low.peak}},
        },
        "devices": found,
    }


def _plan_text(facts: dict[str, Any]) -> str:
    p = facts["plan"]
    songs = f"{p['songs']} song{'s' * (p['songs'] != 1)} of {p['seconds']:g} s"
    lines = [f"plan     {p['model']}, {songs}, {p['dtype']}, longest prompt and lyrics, on a GPU's kernels"]
    for title in ("weights", "work"):
        lines += [f"  {title}", *(f"  {'':8} {name:18} {_bytes(size):>9}" for name, size in p[title].items())]
    lines.append(f"  {'held while in':27} {'fast':>9} {'low':>9}")
    rows = [(stage, size, p["stages"]["low"][stage]) for stage, size in p["stages"]["fast"].items()]
    for name, fast, low in [*rows, ("peak", p["peak"]["fast"], p["peak"]["low"])]:
        lines.append(f"  {'':8} {name:18} {_bytes(fast):>9} {_bytes(low):>9}")
    for d in facts["devices"]:
        free = "" if d["free"] is None else f", {_bytes(d['free'])} free" * (d["free"] != d["memory"])
        verdict = {None: "too small; lower duration or batch", "fast": "fast fits", "low": "low fits"}[d["takes"]]
        tile = f", tiles of {d['tile_frames']} frames"
        lines.append(f"device   {d['device']}{free}: fast {_bytes(d['fast'])}, low {_bytes(d['low'])}{tile}: {verdict}")
    return "\n".join(lines)


def as_text(facts: dict[str, Any]) -> str:
    """The same for people."""
    if "plan" in facts:
        return _plan_text(facts)
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
        lines.append(f"cpu      {_instructions(facts['cpu'])}")
        lines.append("")
    for m in facts["models"]:
        if m.get("problem"):
            lines.append(f"model    {m['name']}: cannot be used: {m['problem']}")
            continue
        lines.append(f"model    {m['name']}  {m['layout']} layout, {m['version']}, {_bytes(m['bytes'])}  {m['path']}")
        for p in [*m["parts"], *m["unused"]]:
            lines.append(f"           {p['name']:18} {p['params'] / 1e6:9.1f} M  {_bytes(p['bytes']):>9}  {p['dtype']}")
        if m["unused"]:
            names, size = ", ".join(p["name"] for p in m["unused"]), _bytes(sum(p["bytes"] for p in m["unused"]))
            params = sum(p["params"] for p in m["unused"]) / 1e6
            lines.append(f"           not loaded, as no song needs it: {names}; {params:.1f} M, {size}")
    if {m["name"] for m in facts["models"]} == {"demo"}:
        where = os.environ.get("ACEFAST_MODELS")
        lines.append(
            "no other models found" + (f" in {where}" if where else "; set $ACEFAST_MODELS to a folder of checkpoints")
            + " or in the hub's cache; acefast generate downloads the one it needs"
        )  # fmt: skip
    return "\n".join(lines)


def _instructions(cpu: dict[str, str]) -> str:
    if "problem" in cpu:
        return cpu["problem"]
    engines = f"products by {cpu['engine']}, of 8 bits by {cpu['engine8']}"
    return f"{'instructions':13} {cpu['instructions']} of at most {cpu['supported']}; {engines}"


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
