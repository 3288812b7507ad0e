"""Makes sampling.safetensors: trajectories of ACE-Step v1's own sampling loops on a toy velocity.

    python -m tests.golden.v1.make_sampling --checkout PATH

PATH is a checkout of ace-step/ACE-Step at d612523. Its pipeline's ``text2music_diffusion_process`` and
``flowedit_diffusion_process`` run on a stand-in for the pipeline, whose transformer is ``toy``; modules that they do
not need are stubbed. What an upstream bug raises is stored as text, in the file's metadata.
"""

from __future__ import annotations

import argparse
import functools
import importlib.machinery
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from torch import Tensor

from acefast.ops.philox import philox_normal

FILE = Path(__file__).with_name("sampling.safetensors")
FRAMES = 12  # of every song, 12 * 4096 / 44100 = 1.1146 s
SECONDS = 1.12
SECOND = 44_100 / 4096  # frames of one
TEXT = dict(cond=1.0, null=0.0, text=0.7)  # what the toy knows of a condition


def toy(x: Tensor, t: float, c: float) -> Tensor:
    """A smooth velocity [B, T, 128] that mixes frames and numbers of a frame; ``c`` is the condition."""
    frames = x.roll(1, 1) * torch.linspace(0.2, 0.5, x.shape[-1]).to(x.dtype)
    return 0.8 * x + 0.6 * torch.sin(1.7 * x + 2.0 * c + 3.0 * t) - 0.4 * c * frames + 0.3 * c * (1 - t)


def ours(x: Tensor) -> Tensor:
    """[B, 8, 16, T] as [B, T, 128]."""
    return x.permute(0, 3, 2, 1).flatten(2)


def theirs(x: Tensor) -> Tensor:
    """[B, T, 128] as [B, 8, 16, T]."""
    return x.unflatten(2, (16, 8)).permute(0, 3, 2, 1).contiguous()


def source(frames: int = FRAMES) -> Tensor:
    """[1, frames, 128]: a source's latents."""
    return philox_normal([77], (frames, 128))


R = 1 / SECOND * 1.0001  # seconds of a frame and a little, so that rounding down gives the frame


def case(steps: int, *seeds: int, other: tuple[int, ...] = (), source: int = 0, reference: bool = False,
         dtype: torch.dtype = torch.float32, **options):  # fmt: skip
    """A run: steps, seeds of the songs, those of retake; frames of a source, whether it is a reference; options."""
    return dict(steps=steps, seeds=seeds, other=other, source=source, reference=reference, dtype=dtype, options=options)


def painted(steps: int, *seeds: int, start: float, end: float, frames: int = FRAMES, **options):
    """A run on a source; start and end in its frames."""
    options |= dict(repaint_start=start * R, repaint_end=end * R)
    return case(steps, *seeds, other=tuple(seed + 6 for seed in seeds), source=frames, **options)


CASES = {
    "euler": case(8, 3),
    "euler, two songs": case(6, 3, 5),
    "euler, cfg falls": case(
        *(9, 4), cfg_type="cfg", omega_scale=-20.0, guidance_interval=0.8, guidance_interval_decay=0.7
    ),
    "apg everywhere": case(5, 4, guidance_interval=1.0, guidance_scale=7.0),
    "no guidance": case(5, 4, guidance_scale=0.0, omega_scale=0.0),
    "cfg_star everywhere": case(6, 4, guidance_interval=1.0, cfg_type="cfg_star", guidance_scale=4.0),
    "cfg_star": case(12, 4, 6, cfg_type="cfg_star", guidance_scale=4.0),
    "double": case(8, 4, guidance_scale_text=5.0, guidance_scale_lyric=1.5),
    "cfg falls in one step": case(2, 4, guidance_interval_decay=0.7),
    "euler, bf16": case(6, 3, 5, dtype=torch.bfloat16),
    "oss, bf16": case(60, 3, oss_steps=[1, 3, 6, 8], guidance_scale=1.0, dtype=torch.bfloat16),
    "heun": case(5, 3, scheduler_type="heun", guidance_scale=1.0),
    "heun, guided": case(6, 3, scheduler_type="heun", guidance_interval=1.0),
    "heun, one step": case(1, 3, scheduler_type="heun", guidance_scale=1.0),
    "heun, oss": case(8, 3, scheduler_type="heun", oss_steps=[1, 3]),
    "pingpong": case(6, 3, scheduler_type="pingpong"),
    "pingpong, two songs": case(5, 3, 5, scheduler_type="pingpong"),
    "oss": case(60, 3, oss_steps=[1, 3, 6, 8]),
    "oss, pingpong": case(60, 3, oss_steps=[1, 3, 6, 8], scheduler_type="pingpong"),
    "oss, repaint": painted(60, 3, start=0, end=5, oss_steps=[1, 2, 8]),
    "retake": case(6, 3, other=(9,), retake_variance=0.4, repaint_start=0, repaint_end=SECONDS),
    **{
        f"audio2audio {s}": case(10, 3, reference=True, ref_audio_strength=s, audio2audio_enable=True)
        for s in (0.0, 0.5, 0.8)
    },
    "repaint": painted(8, 3, start=3, end=9, retake_variance=0.6),
    "repaint, two songs": painted(6, 3, 5, start=0, end=5),
    "repaint of the whole": painted(6, 3, start=0, end=12, retake_variance=0.4),
    "repaint, no variance": painted(6, 3, start=0, end=5, retake_variance=0.0),
    "repaint, heun": painted(6, 3, start=0, end=5, scheduler_type="heun", guidance_scale=1.0),
    "extend in front": painted(6, 3, start=-5, end=12, retake_variance=1.0),
    "extend behind": painted(6, 3, start=0, end=16, retake_variance=1.0),
    "extend on both sides": painted(4, 3, start=-5, end=20, retake_variance=1.0),
    "extend by more than the source": painted(4, 3, start=0, end=30, retake_variance=1.0),
    "extend a long one in front": painted(
        *(1, 3), start=-20, end=2580, frames=2580, retake_variance=1.0, guidance_scale=1.0
    ),
    "extend a long one behind": painted(
        *(1, 3), start=0, end=2600, frames=2580, retake_variance=1.0, guidance_scale=1.0
    ),
    "edit": case(6, other=(9,), n_avg=2),
    "edit the words": case(10, other=(9,), n_min=0.6),
    "edit, remix": case(10, other=(9,), n_min=0.2, n_max=0.4, guidance_scale=7.0),
    "edit from noise": case(6, other=(9,), n_min=0.5, n_max=0.5),
    "edit, no guidance": case(5, other=(9,), n_max=0.5, guidance_scale=1.0),
    "edit, pingpong": case(5, other=(9,), scheduler_type="pingpong"),
}
SOURCE, TARGET = 0.6, 1.0  # conditions of an edit


