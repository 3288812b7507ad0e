"""Train the diffusion transformer, its condition encoder, its text encoder and its audio codes by flow matching.

    python examples/demo_model/train_dit.py RUN --minutes 95 [--clips 1900] [--threads 2]

RUN is the folder of ``train_vae.py``. First, once: the autoencoder's latents are brought to unit size, every clip is
rendered and encoded into RUN/latents, and the tokeniser learns its merges. Then RUN/dit.pt, resumed where it
exists. A model learns, as the real one does: the velocity ``noise - data``, at noise levels spaced as in turbo's
schedule, from the real prompts, in which metadata is missing now and then; a share of the batches are repaints and
covers. Two things help it to find the beat, and neither changes the architecture: ``ruler`` and ``Clock``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import FULL_SCALE, rendered, save_atomically, stored
from dataset import Dataset
from export import SILENT_FRAMES, export
from nets import Bundle
from tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from train_vae import SECONDS, SEED, beat_locked
from training import Trainer
from transformers import Qwen3Config, Qwen3Model
from vae_nets import VAE

from acefast.backends import cpu_multiplies
from acefast.config_files import text_config_for
from acefast.models.v15.config import Config, VAEConfig
from acefast.prompts import lyric_prompt, text_prompt
from acefast.request import Request

DEMO = Config(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    encoder_hidden_size=256,  # the format wants the transformer's own sizes here
    encoder_intermediate_size=512,
    encoder_num_attention_heads=4,
    encoder_num_key_value_heads=2,
    text_hidden_dim=192,
    num_lyric_encoder_hidden_layers=1,
    num_timbre_encoder_hidden_layers=1,
    num_attention_pooler_hidden_layers=1,
)
DEMO_TEXT = dict(intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=64)
MISSING = {"bpm": 0.3, "key": 0.3, "time_signature": 0.3}  # how often metadata is not told
SHARES = {"text2music": 0.8, "repaint": 0.12, "cover": 0.08}
LENGTHS = (0.5, 1.0)  # of a clip: shortest and longest stretch that a batch is cut to
NOTHING = 0.05  # how often a batch's songs have no condition at all
SHIFT = 3.0  # of the noise levels, turbo's own
CLOCK = (1, 2, 4, 8, 16)  # per bar: what the layer TAP is taught to tell, see ``Clock``
TAP = 3
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # the test's


class Encode:
    """Index to a rendered clip's latents, float16 [T, D], and its labels; it carries no audio to worker processes."""

    def __init__(self, vae: VAE, sounds: np.memmap, labels: list[dict]):
        self.vae, self.file, self.shape, self.labels = vae, sounds.filename, sounds.shape, labels

    def __call__(self, index: int) -> tuple[np.ndarray, dict]:
        sound = np.memmap(self.file, np.int16, "r", shape=self.shape)[index]
        with torch.no_grad():
            latents = self.vae.encode(torch.from_numpy(sound / np.float32(FULL_SCALE))[None])[0][0]
        return latents.half().numpy(), self.labels[index]


