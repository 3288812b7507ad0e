"""The machine and the software, as far as they decide about speed: a block of the report."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from acefast import nvml

PACKAGE = Path(__file__).parents[1]
CPU_EXTENSIONS = {  # a flag of Linux's: what is worth telling, the widest first
    **{"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"},
}
SAME = ("cpu", "cores", "threads", "gpu_name", "gpu_uuid_hash")  # what makes two results those of one machine


def environment(device: torch.device, gpu: nvml.Gpu | None = None, why_not: str = "") -> dict[str, Any]:
    """Plain data; what is not known is None.

    Args:
        gpu: where NVML can be asked; ``why_not`` says why it cannot be.
    """
    found = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "diffusers": _version("diffusers"),
        "acefast": _version("acefast"),
        "git": git_revision(),
        "kernel_tables": kernel_tables(),
        "device": str(device),
    }
    if device.type != "cuda":
        return found
    about, facts = torch.cuda.get_device_properties(device), gpu.facts() if gpu else {}
    uuid = getattr(about, "uuid", None)
    return found | {
        "gpu_name": facts.get("name") or about.name,
        "gpu_uuid_hash": facts.get("uuid_hash") or (nvml.hashed(f"GPU-{uuid}") if uuid else None),
        "gpu_sm": 10 * about.major + about.minor,
        "gpu_memory": about.total_memory,
        "cuda": torch.version.cuda,
        **{name: facts.get(name) for name in ("driver", "ecc", "mig", "persistence", "pcie", "pcie_max")},
        "nvml": why_not or None,
    }


def watch(device: torch.device) -> tuple[nvml.Gpu | None, str]:
    """The GPU as NVML sees it; else None and the reason."""
    if device.type != "cuda":
        return None, ""
    about = torch.cuda.get_device_properties(device)
    uuid, bus = getattr(about, "uuid", ""), getattr(about, "pci_bus_id", None)
    pci = f"{about.pci_domain_id:08X}:{bus:02X}:{about.pci_device_id:02X}.0" if bus is not None else ""
    try:
        return nvml.open_gpu(f"GPU-{uuid}" if uuid else "", pci), ""
    except nvml.NvmlUnavailable as error:
        return None, str(error)


def cpu_name() -> str:
    """Model and widest instructions for matrices, such as "AMD EPYC, AVX-512 BF16"."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return name
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(text.splitlines()))}
    flags = set(facts.get("flags", "").split())
    widest = next((name for flag, name in CPU_EXTENSIONS.items() if flag in flags), "")
    return ", ".join(part for part in (facts.get("model name", name), widest) if part)


def git_revision() -> str | None:
    """Of the sources that run, "-dirty" where they were changed; None where they are in no repository."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=20)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        if not git("ls-files", "--error-unmatch", "__init__.py"):
            return None  # installed, perhaps inside of another repository
        revision = git("rev-parse", "--short=12", "HEAD")
        return (revision or None) and revision + "-dirty" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.TimeoutExpired):
        return None


def kernel_tables() -> str | None:
    """Hash of every Triton kernel's table of configurations and of the constants it names; None without kernels.

    The sources are read, not imported: Triton need not be there.
    """
    found = importlib.util.find_spec("acefast.kernels")
    folders = list(found.submodule_search_locations or ()) if found else []
    tables = []
    for path in sorted(p for folder in folders for p in Path(folder).glob("*.py")):
        body = ast.parse(path.read_text("utf-8")).body
        given = {t.id: n for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        if table := given.get("CONFIGS"):
            names = sorted({n.id for n in ast.walk(table) if isinstance(n, ast.Name)} & given.keys())
            tables += [path.name, *(ast.unparse(given[name]) for name in names)]
    return hashlib.sha256("\n".join(tables).encode()).hexdigest()[:12] if tables else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
