"""ACE-Step v1 stage by stage on a CPU or GPU, beside upstream's own modules where a checkout of them is given.

    python bench/bench_v1.py                                    # 3.5B, 10 s, bf16: 8 GB of disk, 9 GB of memory
    python bench/bench_v1.py --upstream PATH --seconds 30       # ace-step/ACE-Step; 16 GB of memory
    python bench/bench_v1.py --size tiny --seconds 6 --rounds 1

Each stage runs ``--rounds`` times, the engines in turn; the table gives medians, [fastest..slowest] and the ratio of
the medians, then one whole song of ``--steps`` steps in a process of its own. Random weights: shapes and times mean
something, the sound does not. Figures are *measured*, on the machine that the output names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from bench_generate import machine, peak_rss
from torch import nn

from acefast.bench.engines import LYRICS, PROMPT

Stages = dict[str, Callable[[], Any]]
T = 0.5  # noise level of the passes


def acefast_stages(folder: Path, seconds: float, dtype: torch.dtype) -> Stages:
    """acefast's stages as functions without arguments, each on inputs that lie ready."""
    import acefast
    from acefast.request import Request

    model = acefast.load(folder, dtype=dtype).model
    request = Request(PROMPT, LYRICS, duration=seconds, language="en", seed=0).for_checkpoint(model.traits)
    task, times = model.task([request], None), model.timesteps(request)

    def conditions():
        model.encodings.clear()
        return model.conditions([request], task, None, times)[0]

    given = conditions()
    latents = model.noise([request], task)
    return {
        "text and conditions": conditions,
        "DiT, one pass": lambda: model.velocity(latents, T, given),
        "DiT, guided step": lambda: model.velocity(latents, T, given, unconditional=True),
        "decode": lambda: model.decode(latents),
    }


def upstream_stages(checkout: Path, seconds: float, dtype: torch.dtype, tokens: int) -> Stages:
    """Upstream's modules at full size with weights of their own, called as its pipeline calls them.

    Args:
        tokens: of the condition sequence, as ours has.
    """
    from acefast.models.v1.tasks import frames_of

    dit, dcae, vocoder = _upstream(checkout, dtype)
    frames = frames_of(seconds)
    latents = torch.randn(1, 8, 16, frames).to(dtype)
    words = tokens - 1 - 32
    text, lyrics = torch.randn(1, 32, 768).to(dtype), torch.randint(0, 6681, (1, words))
    masks = torch.ones(1, 32, dtype=torch.long), torch.ones(1, words, dtype=torch.long)
    speaker, t = torch.zeros(1, 512, dtype=dtype), torch.tensor([1000 * T])

    def conditions():
        return dit.encode(text, masks[0], speaker, lyrics, masks[1])

    states, mask = conditions()

    def one_pass():
        return dit.decode(latents, torch.ones(1, frames, dtype=dtype), states, mask, t, output_length=frames).sample

    def decode():
        mel = dcae.decode(latents).sample
        return [vocoder.decode(mel[:, channel].to(dtype)) for channel in range(2)]

    return {
        "text and conditions": lambda: [conditions() for _ in range(2)],  # and of the null branch; without UMT5
        "DiT, one pass": one_pass,
        "DiT, guided step": lambda: [one_pass() for _ in range(2)],
        "decode": decode,
    }


