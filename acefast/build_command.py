"""``acefast build``: CUDA kernels compiled before their first use, where they were not when acefast was installed."""

from __future__ import annotations

import argparse
import time

import torch

from acefast.backends import BackendUnavailable
from acefast.console import out
from acefast.cuda import loader, toolkit


def add_arguments(build: argparse.ArgumentParser) -> None:
    """What the command takes."""
    build.add_argument("--sm", type=int, action="append", help="a GPU, 80 for an A100; again for more (default: here)")


def run(args: argparse.Namespace) -> int:
    """Compile every source of csrc/ for each GPU, where that is not done; returns the exit code.

    Raises:
        BackendUnavailable: there is no GPU and none is named, or nothing here compiles.
    """
    here = [loader.sm_of(i) for i in range(torch.cuda.device_count())]
    if not (args.sm or here):
        raise BackendUnavailable(f"build: {loader.NO_GPU}; name one with --sm, such as --sm 80")
    for sm in sorted({*(args.sm or here)}):
        if sm in here and not loader.why_not_ahead(sm):
            out(f"sm_{sm}: compiled when acefast was installed")
            continue
        if reason := loader.why_not_at_first_use():
            way_out = "pip install cupy-cuda13x, or cupy-cuda12x for a driver of CUDA 12"
            raise BackendUnavailable(f"build: {reason}; {way_out}")
        for source in toolkit.sources():
            begun = time.perf_counter()
            try:
                size = sum(len(loader.compiled_by_nvrtc(source, entry, sm)) for entry in toolkit.entries(source))
            except toolkit.CompileError as error:
                raise BackendUnavailable(f"build: sm_{sm}: {' '.join(str(error).split())}") from error
            out(f"sm_{sm}: {source}, {size / 1e3:.0f} kB in {time.perf_counter() - begun:.1f} s")
    return 0
