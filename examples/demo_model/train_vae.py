"""Train the audio autoencoder on rendered clips.

    python examples/demo_model/train_vae.py RUN --minutes 60 [--threads 2]

Writes RUN/vae.pt, and goes on with it where it exists. With --refine, RUN/decoder.pt: the decoder alone learns on
while train_dit.py runs beside it. The log has, for clips never trained on and the averaged weights, the
spectral convergence and the log distance of magnitudes (``acefast.metrics``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from data import FULL_SCALE, crop, rendered
from dataset import Dataset
from torch import Tensor
from training import Trainer
from vae_nets import VAE

from acefast import metrics
from acefast.models.v15.config import VAEConfig

SEED, SECONDS = 1, 12  # of the clips that both trainings read
WINDOWS = (4096, 2048, 1024, 512, 256, 128)
DEMO_VAE = VAEConfig(
    encoder_hidden_size=8,
    decoder_channels=8,
    downsampling_ratios=(4, 4, 6, 10, 2),  # few layers at the full rate, where eight channels keep a CPU waiting
    channel_multiples=(3, 6, 12, 16, 16),
    decoder_input_channels=24,
)


class _RFFT(torch.autograd.Function):
    """``torch.fft.rfft``, whose own way back takes a complex transform of twice the length."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.size = x.shape[-1]
        return torch.fft.rfft(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad * (0.5 * ctx.size)
        grad[..., 0] *= 2
        grad[..., -1] *= 2
        return torch.fft.irfft(grad, ctx.size)


def spectra(x: Tensor, window: int) -> Tensor:
    """Short-time spectra of [R, N], hops of a quarter window: complex [R, frames, window / 2 + 1]."""
    hann = torch.hann_window(window)
    return _RFFT.apply(x.unfold(1, window, window // 4) * (hann / hann.square().sum().sqrt()))


def distance(reference: Tensor, estimate: Tensor, windows: tuple[int, ...]) -> Tensor:
    """Spectral convergence and log magnitude over ``windows``, and nothing that knows of phase.

    A loss on the waveform makes latents swing with it: their mean over clips is zero at every place of the beat, and
    the transformer has nothing to learn from until the noise is nearly gone (``beat_locked`` is 0.00 then). Magnitudes
    alone make latents say what sounds when.

    Args:
        reference, estimate: [B, C, N].
    """
    total = 0.0
    both = torch.cat((reference, estimate)).flatten(0, 1)
    for window in windows:
        r, e = (torch.view_as_real(spectra(both, window)).square().sum(-1) + 1e-7).sqrt().chunk(2)
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
    """Means over held-out clips, int16 [n, 2, N]: spectral convergence, log distance in nepers, and SI-SDR in dB,
    which is low by nature, since phases are the decoder's own."""
    rows = []
    for sound in sounds:
        audio = torch.from_numpy(sound / np.float32(FULL_SCALE))[None]
        out = vae.decode(vae.encode(audio)[0])[0].numpy()
        reference = audio[0, :, : out.shape[1]].numpy()
        rows.append((*metrics.multi_resolution_stft_distance(reference, out), metrics.si_sdr(reference, out)))
    names = ("spectral_convergence", "log_magnitude", "si_sdr")
    return {n: round(float(v), 3) for n, v in zip(names, np.mean(rows, 0))}


def beat_locked(latents: np.ndarray, bpm: list[float], harmonics: int = 16) -> float:
    """Share of the latents' variance that their place in the bar foretells, in clips that were not fitted, up to 1.

    Args:
        latents: [clips, T, D], of one style in four-four time, each beginning on a bar line.
    """
    seconds = (np.arange(latents.shape[1]) + 0.5) / 25
    phases = 2 * np.pi * np.asarray(bpm)[:, None] / 240 * seconds  # [clips, T]
    turns = phases[..., None] * np.arange(1, harmonics + 1)
    places = np.concatenate((np.ones((*phases.shape, 1)), np.cos(turns), np.sin(turns)), -1)
    z = latents.astype(np.float64)
    z = (z - z.mean((0, 1))) / z.std((0, 1))
    fitted = len(z) * 3 // 4
    X, Y = (a[:fitted].reshape(-1, a.shape[-1]) for a in (places, z))
    weights = np.linalg.solve(X.T @ X + 30 * np.eye(X.shape[1]), X.T @ Y)
    X, Y = (a[fitted:].reshape(-1, a.shape[-1]) for a in (places, z))
    return float(1 - np.square(Y - X @ weights).mean() / np.square(Y).mean())


def train(
    run: Path, config: VAEConfig, minutes: float, *, batch: int = 4, frames: int = 16, rate: float = 1.5e-3,
    kl: float = 1e-3, clips: int = 400, data: Path | None = None, workers: int = 1, test_every: float = 120,
    steps: int | None = None, refine: bool = False,
) -> VAE:  # fmt: skip
    """Train to the end of the budget and give back the averaged weights.

    Args:
        frames: latent frames of a crop.
        data: folder of the rendered clips; None takes ``run``'s own.
        test_every: seconds between tests on held-out clips.
        steps: also stop there.
        refine: train the decoder alone, for the latents that ``train_dit.py`` has scaled and learns meanwhile.
    """
    data = data or run / "clips"
    sounds, _ = rendered(data / "songs", Dataset(clips, seed=SEED, seconds=SECONDS), workers=workers)
    unseen, _ = rendered(data / "held-out", Dataset(min(8, clips), split="held-out", seconds=5), workers=workers)
    (run / "vae.json").write_text(json.dumps(dataclasses.asdict(config)))
    torch.manual_seed(0)
    vae = VAE(config)
    if refine:
        vae.load_state_dict(torch.load(run / "vae-scaled.pt", weights_only=True))
        vae.encoder.requires_grad_(False)
    trainer = Trainer(vae, run / ("decoder.pt" if refine else "vae.pt"), minutes, rate, betas=(0.8, 0.99), warmup=30)

    def step(rng: np.random.Generator) -> Tensor:
        return loss(vae, torch.from_numpy(crop(sounds, frames * config.hop, batch, rng)), rng, kl)

    return trainer.run(step, lambda average: quality(average, unseen), every=test_every, steps=steps)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="of training, over all runs of this folder")
    parser.add_argument("--config", default="{}", help="JSON of sizes that differ from the demo's")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--refine", action="store_true", help="the decoder alone, while train_dit.py runs")
    args = vars(parser.parse_args(argv))
    torch.set_num_threads(args["threads"])
    args["run"].mkdir(parents=True, exist_ok=True)
    known, sizes = args["run"] / "vae.json", json.loads(args.pop("config"))
    base = json.loads(known.read_text()) if known.is_file() else dataclasses.asdict(DEMO_VAE)
    config = VAEConfig.from_dict(base | sizes)
    train(args.pop("run"), config, args.pop("minutes"), workers=args.pop("threads"), **args)


if __name__ == "__main__":
    main()
