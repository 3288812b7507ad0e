"""Whole songs that are made by upstream's pipeline and ours: a tiny checkpoint, a source, requests in both's words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from acefast.testing import TINY_DCAE, TINY_V1, TINY_VOCODER, write_checkpoint
from tests.models.v1.fill import normal

# Deep enough for all that ERG weakens: lyric layers 4 and 5, blocks 15 to 19; upstream's width where it has no other.
CONFIG = dataclasses.replace(TINY_V1, num_layers=20, speaker_embedding_dim=512, lyric_layers=6, patch_hidden_size=2048)
PROMPT = "boom bap, dusty drums, 90 bpm"
LYRICS = "[verse]\nhello night, we're on the run\n\n[chorus]\nsing it to the moon"
TARGET = dict(target_prompt="drill, sliding bass", target_lyrics="[verse]\nhello day, we're on the roof")
SECONDS = 5.0  # 53 frames
SEED, SECOND_SEED = 3, 9
STEP_FRAMES, STEP_SAMPLES = 4, 1024


def write(folder: Path) -> Path:
    """The checkpoint's folder."""
    configs = dict(config=CONFIG, dcae_config=TINY_DCAE, vocoder_config=TINY_VOCODER)
    return write_checkpoint(folder / "checkpoint", variant="v1", **configs)


def write_source(folder: Path) -> Path:
    """Five seconds of noise that grows and falls."""
    sound = normal(41, 240_000, 2).numpy() * np.hanning(240_000)[:, None] * 0.2
    soundfile.write(folder / "source.wav", sound.astype(np.float32), 48_000, "FLOAT")
    return folder / "source.wav"


def text2music(theirs: dict[str, Any], **ours: Any):
    """A song of SECONDS: options of ACEStepPipeline's ``__call__``, then the same of ours."""
    return dict(infer_step=8, audio_duration=SECONDS, **theirs), dict(steps=8, duration=SECONDS) | ours


def sourced(task: str, theirs: dict[str, Any], **ours: Any):
    """The same from the source."""
    return (
        dict(infer_step=8, task=task, src_audio_path=True, **theirs),
        dict(steps=8, task=task, source=True, **ours),
    )


def from_audio(theirs: dict[str, Any], **ours: Any):
    """The same of audio2audio, which upstream switches on beside a task."""
    both = dict(audio2audio_enable=True, ref_audio_input=True)
    return dict(infer_step=8, **both, **theirs), dict(steps=8, task="audio2audio", source=True, **ours)


SECOND = dict(variation_seed=SECOND_SEED)
CASES = {
    "song": text2music({}),
    "plain guidance": text2music(
        dict(
            cfg_type="cfg", omega_scale=-20.0, use_erg_lyric=False, guidance_interval=0.8, guidance_interval_decay=0.7
        ),
        **dict(guidance="cfg", omega=-20.0, erg_lyric=False, guidance_interval=0.8, guidance_decay=0.7),
    ),
    "double guidance": text2music(
        dict(guidance_scale_text=5.0, guidance_scale_lyric=1.5, use_erg_tag=False),
        **dict(guidance_text=5.0, guidance_lyric=1.5, erg_tag=False),
    ),
    "steps, pingpong": text2music(
        dict(oss_steps="1,3,6,8", scheduler_type="pingpong", use_erg_diffusion=False, cfg_type="cfg_star"),
        **dict(oss_steps=(1, 3, 6, 8), steps=None, solver="pingpong", erg_diffusion=False, guidance="cfg_star"),
    ),
    "heun": text2music(dict(scheduler_type="heun", guidance_scale=0.0), solver="heun", guidance_scale=0.0),
    "retake": text2music(dict(task="retake", retake_variance=0.2), task="retake", variation=0.2, **SECOND),
    "repaint": sourced("repaint", dict(repaint_start=1.0, repaint_end=3.0), start=1.0, end=3.0, **SECOND),
    "extend": sourced("extend", dict(repaint_start=0, repaint_end=7.0, retake_variance=1.0), end=7.0, **SECOND),
    "edit": sourced(
        "edit",
        dict(edit_n_min=0.2, edit_n_max=0.7, edit_n_avg=2, **{f"edit_{name}": text for name, text in TARGET.items()}),
        **dict(edit_from=0.2, edit_until=0.7, edit_average=2, **TARGET, **SECOND),
    ),
    "audio2audio, pingpong": from_audio(dict(scheduler_type="pingpong"), solver="pingpong"),
}


def theirs(options: dict[str, Any], source: Path) -> dict[str, Any]:
    """All arguments of upstream's ``__call__``."""
    both = dict(prompt=PROMPT, lyrics=LYRICS, manual_seeds=[SEED], retake_seeds=[SECOND_SEED])
    return both | {
        k: str(source) if v is True and "audio" in k and "enable" not in k else v for k, v in options.items()
    }


def ours(options: dict[str, Any], source: Path) -> dict[str, Any]:
    """All arguments of our ``generate``."""
    both = dict(prompt=PROMPT, lyrics=LYRICS, seed=SEED, noise_source="torch", normalize=None)
    return both | {k: source if k == "source" else v for k, v in options.items()}
