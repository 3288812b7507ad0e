"""How long a LoRA takes to merge and to remove: the attention of one block of ACE-Step v1, as the rap LoRA names it.

    python bench/bench_lora.py [--device cuda] [--dtype float32] [--rank 256] [--width 2560]

Eight linear layers of width x width, q|k|v and k|v stacked as ours are, in bf16 in the file; v1 has 24 such blocks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import nn

from acefast.lora import Adapter, LoRA, remake
from acefast.residence import named
from acefast.weights import Source, load, read_header, stack

STACKS = {"qkv": ("self.q", "self.k", "self.v"), "o": ("self.o",), "q": ("x.q",), "kv": ("x.k", "x.v"), "xo": ("x.o",)}
BLOCKS = 24


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--width", type=int, default=2560)
    args = parser.parse_args(argv)
    width, device = args.width, torch.device(args.device)
    table = {ours: Source(names, stack if len(names) > 1 else None) for ours, names in STACKS.items()}
    names = [name for source in table.values() for name in source.names]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({name: torch.randn(width, width).bfloat16() for name in names}, file)
        block = nn.Module()
        for ours, source in table.items():
            empty = torch.empty(len(source.names) * width, width, device="meta")
            block.register_parameter(ours, nn.Parameter(empty, requires_grad=False))
        load(block, table, SimpleNamespace(index=read_header(file)[0]), device, getattr(torch, args.dtype))
        halves = (torch.randn(args.rank, width).bfloat16(), torch.randn(width, args.rank).bfloat16())
        lora = LoRA("random", 1.0, file, None, {name: Adapter(*halves, 1.0) for name in names})
        for _ in range(4):
            for what, merged in (("merged", lora), ("restored", None)):
                wall, cpu = time.perf_counter(), time.process_time()
                remake(block, named(block), set(names), merged)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                print(
                    f"{what:8} {wall:.3f} s, of the CPU {cpu:.3f}; {BLOCKS} blocks {BLOCKS * wall:.1f} s, "
                    f"{BLOCKS * cpu:.1f} ({device}, {args.dtype}, {torch.get_num_threads()} threads)"
                )


if __name__ == "__main__":
    main()
