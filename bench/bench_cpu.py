"""The stages of a song on a CPU: acefast beside diffusers, and beside what their matrix products alone would take.

    python bench/bench_cpu.py                                # 2B turbo at full size: 6 GB of disk, 15 of memory
    python bench/bench_cpu.py --size tiny --lengths 5 --step-lengths 5 --rounds 1
    python bench/bench_cpu.py --isa bf16                     # neither acefast nor oneDNN uses AMX
    python bench/bench_cpu.py --memory                       # peak memory of whole songs as well

Each stage runs ``--rounds`` times, acefast, diffusers and the floor in turn, in one process on the same random weights
in bf16; the table gives medians. A step of diffusers runs again with its residual stream contiguous, which its patch
convolution leaves transposed. Floor: the linear layers and convolutions that diffusers calls in that stage, found by
hooks, as plain products ``F.linear`` of bf16 whose weights are not in the cache, and a step's attention at their rate.
What a step of diffusers does that a song needs once, keys and values of the conditions, counts for "conditions", and
the timbre of silence nowhere. A floor is what the library reaches, not what the CPU could: a share of it may be above
100 %. Figures are *measured*.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_generate import ENGINES, STEPS, Stages, acefast_stages, diffusers_pipe, diffusers_stages, machine, write
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

STEP = "DiT, one step"
CONTIGUOUS = "contiguous"  # diffusers with its residual stream so
COLUMNS = (*ENGINES, CONTIGUOUS, "floor")
ROWS, COLD = 4096, 64 << 20  # most rows of a product of the floor; bytes of weights that pass between two uses
ONCE = ("cross_attn.to_k", "cross_attn.to_v", "condition_embedder")  # a song, in the transformer
NEVER = ("timbre_encoder",)
ONEDNN = {"portable": "SSE41", "avx2": "AVX2", "avx512": "AVX512_CORE", "bf16": "AVX512_CORE_BF16", "amx": "ALL"}
Products = collections.Counter  # (rows, K, N): how many
Times = dict[str, dict[str, list[float]]]


def products_of(network: nn.Module, stage: Callable[[], Any], wanted: Callable[[str], bool]) -> Products:
    """The products [rows, K] x [N, K] that the layers of these names make in a stage; a convolution's taps lie in K."""
    found: Products = collections.Counter()

    def linear(layer, inputs, output):
        found[output.numel() // output.shape[-1], layer.in_features, layer.out_features] += 1

    def convolution(layer, inputs, output):
        B, _, L = output.shape
        found[B * L, layer.in_channels // layer.groups * layer.kernel_size[0], layer.out_channels] += 1

    def transposed(layer, inputs, output):
        B, C, L = inputs[0].shape
        found[B * L, C, layer.out_channels * layer.kernel_size[0]] += 1

    hooks = {nn.Linear: linear, nn.Conv1d: convolution, nn.ConvTranspose1d: transposed}
    layers = [m for name, m in network.named_modules() if type(m) in hooks and wanted(name)]
    handles = [m.register_forward_hook(hooks[type(m)]) for m in layers]
    stage()
    for handle in handles:
        handle.remove()
    return found


def attention_flops(config: Any, tokens: int, conditions: int) -> int:
    """Of a step, with the window where a layer has one."""
    wide, near = tokens, min(tokens, 2 * config.sliding_window + 1)
    kinds = config.layer_types or ["sliding_attention", "full_attention"] * (config.num_hidden_layers // 2)
    keys = sum(near if kind == "sliding_attention" else wide for kind in kinds) + conditions * len(kinds)
    return 4 * tokens * keys * config.num_attention_heads * config.head_dim


class Floor:
    """Runs a stage's products, each shape once, and counts it as often as it occurs."""

    def __init__(self, products: Products, attention: int = 0) -> None:
        self.products, self.attention = products, attention

    def seconds(self) -> float:
        total = sum(count * self._one(*shape) for shape, count in self.products.items())
        flops = sum(2 * count * rows * K * N for (rows, K, N), count in self.products.items())
        return total * (1 + self.attention / flops)

    @staticmethod
    def _one(rows: int, K: int, N: int) -> float:
        some, copies = min(rows, ROWS), max(1, min(64, COLD // (2 * K * N)))
        x, weights = torch.randn(some, K).bfloat16(), torch.randn(copies, N, K).bfloat16()
        F.linear(x, weights[0])
        times = []
        for i in range(3):
            begun = time.perf_counter()
            F.linear(x, weights[(i + 1) % copies])
            times.append(time.perf_counter() - begun)
        return statistics.median(times) * rows / some


def measure(args: argparse.Namespace, folder: Path, out: Path) -> Times:
    """Seconds of each stage, by engine and round."""
    import acefast

    options = {"quantization": args.quantization} if args.quantization else {}
    ours, theirs = acefast.load(folder, dtype=torch.bfloat16, **options), diffusers_pipe(folder, torch.bfloat16)
    wanted = [(name, (args.lengths or args.step_lengths)[-1]) for name in ("text", "conditions")]
    wanted += [(STEP, seconds) for seconds in args.step_lengths]
    wanted += [(name, seconds) for seconds in args.lengths for name in ("decode", "save")]
    times: Times = {}
    with torch.inference_mode():
        for seconds in dict.fromkeys(seconds for _, seconds in wanted):
            both = (acefast_stages(ours, seconds, out), diffusers_stages(theirs, seconds, out))
            for name in (name for name, of in wanted if of == seconds):
                floor = floor_of(theirs, name, both[1])
                label = name if name in ("text", "conditions") else f"{name}, {seconds:g} s"
                run = {engine: stages[name] for engine, stages in zip(ENGINES, both)}
                if name == STEP:
                    run[CONTIGUOUS] = contiguous(theirs.transformer)(run["diffusers"])
                times[label] = rounds = {
                    column: [] for column in COLUMNS if column in run or (column == "floor" and floor)
                }
                for i in range(args.rounds):
                    for engine in list(run)[:: 1 if i % 2 == 0 else -1]:
                        begun = time.perf_counter()
                        run[engine]()
                        rounds[engine].append(time.perf_counter() - begun)
                    if floor:
                        rounds["floor"].append(floor.seconds())
                print(_line(label, rounds), flush=True)
    return times


@contextlib.contextmanager
def contiguous(transformer: nn.Module) -> Iterator[None]:
    """Within the block the residual stream of diffusers' transformer lies row by row."""

    def first(layer, args, kwargs):
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].contiguous()}

    handle = transformer.layers[0].register_forward_pre_hook(first, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def floor_of(pipe: Any, name: str, stages: Stages) -> Floor | None:
    """The floor of a stage of diffusers' pipe; saving has none."""
    step = stages[STEP]

    def once(name):
        return name.endswith(ONCE)

    if name == "text":
        return Floor(products_of(pipe.text_encoder, stages[name], bool))
    if name == "conditions":
        encoded = products_of(pipe.condition_encoder, stages[name], lambda name: not name.startswith(NEVER))
        return Floor(encoded + products_of(pipe.transformer, step, once))
    if name == "decode":
        with FakeTensorMode(allow_non_fake_inputs=True):  # shapes alone: to compute them takes minutes
            return Floor(products_of(pipe.vae.decoder, stages[name], bool))
    if name == "save":
        return None
    products = products_of(pipe.transformer, step, lambda name: not once(name))
    (conditions,) = {rows for rows, _, _ in products_of(pipe.transformer, step, once)}
    tokens = max(products, key=lambda shape: products[shape] * shape[0])[0]
    return Floor(products, attention_flops(pipe.transformer.config, tokens, conditions))


def song(times: Times, seconds: float) -> dict[str, float]:
    """Seconds of a whole song by the medians of its stages, where all of them were measured."""
    names = {"text": 1, "conditions": 1, f"{STEP}, {seconds:g} s": STEPS, f"decode, {seconds:g} s": 1}
    names[f"save, {seconds:g} s"] = 1
    if not names.keys() <= times.keys():
        return {}
    have = {name: {c: statistics.median(v) for c, v in times[name].items()} for name in names}
    for row in have.values():
        row.setdefault(CONTIGUOUS, row["diffusers"])
    return {c: sum(count * have[name].get(c, 0.0) for name, count in names.items()) for c in COLUMNS}


def _line(name: str, rounds: dict[str, list[float]]) -> str:
    middle = {column: statistics.median(values) for column, values in rounds.items()}
    ours = middle["acefast"]

    def spread(n):
        return f"{middle[n]:.3f} [{min(rounds[n]):.3f}..{max(rounds[n]):.3f}]"

    cells = [spread("acefast")]
    for n in ("diffusers", CONTIGUOUS):
        cells += [spread(n), f"{middle[n] / ours:.2f}"] if n in middle else ["", ""]
    cells += [f"{middle['floor']:.3f}", f"{middle['floor'] / ours:.0%}"] if "floor" in middle else ["", ""]
    return f"| {name} | {' | '.join(cells)} |"


def peaks(folder: Path, seconds: float) -> str:
    """A table's line: memory of a song, each engine in a process of its own, beyond what lay there before the model."""
    found = {}
    script = str(Path(__file__).with_name("bench_generate.py"))
    for engine in ENGINES:
        words = [sys.executable, script, "--memory-of", engine, "--weights", folder, "--seconds", seconds]
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        found[engine] = (told["peak_bytes"] - told["before_bytes"]) / 1e9
    ratio = found["diffusers"] / found["acefast"]
    return f"| {seconds:g} s | {found['acefast']:.2f} | {found['diffusers']:.2f} | {ratio:.2f} |"


def report(args: argparse.Namespace, times: Times, memory: list[str]) -> str:
    """The tables, under what they were measured on."""
    from acefast.cpu.extension import instructions

    cpu = ", ".join(f"{key} {value}" for key, value in instructions().items())
    weights = f"bf16, acefast's transformer {args.quantization}" if args.quantization else "bf16"
    lines = [
        f"{args.size} turbo, {weights}, random weights; measured on {machine()}; acefast._cpu: {cpu}; oneDNN up to "
        f"{os.environ.get('ONEDNN_MAX_CPU_ISA', 'what there is')}; {args.rounds} rounds",
        "",
        "| stage | acefast, s | diffusers, s | ratio | contiguous, s | ratio | floor, s | share of floor |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(name, rounds) for name, rounds in times.items()),
    ]
    for seconds in args.lengths:
        if whole := song(times, seconds):
            name = f"song of {seconds:g} s, {STEPS} steps, sum of medians"
            lines.append(_line(name, {column: [value] for column, value in whole.items()}))
    if memory:
        lines += ["", "| peak memory of a song | acefast, GB | diffusers, GB | ratio |", "|---|---|---|---|", *memory]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark; prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--lengths", type=float, nargs="*", default=[10.0, 30.0], help="seconds that are decoded")
    parser.add_argument("--step-lengths", type=float, nargs="+", default=[30.0, 120.0], help="seconds of a step's song")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--isa", choices=ONEDNN, help="most that acefast and oneDNN may use")
    parser.add_argument("--quantization", choices=("int8",), help="of acefast's transformer")
    parser.add_argument("--memory", action="store_true", help="also peak memory of songs of 30 and 240 s")
    parser.add_argument("--weights", type=Path, help="folder for the random checkpoint, kept; default: a temporary one")
    parser.add_argument("--write", type=Path, help="also write the tables here, such as bench/results/cpu.md")
    args = parser.parse_args()
    import acefast

    if args.quantization and "quantization" not in inspect.signature(acefast.load).parameters:
        parser.error("this version of acefast.load has no quantization=")
    if args.isa:  # read at the first product, not before
        os.environ |= {"ACEFAST_ISA": args.isa, "ONEDNN_MAX_CPU_ISA": ONEDNN[args.isa]}
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.weights or Path(temporary) / "checkpoint"
        if not (folder / "model_index.json").exists():
            write(folder, args.size, torch.bfloat16)
        times = measure(args, folder, Path(temporary))
        memory = [peaks(folder, seconds) for seconds in (30, 240)] if args.memory else []
    text = report(args, times, memory)
    print("\n" + text)
    if args.write:
        args.write.write_text("# A song on a CPU\n\n`python bench/bench_cpu.py`\n\n" + text)


if __name__ == "__main__":
    main()
