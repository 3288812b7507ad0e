"""What 8-bit weights change: errors layer by layer, whole songs by their metrics, and the time of a full-size layer.

    python bench/bench_int8.py [--seconds 12] [--seeds 3]

Errors are of the packaged demo model, which is trained, beside the same model in bf16, both against fp32. The time is
of one transformer layer of the 2B models with random weights, in turn with bf16's, the fastest of several, by the
thread's own clock: run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

import acefast
from acefast import metrics
from acefast.models.v15.config import Config
from acefast.models.v15.dit_layer import Evaluation, Layer, LayerCondition
from acefast.ops.linear_int8 import quantize_weight
from acefast.ops.qk_norm_rope import rope_table

KINDS = {"fp32": dict(dtype="float32"), "bf16": {}, "int8": dict(quantization="int8")}  # of acefast.load
PROMPTS = ("boom bap, dusty drums, warm bass", "trap beat, fast hi-hat rolls, 808", "hip house, four on the floor")
RATE = 48_000
TOKENS, CONDITIONS = 375, 256  # of 30 s; of a song's words


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    pipes = {kind: acefast.load("demo", device="cpu", **options) for kind, options in KINDS.items()}
    _print_layers({kind: layers(pipe, args.seconds) for kind, pipe in pipes.items()})
    songs = {kind: made(pipe, args.seconds, args.seeds) for kind, pipe in pipes.items()}
    _print_songs(songs)
    _print_time(Config())


def relative(got: Tensor, want: Tensor) -> float:
    """Relative L2 of ``got``."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def layers(pipe: acefast.Pipeline, seconds: float) -> list[tuple[str, Tensor]]:
    """What each layer makes of a song's first step, and the velocity."""
    found, model = [], pipe.model.transformer
    hooks = [
        layer.register_forward_hook(lambda _, given, out, i=i: found.append((f"layer {i}", out[0].float())))
        for i, layer in enumerate(model.layers)
    ]
    hooks.append(model.register_forward_hook(lambda _, given, out: found.append(("velocity", out.float()))))
    pipe.generate(PROMPTS[0], duration=seconds, seed=1, steps=1, instrumental=True)
    for hook in hooks:
        hook.remove()
    return found


def _print_layers(found: dict[str, list[tuple[str, Tensor]]]) -> None:
    print("| relative L2 against fp32, first step | bf16 | int8 |\n|---|---|---|")
    for (name, want), *others in zip(*found.values()):
        print(f"| {name} | " + " | ".join(f"{relative(got, want):.1e}" for _, got in others) + " |")


def made(pipe: acefast.Pipeline, seconds: float, seeds: int) -> list[np.ndarray]:
    """Songs of every prompt and seed."""
    options = dict(duration=seconds, instrumental=True)
    return [pipe.generate(p, seed=seed, **options).audio for p in PROMPTS for seed in range(seeds)]


def measures(song: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """Metrics of a song, and what of them needs the one in fp32."""
    stft = metrics.multi_resolution_stft_distance(want, song)
    return {
        "SNR against fp32, dB": metrics.snr(want, song),
        "spectral convergence": stft.spectral_convergence,
        "log magnitude, neper": stft.log_magnitude,
        "log spectral distance, dB": metrics.log_spectral_distance(want, song, RATE),
        "tempo, bpm": metrics.tempo(song, RATE).bpm,
        "beat strength": metrics.beat_strength(song, RATE),
        "onsets of hats a second": metrics.onset_rate(song, RATE),
        "loudness, LUFS": metrics.loudness(song, RATE),
        "spectral centroid, Hz": metrics.spectral_centroid(song, RATE),
    }


def _print_songs(songs: dict[str, list[np.ndarray]]) -> None:
    tables: dict[str, list[dict[str, float]]] = {
        kind: [measures(song, want) for song, want in zip(made_of_it, songs["fp32"])]
        for kind, made_of_it in songs.items()
    }
    print(f"\n| median of {len(songs['fp32'])} songs | " + " | ".join(tables) + " |\n|---|---|---|---|")
    for name in tables["fp32"][0]:
        print(f"| {name} | " + " | ".join(f"{np.median([t[name] for t in own]):.4g}" for own in tables.values()) + " |")


def _layers(c: Config) -> dict[str, Layer]:
    """A layer with random weights, and the same of 8 bits."""
    plain, small = Layer(c, None).to(torch.bfloat16), Layer(c, None, int8=True)
    for name, parameter in plain.named_parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
        path, _, leaf = name.rpartition(".")
        owner = small.get_submodule(path)
        if getattr(owner, f"{leaf}_scale", None) is None:
            getattr(owner, leaf).data = parameter.data
        else:
            getattr(owner, leaf).data, getattr(owner, f"{leaf}_scale").data = quantize_weight(parameter.data)
    return {"bf16": plain, "int8": small}


def _print_time(c: Config) -> None:
    x, y = torch.randn(2, 1, TOKENS, c.hidden_size).bfloat16()
    k, v = torch.randn(2, 1, c.num_key_value_heads, CONDITIONS, c.head_dim).bfloat16()
    rope = rope_table(TOKENS, c.head_dim, c.rope_theta, torch.device("cpu"))
    given: tuple[Any, ...] = (torch.zeros(6, c.hidden_size), LayerCondition(k, v, None))
    evaluation = Evaluation(1, False, rope, None, None)
    both = _layers(c)
    best = dict.fromkeys(both, float("inf"))
    with torch.inference_mode():
        for _ in range(9):
            for kind, layer in both.items():
                start = time.thread_time()
                layer(x.clone(), y.clone(), None, *given, evaluation)
                best[kind] = min(best[kind], time.thread_time() - start)
    times = {kind: f"{1000 * seconds:.1f} ms" for kind, seconds in best.items()}
    print(f"\na layer of 2B, {TOKENS} tokens: {times}, ratio {best['bf16'] / best['int8']:.2f}")


if __name__ == "__main__":
    main()