class Run:
    """What a training folder holds, made where it is missing."""

    def __init__(self, folder: Path, config: Config = DEMO, text: dict[str, Any] = DEMO_TEXT):
        self.folder = folder
        self.vae_config = VAEConfig.from_dict(json.loads((folder / "vae.json").read_text()))
        self.config = dataclasses.replace(config, audio_acoustic_hidden_dim=self.vae_config.decoder_input_channels)
        self.text = text

    def prepare(self, clips: int, tests: int, workers: int) -> None:
        """Scale the autoencoder, encode the clips, train the tokeniser."""
        scaled = self.folder / "vae-scaled.pt"
        if not scaled.is_file():
            vae = VAE(self.vae_config)
            vae.load_state_dict(torch.load(self.folder / "vae.pt", weights_only=True)["average"])
            some = self._encoded(vae, "scales", Dataset(min(64, clips), seed=3, seconds=SECONDS), workers)[0]
            sizes = torch.from_numpy(some.astype(np.float32)).square().mean((0, 1)).sqrt()
            vae.rescale(sizes.clamp_min(0.3 * float(sizes.max())))  # what says next to nothing stays small
            save_atomically(lambda path: torch.save(vae.state_dict(), path), scaled)
        self.load_vae()
        train, test = (Dataset(n, SEED, split, SECONDS) for n, split in ((clips, "train"), (tests, "held-out")))
        self.latents, self.labels = self._encoded(self.vae, "songs", train, workers)
        self.unseen, self.unseen_labels = self._encoded(self.vae, "unseen", test, workers)
        style = "boom bap"
        chosen = [
            i for i, known in enumerate(self.labels) if (known["style"], known["time_signature"]) == (style, "4")
        ][:64]
        if len(chosen) > 8:
            share = beat_locked(self.latents[chosen], [self.labels[i]["bpm"] for i in chosen])
            print(f"{share:.2f} of the latents of {style} is foretold by their place in the bar", flush=True)
        words = self.folder / "tokenizer.json"
        if not words.is_file():
            rng = np.random.default_rng(0)
            texts = [p for label in self.labels[:2000] for p in prompts(label, "text2music", 10, rng)]
            train_tokenizer(texts).save(str(words))

    def _encoded(self, vae: VAE, name: str, clips: Dataset, workers: int) -> tuple[np.ndarray, list[dict]]:
        sounds, labels = rendered(self.folder / "clips" / name, clips, workers=workers)
        return stored(self.folder / "latents" / name, len(clips), Encode(vae, sounds, labels), workers=workers)

    def load_vae(self) -> None:
        """Set ``vae`` and ``silence``, the source of a song that has none, [SILENT_FRAMES, D]."""
        self.vae = VAE(self.vae_config).requires_grad_(False).eval()
        self.vae.load_state_dict(torch.load(self.folder / "vae-scaled.pt", weights_only=True))
        self.silence = ruler(SILENT_FRAMES, self.config.audio_acoustic_hidden_dim)

    def networks(self) -> nn.ModuleDict:
        """Fresh ones; also sets ``tokenizer`` and ``text_config``."""
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.text_config = text_config_for(self.config) | self.text
        self.text_config["vocab_size"] = -(-self.tokenizer.get_vocab_size() // 8) * 8
        torch.manual_seed(0)
        text = Qwen3Model(Qwen3Config(**self.text_config, attn_implementation="sdpa"))
        nn.init.normal_(text.embed_tokens.weight, std=0.5)
        for word, index in self.tokenizer.get_vocab().items():
            if word.isdecimal() and len(word) > 1:  # near numbers begin near each other: random Fourier features
                waves = torch.randn(2, self.text_config["hidden_size"], generator=torch.Generator().manual_seed(1))
                text.embed_tokens.weight.data[index] = 0.7 * (int(word) / 6 * waves[0] + 6.3 * waves[1]).cos()
        return nn.ModuleDict({"bundle": Bundle(self.config), "text": text, "clock": Clock(self.config.hidden_size)})

    def export(self, folder: Path, dtype: torch.dtype) -> Path:
        """Write the averaged weights of the last checkpoint as one that acefast loads."""
        self.load_vae()
        refined = self.folder / "decoder.pt"
        if refined.is_file():
            self.vae.load_state_dict(torch.load(refined, weights_only=True)["average"])
        nets = self.networks()
        nets.load_state_dict(torch.load(self.folder / "dit.pt", weights_only=True)["average"])
        return export(
            folder, self.config, self.vae_config, self.text_config, bundle=nets["bundle"], vae=self.vae,
            text_encoder=nets["text"], tokenizer=self.tokenizer, silence=self.silence, dtype=dtype,
        )  # fmt: skip


def ruler(frames: int, D: int) -> Tensor:
    """What stands where a song has no source: the hands of D / 2 clocks that turn 9, 10, ... times in ``frames``.

    A transformer with rotary positions knows distances, not places; the hands tell it where in a bar it is. With half a
    minute of frames and D = 24 they turn as fast as the bars of 70 to 160 bpm do; a tempo between two hands is a
    mixture of them, as in any Fourier series.

    Returns:
        [frames, D] float32, cosines and then sines.
    """
    turns = 9 + torch.arange(D // 2)
    angle = 2 * torch.pi * torch.arange(frames)[:, None] * turns / frames
    return torch.cat((angle.cos(), angle.sin()), -1)


class Clock(nn.Module):
    """A readout that only the training knows: where in the bar is each token.

    The beat is a small share of what the velocity's error is made of, and the way to it is long: from the tempo's token
    through cross-attention to a product with the ruler. Asked for directly, it is found within minutes.
    """

    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Linear(width, 2 * len(CLOCK))

    def loss(self, hidden: Tensor, labels: list[dict[str, Any]], start: int) -> Tensor:
        """Mean squared error of the hands that ``hidden`` [B, S, H] shows, of songs cut at frame ``start``."""
        seconds = (start + 2 * torch.arange(hidden.shape[1])) / 25
        bars = torch.tensor([label["bpm"] / 60 / int(label["time_signature"]) for label in labels])
        angle = 2 * torch.pi * (bars[:, None] * seconds)[..., None] * torch.tensor(CLOCK)
        return F.mse_loss(self.head(hidden), torch.cat((angle.cos(), angle.sin()), -1))


def prompts(label: dict[str, Any], task: str, seconds: float, rng: np.random.Generator) -> tuple[str, str]:
    """Text and lyric prompt of a clip, as the pipeline would write them; metadata is missing now and then.

    Where the tempo is missing there, the caption mostly has it; or else it would not be learned to read it there, least
    of all "90 bpm" beside the many "90s".
    """
    known = {name: None if rng.random() < share else label[name] for name, share in MISSING.items()}
    caption = label["prompt"]
    if known["bpm"] is None and "bpm" not in caption and rng.random() < 0.9:
        parts = caption.split(", ")
        parts.insert(int(rng.integers(1, len(parts) + 1)), f"{label['bpm']} bpm")
        caption = ", ".join(parts)
    lyrics = label["lyrics"]
    request = Request(
        prompt=caption, lyrics=lyrics, language="en" if lyrics and rng.random() < 0.5 else None,
        instrumental=not lyrics and rng.random() < 0.5, **known,
    )  # fmt: skip
    return text_prompt(request, seconds, task=task), lyric_prompt(request)


def loss(run: Run, nets: nn.ModuleDict, batch: int, rng: np.random.Generator) -> Tensor:
    """Flow matching on one batch; on covers also the audio codes' reconstruction, which shares no weights with it."""
    bundle, T = nets["bundle"], run.latents.shape[1]
    task = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    frames = int(rng.integers(int(LENGTHS[0] * T), int(LENGTHS[1] * T) + 1)) // 10 * 10
    items = rng.integers(len(run.latents), size=batch)
    whole = task == "text2music" or rng.random() < 0.5
    start = 0 if whole else int(rng.integers(T - frames + 1))  # songs begin on a bar line, as clips do
    data = torch.from_numpy(run.latents[items, start : start + frames].astype(np.float32))
    mask, source, codes = torch.ones(batch, frames, 1), run.silence[:frames].expand_as(data), 0
    if task == "cover":
        hints = bundle.detokenizer.hints(bundle.tokenizer(data)[0])
        source, codes = hints.detach(), F.mse_loss(hints, data)
    elif task == "repaint":
        for row in mask:
            size = int(rng.integers(frames // 8, frames * 3 // 4))
            first = frames - size if rng.random() < 0.4 else int(rng.integers(frames - size))  # the end: an extension
            row[:first] = row[first + size :] = 0
        source = torch.where(mask > 0, source, data)
    texts = [prompts(run.labels[i], task, frames / 25, rng) for i in items]
    u = torch.from_numpy(rng.random(batch)).float()
    t = SHIFT * u / (1 + (SHIFT - 1) * u)  # as often as a song passes there
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies(torch.bfloat16)):
        conditions, valid = condition(run, nets, texts)
        drop = torch.from_numpy(rng.random(batch) < NOTHING)[:, None, None]
        conditions = torch.where(drop, bundle.null_condition_emb, conditions)
        error, hidden = matching(bundle, data, source, mask, conditions, valid, t)
        return codes + error + nets["clock"].loss(hidden, [run.labels[i] for i in items], start)


def matching(
    bundle: Bundle, data: Tensor, source: Tensor, mask: Tensor, conditions: Tensor, valid: Tensor, t: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean squared error of the velocity at times ``t`` [B], data [B, T, D], and hidden states for ``Clock``."""
    noise = torch.randn(data.shape, generator=generator)
    latents = torch.lerp(data, noise, t[:, None, None])
    context = torch.cat((source, mask.expand_as(data)), -1)
    velocity, hidden = bundle.decoder(latents, t, context, conditions, valid, tap=TAP)
    return F.mse_loss(velocity.float(), noise - data), hidden


def condition(run: Run, nets: nn.ModuleDict, texts: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Conditions of (text prompt, lyric prompt) pairs and which of their rows are valid."""
    (text, text_valid), (words, words_valid) = (_ids(run.tokenizer, [pair[i] for pair in texts]) for i in (0, 1))
    states = nets["text"](input_ids=text).last_hidden_state  # causal: padding on the right changes no valid state
    silence = run.silence[: run.config.timbre_fix_frame][None]
    return nets["bundle"].encoder(states, text_valid, nets["text"].embed_tokens(words), words_valid, silence)


def _ids(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(e.ids) for e in tokenizer.encode_batch(texts)]
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


@torch.no_grad()
def quality(run: Run, nets: nn.ModuleDict) -> dict[str, float]:
    """Error of the velocity on clips and captions never trained on, at each of TIMES."""
    data = torch.from_numpy(run.unseen.astype(np.float32))
    texts = [prompts(label, "text2music", data.shape[1] / 25, np.random.default_rng(0)) for label in run.unseen_labels]
    conditions, valid = condition(run, nets, texts)
    source, mask = run.silence[: data.shape[1]].expand_as(data), torch.ones(1, 1, 1)
    generator, found = torch.Generator().manual_seed(0), {}
    for t in TIMES:
        times = torch.full((len(data),), t)
        error, hidden = matching(nets["bundle"], data, source, mask, conditions, valid, times, generator)
        found[f"mse@{t}"] = round(error.item(), 4)
    found["clock"] = round(nets["clock"].loss(hidden, run.unseen_labels, 0).item(), 4)
    return found


def train(
    run: Run, minutes: float, *, batch: int = 16, rate: float = 1.5e-3, test_every: float = 180,
    steps: int | None = None,
) -> nn.Module:  # fmt: skip
    """Train to the end of the budget, or to ``steps``; ``run`` is prepared. Gives back the averaged networks."""
    nets = run.networks()
    trainer = Trainer(nets, run.folder / "dit.pt", minutes, rate, betas=(0.9, 0.98), warmup=300)
    torch.manual_seed(trainer.step)
    return trainer.run(
        lambda rng: loss(run, nets, batch, rng), lambda average: quality(run, average), every=test_every, steps=steps
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=95, help="of training, over all runs of this folder")
    parser.add_argument("--clips", type=int, default=1900)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", default="{}", help="JSON of sizes that differ from the demo's")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    run = Run(args.run, dataclasses.replace(DEMO, **json.loads(args.config)))
    run.prepare(args.clips, min(32, args.clips), args.threads)
    train(run, args.minutes, batch=args.batch, rate=args.rate)


if __name__ == "__main__":
    main()
