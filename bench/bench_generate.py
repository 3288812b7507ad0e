"""One song, stage by stage, beside diffusers: the same random weights, the same inputs, interleaved in one process.

    python bench/bench_generate.py                      # full-size 2B turbo, 30 s, bf16: 6 GB of disk, 15 GB of memory
    python bench/bench_generate.py --size tiny --seconds 5 --rounds 1

Each stage runs ``--rounds`` times, the engines in turn; the table gives medians, [fastest..slowest] and the ratio of
the medians. Peak memory is that of one whole song, each engine alone in a process of its own. Random weights: shapes
and times mean something, the sound does not. Figures are *measured*, on the machine that the output names. Whole songs,
one engine after the other, are what ``acefast bench`` measures.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acefast.bench.engines import LYRICS, PROMPT
from acefast.bench.environment import cpu_name

ENGINES = ("acefast", "diffusers")
STEPS, SHIFT = 8, 3.0
Stages = dict[str, Callable[[], Any]]


def acefast_stages(pipe: Any, seconds: float, out: Path) -> Stages:
    """acefast's stages as functions without arguments, each on inputs that lie ready; "save" follows "decode"."""
    import acefast
    from acefast.finish import finish, level_of
    from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS, lyric_prompt, text_prompt, tokenize
    from acefast.request import Request

    model = pipe.model
    request = Request(PROMPT, LYRICS, duration=seconds, bpm=90, seed=0, semantics="diffusers")
    request = request.for_checkpoint(model.traits)
    task = model.task([request], None)
    timbre = model._timbres([request], None)[0].states  # of silence: a constant of the checkpoint

    def text():
        ids = [tokenize(model.tokenizer, text_prompt(request, seconds), TEXT_TOKENS).ids]
        words = [tokenize(model.tokenizer, lyric_prompt(request), LYRIC_TOKENS).ids]
        states = model.text_encoder(input_ids=torch.tensor(ids), use_cache=False).last_hidden_state
        return states, model.text_encoder.get_input_embeddings()(torch.tensor(words))

    def conditions():
        lengths = [torch.tensor([states.shape[1]]) for states in encoded]
        states, valid = model.condition_encoder(encoded[0], lengths[0], encoded[1], lengths[1], timbre_vector=timbre)
        context = model.context(task.source, task.mask)
        return model.transformer.prepare(states, valid, context, [1 - i / STEPS for i in range(STEPS)])

    encoded = text()
    prepared = conditions()
    latents = torch.randn(1, task.frames, task.source.shape[-1], generator=torch.Generator().manual_seed(0))
    level = level_of(request, task)
    kept = {}

    def decode():
        kept["wave"] = model.decode(latents, None, level)

    def save():
        acefast.Song(finish(kept["wave"][0].numpy(), request, task), seed=0, request=request).save(out / "ours.wav")

    return {
        "text": text,
        "conditions": conditions,
        "DiT, one step": lambda: model.velocity(latents, 0.5, prepared),
        "decode": decode,
        "save": save,
    }