def _upstream(checkout: Path, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Transformer, mel autoencoder and vocoder."""
    from diffusers import AutoencoderDC

    from acefast.config_files import umt5_config_for, v1_configs
    from acefast.models.v1.config import Config, DCAEConfig, VocoderConfig

    sys.path.insert(0, str(checkout))
    for name in ("librosa", "librosa.filters", "torchaudio", "torchaudio.transforms", "torchaudio.functional"):
        sys.modules.setdefault(name, MagicMock())
    mel_scale = type("MelScale", (nn.Module,), {"__init__": lambda self, *_, **__: nn.Module.__init__(self)})
    sys.modules["torchaudio.transforms"].MelScale = mel_scale
    from acestep.models.ace_step_transformer import ACEStepTransformer2DModel
    from acestep.music_dcae.music_vocoder import ADaMoSHiFiGANV1

    config = Config()
    configs = v1_configs(config, DCAEConfig(), VocoderConfig(), umt5_config_for(config))
    with _quickly():
        dit = ACEStepTransformer2DModel.from_config(configs["dit"])
    made = dit, AutoencoderDC.from_config(configs["dcae"]), ADaMoSHiFiGANV1()
    return tuple(_filled(module, dtype) for module in made)


@contextmanager
def _quickly() -> Iterator[None]:
    """Layers are made without numbers, in 16 bits: 3.3 billion of them."""
    kinds = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.LayerNorm)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    patches = [patch.object(kind, "reset_parameters", lambda self: None) for kind in kinds]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        for each in patches:
            each.stop()


def _filled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights that keep activations near 1."""
    module = module.to(dtype).eval().requires_grad_(False)
    block = torch.randn(1 << 20).to(dtype)
    for name, parameter in module.named_parameters():
        n, flat = parameter.numel(), parameter.data.view(-1)
        scale = 0.05 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        for start in range(0, n, len(block)):
            piece = flat[start : start + len(block)]
            torch.mul(block[: len(piece)], scale, out=piece)
        if parameter.ndim < 2 and name.endswith(("weight", "weight_g")):
            parameter.data += 1
    return module


def one_song(folder: Path, seconds: float, steps: int, dtype: torch.dtype) -> None:
    """Make one song and print its stages, the peak of this process in bytes and what lay in memory before."""
    import transformers.models.umt5.modeling_umt5  # noqa: F401

    import acefast

    before = peak_rss()
    pipe = acefast.load(folder, dtype=dtype)
    loaded = peak_rss()
    song = pipe.generate(PROMPT, LYRICS, duration=seconds, steps=steps, seed=0, language="en")
    facts = {"timings": song.timings, "seconds": song.audio.shape[1] / 48_000}
    print(json.dumps(facts | {"before_bytes": before, "loaded_bytes": loaded, "peak_bytes": peak_rss()}))


def main() -> None:
    """Run the benchmark; prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--weights", type=Path, help="folder for the random checkpoint, kept; default: a temporary one")
    parser.add_argument("--upstream", type=Path, help="a checkout of ace-step/ACE-Step to compare with, at full size")
    parser.add_argument("--no-song", action="store_true", help="stages only")
    parser.add_argument("--song-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    dtype = getattr(torch, args.dtype)
    if args.song_only:
        one_song(args.weights, args.seconds, args.steps, dtype)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.weights or Path(temporary) / "checkpoint"
        if not (folder / "ace_step_transformer").exists():
            from acefast.testing import full_size, write_checkpoint

            sizes = full_size("v1") if args.size == "full" else {}
            write_checkpoint(folder, variant="v1", dtype=dtype, **sizes)
        print(f"ACE-Step v1, {args.size}, {args.seconds:g} s, {args.dtype}, random weights; measured on {machine()}\n")
        measure(folder, args.upstream, args.seconds, args.rounds, dtype)
        if not args.no_song:
            same = ["--weights", folder, "--seconds", args.seconds, "--steps", args.steps, "--dtype", args.dtype]
            command = [sys.executable, __file__, "--song-only", *map(str, same)]
            facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            stages = ", ".join(f"{name} {took:.1f}" for name, took in facts["timings"].items())
            memory = "{:.2f} GB, of which the interpreter {:.2f}".format(
                *(facts[name] / 1e9 for name in ("peak_bytes", "before_bytes"))
            )
            print(f"\nA song of {facts['seconds']:.2f} s, {args.steps} steps: {stages} s; peak memory {memory}")


@torch.inference_mode()
def measure(folder: Path, checkout: Path | None, seconds: float, rounds: int, dtype: torch.dtype) -> None:
    """Seconds of every stage and round, both engines in turn, as a table."""
    engines = {"acefast": acefast_stages(folder, seconds, dtype)}
    if checkout is not None:
        tokens = engines["acefast"]["text and conditions"]().encoder_hidden_states.shape[1]
        engines["upstream"] = upstream_stages(checkout, seconds, dtype, tokens)
    print(f"| stage | {', s | '.join(engines)}, s | ratio |\n|{'---|' * (len(engines) + 2)}")
    for stage in engines["acefast"]:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for i in range(rounds):
            for name in list(engines)[:: 1 if i % 2 == 0 else -1]:
                begun = time.perf_counter()
                engines[name][stage]()
                times[name].append(time.perf_counter() - begun)
        middle = {name: statistics.median(found) for name, found in times.items()}
        cells = [f"{middle[n]:.3f} [{min(found):.3f}..{max(found):.3f}]" for n, found in times.items()]
        ratio = f"{middle['upstream'] / middle['acefast']:.2f}" if "upstream" in middle else ""
        print(f"| {stage} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