class Stub:
    """What the loops need of a pipeline."""

    device, cpu_offload = torch.device("cpu"), False

    def __init__(self, pipeline: type, dtype: torch.dtype) -> None:
        self.ace_step_transformer, self.pipeline, self.dtype = self, pipeline, dtype
        self.calls: list[tuple[float, float]] = []

    def encode(self, text: Tensor, text_mask: Tensor, speaker: Tensor, lyrics: Tensor, lyric_mask: Tensor):
        known = 0.7 * text.mean((1, 2)) + 0.3 * lyrics.float().mean(1)
        return known, None

    def decode(self, *, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_):
        t, c = timestep[0].item() / 1000, round(encoder_hidden_states[0].item(), 4)
        self.calls.append((t, c))
        return SimpleNamespace(sample=theirs(toy(ours(hidden_states), t, c)))

    def __getattr__(self, name: str):
        return functools.partial(getattr(self.pipeline, name), self)  # calc_v and the like

    def __call__(self, *, hidden_states: Tensor, encoder_text_hidden_states: Tensor, timestep: Tensor, **_):
        t = timestep[0].item() / 1000
        rows = zip(hidden_states.split(1), encoder_text_hidden_states)
        made = [theirs(toy(ours(x), t, round(text.mean().item(), 4))) for x, text in rows]
        return SimpleNamespace(sample=torch.cat(made))


def run(pipeline: type, case: dict) -> tuple[Tensor, list]:
    """A case's final latents [B, T, 128], as upstream makes them, and the calls of its network."""
    torch.set_grad_enabled(False)
    stub = Stub(pipeline, case["dtype"])
    generators, others = ([torch.Generator().manual_seed(n) for n in case[name]] for name in ("seeds", "other"))
    held = theirs(source(case["source"] or FRAMES))
    if not generators:
        words = {
            "speaker_embds": torch.zeros(1, 4),
            "lyric_token_ids": torch.ones(1, 3),
            "lyric_mask": torch.ones(1, 3),
        }
        words |= {"text_attention_mask": torch.ones(1, 2)}
        words["target_speaker_embeds"] = words["speaker_embds"]
        words |= {f"target_{name}": value for name, value in words.items() if "speaker" not in name}
        text = {"encoder_text_hidden_states": torch.full((1, 2, 4), SOURCE)}
        text["target_encoder_text_hidden_states"] = torch.full((1, 2, 4), TARGET)
        made = pipeline.flowedit_diffusion_process(
            stub,
            **text,
            **words,
            src_latents=held,
            random_generators=others,
            infer_steps=case["steps"],
            **case["options"],
        )
        return ours(made), stub.calls
    songs = len(generators)
    made = pipeline.text2music_diffusion_process(
        stub,
        SECONDS,
        torch.ones(songs, 2, 4),
        torch.ones(songs, 2),
        torch.zeros(songs, 4),
        torch.ones(songs, 3, dtype=torch.long),
        torch.ones(songs, 3),
        random_generators=generators,
        infer_steps=case["steps"],
        retake_random_generators=others,
        add_retake_noise=bool(others),
        src_latents=held.expand(songs, -1, -1, -1) if case["source"] else None,
        ref_latents=held if case["reference"] else None,
        **{"guidance_interval_decay": 0.0, **case["options"]},
    )
    return ours(made), stub.calls


def upstream(checkout: str) -> type:
    """The pipeline's class, with stubs for what sampling does not need."""
    sys.path.insert(0, checkout)
    for name in ("torchaudio", "loguru", "acestep.language_segmentation", "acestep.music_dcae.music_dcae_pipeline",
                 "acestep.models.ace_step_transformer", "acestep.models.lyrics_utils.lyric_tokenizer"):  # fmt: skip
        sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
    from acestep.pipeline_ace_step import ACEStepPipeline

    return ACEStepPipeline


def main() -> None:
    """Run every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True)
    pipeline = upstream(parser.parse_args().checkout)
    from safetensors.torch import save_file

    kept, raised, calls = {}, {}, {}
    for name, case in CASES.items():
        try:
            made, calls[name] = run(pipeline, case)
        except (AssertionError, TypeError, ValueError, ArithmeticError) as error:
            raised[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        # of a long one the last number of each frame, which tells where the frame is from
        kept[name] = (made[..., -1:] if "long" in name else made).contiguous()
    save_file(kept, FILE, {"raised": json.dumps(raised), "calls": json.dumps({"heun, guided": calls["heun, guided"]})})
    print(raised, {name: list(x.shape) for name, x in kept.items()})


if __name__ == "__main__":
    main()