def diffusers_stages(pipe: Any, seconds: float, out: Path) -> Stages:
    """diffusers' stages, as its pipeline runs them."""
    import soundfile

    dtype = pipe.dtype
    device = torch.device("cpu")
    transformer, encoder = pipe.transformer, pipe.condition_encoder

    def text():
        return pipe.encode_prompt(PROMPT, LYRICS, device, audio_duration=seconds, bpm=90)

    def conditions():
        states, mask, lyrics, lyric_mask = encoded
        silence = encoder.silence_latent[:, :750].to(dtype)
        return encoder(
            text_hidden_states=states,
            text_attention_mask=mask,
            lyric_hidden_states=lyrics,
            lyric_attention_mask=lyric_mask,
            refer_audio_acoustic_hidden_states_packed=silence,
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
        )[0]

    encoded = text()
    states = conditions()
    frames = int(-(-seconds * 25 // 1))
    channels = transformer.config.audio_acoustic_hidden_dim
    latents = torch.randn(1, frames, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    context = torch.cat([encoder.silence_latent[:, :frames].to(dtype), torch.ones_like(latents)], -1)
    t = torch.full((1,), 0.5, dtype=dtype)
    kept = {}

    def decode():
        kept["wave"] = pipe.vae.decode(latents.transpose(1, 2)).sample

    def save():
        audio = kept["wave"].float()
        audio = audio / audio.abs().amax().clamp(min=1.0)
        audio = audio * (10 ** (-1 / 20) / audio.abs().amax())
        soundfile.write(out / "theirs.wav", audio[0].T.numpy(), 48_000)

    return {
        "text": text,
        "conditions": conditions,
        "DiT, one step": lambda: transformer(latents, t, t, states, context, return_dict=False),
        "decode": decode,
        "save": save,
    }


def diffusers_pipe(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import AceStepPipeline

    pipe = AceStepPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peak_memory(engine: str, folder: Path, seconds: float, dtype: torch.dtype) -> None:
    """Make one song and print the peak of this process in bytes, and what lay in memory before the model did."""
    if engine == "acefast":
        import transformers.models.qwen3.modeling_qwen3

        import acefast

        before = peak_rss()
        song = acefast.load(folder, dtype=dtype).generate(PROMPT, LYRICS, duration=seconds, steps=2, seed=0, bpm=90)
        assert song.audio.shape[1] >= int(seconds * 48_000)
    else:
        import transformers.models.qwen3.modeling_qwen3  # noqa: F401
        from diffusers import AceStepPipeline  # noqa: F401

        before = peak_rss()
        with torch.inference_mode():
            pipe = diffusers_pipe(folder, dtype)
            pipe(prompt=PROMPT, lyrics=LYRICS, audio_duration=seconds, num_inference_steps=2, bpm=90)
    print(json.dumps({"peak_bytes": peak_rss(), "before_bytes": before}))


def peak_rss() -> int:
    """Peak resident bytes of this process; Linux's own figure, since ru_maxrss begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Run the benchmark; prints a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--weights", type=Path, help="folder for the random checkpoint, kept; default: a temporary one")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--memory-of", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    dtype = getattr(torch, args.dtype)
    if args.memory_of:
        peak_memory(args.memory_of, args.weights, args.seconds, dtype)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.weights or Path(temporary) / "checkpoint"
        if not (folder / "model_index.json").exists():
            write(folder, args.size, dtype)
        figures = measure(folder, args.seconds, args.rounds, dtype, Path(temporary))
        same = ["--weights", folder, "--seconds", args.seconds, "--dtype", args.dtype]
        for engine in ENGINES:
            command = [sys.executable, __file__, "--memory-of", engine, *map(str, same)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            figures["memory"][engine] = json.loads(run.stdout.splitlines()[-1])
    figures |= {"size": args.size, "seconds": args.seconds, "dtype": args.dtype, "steps": STEPS, "machine": machine()}
    print(as_table(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def write(folder: Path, size: str, dtype: torch.dtype) -> None:
    from acefast.testing import full_size, write_checkpoint

    sizes = full_size("turbo") if size == "full" else {}
    write_checkpoint(folder, layout="diffusers", variant="turbo", dtype=dtype, **sizes)


def measure(folder: Path, seconds: float, rounds: int, dtype: torch.dtype, out: Path) -> dict[str, Any]:
    """Seconds of every stage and round of both engines, in turn."""
    import acefast

    with torch.inference_mode():
        engines = {
            "acefast": acefast_stages(acefast.load(folder, dtype=dtype), seconds, out),
            "diffusers": diffusers_stages(diffusers_pipe(folder, dtype), seconds, out),
        }
        times: dict[str, dict[str, list[float]]] = {}
        for stage in engines["acefast"]:
            times[stage] = {name: [] for name in ENGINES}
            for i in range(rounds):
                for name in ENGINES if i % 2 == 0 else ENGINES[::-1]:
                    begun = time.perf_counter()
                    engines[name][stage]()
                    times[stage][name].append(time.perf_counter() - begun)
    return {"times": times, "memory": {}}


def as_table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{figures['size']} turbo, {figures['seconds']:g} s, {figures['dtype']}, random weights; measured on "
        f"{figures['machine']}",
        "",
        "| stage | acefast, s | diffusers, s | ratio |",
        "|---|---|---|---|",
    ]
    total = dict.fromkeys(ENGINES, 0.0)
    for stage, times in figures["times"].items():
        middle = {name: statistics.median(times[name]) for name in ENGINES}
        cells = [f"{middle[n]:.3f} [{min(times[n]):.3f}..{max(times[n]):.3f}]" for n in ENGINES]
        lines.append(f"| {stage} | {cells[0]} | {cells[1]} | {middle['diffusers'] / middle['acefast']:.2f} |")
        for name in ENGINES:
            total[name] += middle[name] * (STEPS if stage.startswith("DiT") else 1)
    lines.append(
        f"| song of {STEPS} steps, sum of medians | {total['acefast']:.1f} | {total['diffusers']:.1f} | "
        f"{total['diffusers'] / total['acefast']:.2f} |"
    )
    peaks = {name: figures["memory"][name]["peak_bytes"] / 1e9 for name in ENGINES}
    ratio = peaks["diffusers"] / peaks["acefast"]
    lines.append(f"| peak memory, GB | {peaks['acefast']:.2f} | {peaks['diffusers']:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on."""
    import diffusers

    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {versions}"


if __name__ == "__main__":
    main()
