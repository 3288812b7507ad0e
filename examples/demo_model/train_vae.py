"""Train the audio autoencoder on rendered clips.

    python examples/demo_model/train_vae.py RUN --minutes 60 [--threads 2]

Writes RUN/vae.pt, and goes on with it where it exists. The log has, for clips never trained on and the averaged
weights, SI-SDR in dB, spectral convergence and the log distance of magnitudes (``acefast.metrics``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # plain modules; the repository

from data import FULL_SCALE, crop, render_clips
from training import Trainer
from vae_nets import VAE

from acefast import metrics
from acefast.models.v15.config import VAEConfig

WINDOWS = (4096, 2048, 1024, 512, 256, 128)
LOW = 600  # Hz: below, where kick and 808 live, phase is compared as well
DEMO_VAE = VAEConfig(
    encoder_hidden_size=12,
    decoder_channels=16,
    downsampling_ratios=(8, 6, 4, 5, 2),
    channel_multiples=(2, 4, 8, 8, 8),
)


def distance(reference: Tensor, estimate: Tensor, windows: tuple[int, ...]) -> Tensor:
    """Spectral convergence and log magnitude over ``windows``, the waveform, and the low end with its phase.

    Args:
        reference, estimate: [B, C, N].
    """
    total = 2 * (reference - estimate).abs().mean() / (reference.abs().mean() + 1e-3)
    both = torch.cat((reference, estimate)).flatten(0, 1)
    for window in windows:
        hann = torch.hann_window(window)
        spectrum = torch.stft(both, window, window // 4, window=hann, return_complex=True) / hann.square().sum().sqrt()
        if window == max(windows):
            r, e = spectrum[:, : max(4, LOW * window // 48_000)].chunk(2)
            total = total + (r - e).abs().sum() / (r.abs().sum() + 1e-3)
        r, e = (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt().chunk(2)
        convergence = (r - e).square().sum((1, 2)).sqrt() / (r.square().sum((1, 2)).sqrt() + 1e-1)
        total = total + (convergence.mean() + (r.log() - e.log()).abs().mean()) / len(windows)
    return total


def loss(vae: VAE, audio: Tensor, rng: np.random.Generator, kl: float) -> Tensor:
    """Of one batch [B, 2, N]: three of the windows, on left and right or on mid and side, drawn anew each step."""
    mean, std = vae.encode(audio)
    out = vae.decode(mean + std * torch.randn_like(std))
    if rng.random() < 0.5:
        audio, out = (torch.stack((x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]), 1) * 0.707 for x in (audio, out))
    windows = tuple(int(w) for w in rng.choice(WINDOWS, 3, replace=False))
    divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
    return distance(audio, out, windows) + kl * divergence


@torch.no_grad()
def quality(vae: VAE, sounds: np.ndarray) -> dict[str, float]:
    """Means over held-out clips, int16 [n, 2, N]: SI-SDR in dB, spectral convergence, log distance in nepers."""
    rows = []
    for sound in sounds:
        audio = torch.from_numpy(sound / np.float32(FULL_SCALE))[None]
        out = vae.decode(vae.encode(audio)[0])[0].numpy()
        reference = audio[0, :, : out.shape[1]].numpy()
        rows.append((metrics.si_sdr(reference, out), *metrics.multi_resolution_stft_distance(reference, out)))
    names = ("si_sdr", "spectral_convergence", "log_magnitude")
    return {n: round(float(v), 3) for n, v in zip(names, np.mean(rows, 0))}


def train(
    run: Path, config: VAEConfig, minutes: float, *, batch: int = 4, frames: int = 32, rate: float = 1.5e-3,
    kl: float = 1e-3, clips: int = 400, data: Path | None = None, workers: int = 1, test_every: float = 120,
    steps: int | None = None,
) -> VAE:  # fmt: skip
    """Train to the end of the budget and give back the averaged weights.

    Args:
        frames: latent frames of a crop.
        data: folder of the rendered clips; None takes ``run``'s own.
        test_every: seconds between tests on held-out clips.
        steps: also stop there.
    """
    data = data or run / "clips"
    sounds, _ = render_clips(data, clips, seconds=10, workers=workers)
    unseen, _ = render_clips(data, min(16, clips), seconds=5, split="held-out", workers=workers)
    (run / "vae.json").write_text(json.dumps(dataclasses.asdict(config)))
    torch.manual_seed(0)
    vae = VAE(config)
    trainer = Trainer(vae, run / "vae.pt", minutes, rate, betas=(0.8, 0.99))
    tested, began, first = time.monotonic(), trainer.spent, trainer.step
    print(f"vae: {sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters, step {trainer.step}", flush=True)
    while trainer.progress < 1 and (steps is None or trainer.step < steps):
        rng = trainer.rng
        audio = torch.from_numpy(crop(sounds, frames * config.hop, batch, rng))
        value = loss(vae, audio, rng, kl)
        trainer.update(value)
        if time.monotonic() - tested > test_every or trainer.progress >= 1:
            each = (trainer.spent - began) / (trainer.step - first)
            line = {"step": trainer.step, "minutes": round(trainer.spent / 60, 2), "s/step": round(each, 3)}
            line |= {"loss": round(value.item(), 3), **quality(trainer.average, unseen)}
            with (run / "vae.log").open("a") as log:
                print(json.dumps(line), file=log)
            print(line, flush=True)
            tested = time.monotonic()
            trainer.pause()
    trainer.save()
    return trainer.average


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="of training, over all runs of this folder")
    parser.add_argument("--config", default="{}", help="JSON of sizes that differ from the demo's")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = vars(parser.parse_args(argv))
    torch.set_num_threads(args["threads"])
    config = VAEConfig.from_dict(dataclasses.asdict(DEMO_VAE) | json.loads(args.pop("config")))
    args["run"].mkdir(parents=True, exist_ok=True)
    train(args.pop("run"), config, args.pop("minutes"), workers=args.pop("threads"), **args)


if __name__ == "__main__":
    main()
