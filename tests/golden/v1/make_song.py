"""Makes song.safetensors: whole songs of ACE-Step v1's own pipeline on a tiny random checkpoint, in fp32.

    python -m tests.golden.v1.make_song --checkout PATH

PATH is a checkout of ace-step/ACE-Step at d612523. Its ``ACEStepPipeline`` loads the folder that
``tests/models/v1/song_cases.py`` writes, and its ``__call__`` makes each of that file's CASES, from prompt and lyrics
to 48 kHz. Modules that are not installed are stood in for; torchaudio's resampler is soxr, as ours. Upstream's lyric
encoder has its sizes hard-coded, its vocabulary's path too: both are the checkpoint's here. Stored are the lyrics' ids
and, of each song, every STEP_FRAMES-th frame of its latents and every STEP_SAMPLES-th sample.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from safetensors.torch import save_file

from acefast.models.v1.mel import filterbank
from tests.golden.v1.make_codec import stub
from tests.golden.v1.make_dit import pipeline_class
from tests.models.v1 import song_cases as songs
from tests.models.v1.fill import latents_of

FILE = Path(__file__).with_name("song.safetensors")


class Resample:
    """In torchaudio's place."""

    def __init__(self, old: int, new: int, **_):
        self.old, self.new = old, new

    def to(self, *_):
        return self

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        rows = [soxr.resample(row.numpy(), self.old, self.new, "VHQ") for row in audio.flatten(0, -2)]
        return torch.from_numpy(np.stack(rows)).unflatten(0, audio.shape[:-1])


def upstream(checkout: Path, folder: Path):
    """Upstream's pipeline of a checkpoint's folder; ``saved`` is what it last saved, ``made`` its last latents."""
    stub()
    audio = sys.modules["torchaudio"]
    audio.transforms.Resample = Resample
    audio.load = lambda path: (
        torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy()),
        48_000,
    )
    pipeline = pipeline_class(checkout)
    from acestep.models import ace_step_transformer as transformer

    module, config = sys.modules[pipeline.__module__], songs.CONFIG
    transformer.LyricEncoder = functools.partial(
        transformer.LyricEncoder,
        output_size=config.lyric_hidden_size,
        attention_heads=config.lyric_heads,
        linear_units=config.lyric_intermediate_size,
    )
    module.VoiceBpeTokenizer = functools.partial(module.VoiceBpeTokenizer, str(folder / "vocab.json"))
    made = pipeline(checkpoint_dir=str(folder), dtype="float32")
    made.load_checkpoint(str(folder))
    mel = made.music_dcae.vocoder.mel_transform  # whose filters are noise in a random checkpoint
    mel.mel_scale.fb, mel.spectrogram.window = filterbank(), torch.hann_window(2048)
    audio.save = lambda path, wave, **_: setattr(made, "saved", wave)
    decode = made.latents2audio

    def latents2audio(latents, **options):
        made.made = latents
        return decode(latents, **options)

    made.latents2audio = latents2audio
    return made


def song(pipe, options: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [T, 128] and 48 kHz audio [2, N] of one call."""
    with tempfile.TemporaryDirectory() as folder:
        pipe(save_path=f"{folder}/song.wav", **options)
    return latents_of(pipe.made)[0], pipe.saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    checkout, made = parser.parse_args().checkout, {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        pipe = upstream(checkout, songs.write(Path(folder)))
        source = songs.write_source(Path(folder))
        made["ids"] = torch.tensor(pipe.tokenize_lyrics(songs.LYRICS))
        for name, (options, _) in songs.CASES.items():
            latents, audio = song(pipe, songs.theirs(options, source))
            made[f"{name}.latents"] = latents[:: songs.STEP_FRAMES]
            made[f"{name}.audio"] = audio[:, :: songs.STEP_SAMPLES]
    save_file({k: t.contiguous() for k, t in made.items()}, FILE, {"upstream": "ace-step/ACE-Step d612523"})


if __name__ == "__main__":
    main()
