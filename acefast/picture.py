"""A song as a picture: the waveform of either channel above a mel spectrogram.

Spectrogram: power of a 2048-point Hann-windowed FFT every 512 samples, both channels averaged (so that what is out of
phase does not cancel), through 128 triangular filters of height 1 that are evenly spaced on the mel scale of Slaney's
Auditory Toolbox (linear below 1 kHz, logarithmic above), in dB relative to the loudest cell, down to -80.
Waveform: the smallest and the largest sample of each pixel column.
"""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from acefast.request import RequestError

MELS, WINDOW, HOP = 128, 2048, 512
FLOOR_DB = -80.0
COLUMNS = 2000  # at most: more are averaged, as the picture has fewer pixels
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans",
    "Arial Unicode MS",
)  # those that are installed


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Slaney's mel scale: 3 mels per 200 Hz below 1 kHz, 27 mels per factor of 6.4 above."""
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < 1000, hz * 0.015, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / math.log(6.4))


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of ``hz_to_mel``."""
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15, mel / 0.015, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


def mel_filters(sample_rate: int) -> Tensor:
    """[WINDOW // 2 + 1, MELS]: each column rises from one neighbour's centre and falls to the other's."""
    edges = mel_to_hz(np.linspace(0, hz_to_mel(sample_rate / 2), MELS + 2))
    bins = np.linspace(0, sample_rate / 2, WINDOW // 2 + 1)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.minimum(rise, fall).clip(0)).float()


def mel_spectrogram(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """[MELS, columns] in dB of ``audio`` [C, N]; a column is one hop, or the mean of several where there are many."""
    filters, window = mel_filters(sample_rate), torch.hann_window(WINDOW)
    padded = torch.nn.functional.pad(torch.from_numpy(np.array(audio, dtype=np.float32)), (WINDOW // 2, WINDOW // 2))
    frames = padded.unfold(-1, WINDOW, HOP)  # [C, F, WINDOW], a view
    merge = math.ceil(frames.shape[1] / COLUMNS)
    columns, group = [], merge * math.ceil(512 / merge)  # in groups, as the spectrum of a long song takes gigabytes
    for start in range(0, frames.shape[1], group):
        spectrum = torch.fft.rfft(frames[:, start : start + group] * window)
        mel = (spectrum.abs().square().mean(0) @ filters).split(merge)
        columns += [part.mean(0) for part in mel]
    power = torch.stack(columns, dim=1)
    decibels = 10 * torch.log10(power.clamp_min(1e-20) / power.max().clamp_min(1e-20))
    return (decibels if power.max() > 0 else torch.full_like(power, FLOOR_DB)).clamp_min(FLOOR_DB).numpy()


def envelope(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start (as a share of the length), smallest and largest sample of each of at most COLUMNS stretches."""
    starts = np.unique(np.linspace(0, len(channel), min(COLUMNS, len(channel)), endpoint=False).astype(np.int64))
    return starts / len(channel), np.minimum.reduceat(channel, starts), np.maximum.reduceat(channel, starts)


def draw(file: BinaryIO, audio: np.ndarray, sample_rate: int, *, title: str, subtitle: str) -> None:
    """Write a PNG of 1400 x 700 pixels of ``audio`` [C, N] to ``file``; RequestError without matplotlib.

    ``title`` is cut to the picture's width; a character that no font here has becomes a box.
    """
    try:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("plot: needs matplotlib, which is not installed; run pip install acefast[plot]") from error

    have = set(font_manager.get_font_names())
    families = [name for name in FONTS if name in have] or ["sans-serif"]
    bold = [font_manager.FontProperties(family=name, weight="bold") for name in families]
    fonts = [font_manager.get_font(font_manager.findfont(each)) for each in bold]
    drawn = [c if any(font.get_char_index(ord(c)) for font in fonts) else "□" for c in title[:300]]
    text = dict(family=families, parse_math=False)  # a prompt's $ is no formula
    seconds = audio.shape[1] / sample_rate
    ink, faint = "#22262b", "#8a9099"
    figure = Figure(figsize=(14, 7), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    names = ("left", "right") if len(audio) == 2 else ("mono",) if len(audio) == 1 else map(str, range(len(audio)))
    grid = figure.add_gridspec(
        len(audio) + 1, 2, height_ratios=[1] * len(audio) + [4.4], width_ratios=[1, 0.012],
        left=0.06, right=0.945, bottom=0.08, top=0.87, hspace=0.09, wspace=0.02,
    )  # fmt: skip
    heading = figure.text(0.06, 0.945, "".join(drawn), fontsize=14, color=ink, weight="bold", **text)
    while drawn and (over := heading.get_window_extent().x1 / (0.945 * figure.bbox.width)) > 1:
        del drawn[min(len(drawn) - 1, int(len(drawn) / over)) :]
        heading.set_text("".join(drawn).rstrip() + "…")
    figure.text(0.06, 0.9, subtitle, fontsize=10.5, color=faint, **text)

    top = max(float(np.abs(audio).max()), 1e-3) * 1.05
    for row, (channel, name) in enumerate(zip(audio, names)):
        axes = figure.add_subplot(grid[row, 0])
        share, low, high = envelope(channel)
        axes.fill_between(share * seconds, low, high, color="#3b5b92", linewidth=0.3, step="post")
        axes.axhline(0, color=ink, linewidth=0.4, alpha=0.5)
        axes.set(xlim=(0, seconds), ylim=(-top, top), yticks=[])
        axes.set_ylabel(name, color=faint, fontsize=9)
        axes.tick_params(bottom=False, labelbottom=False)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)

    axes = figure.add_subplot(grid[len(audio), 0])
    nyquist_mel = float(hz_to_mel(sample_rate / 2))
    image = axes.imshow(
        mel_spectrogram(audio, sample_rate),
        origin="lower", aspect="auto", interpolation="nearest", cmap="magma",
        extent=(0, seconds, 0, nyquist_mel), vmin=FLOOR_DB, vmax=0,
    )  # fmt: skip
    ticks = [hz for hz in (250, 500, 1000, 2000, 4000, 8000, 16000) if hz < sample_rate / 2]
    axes.set_yticks(hz_to_mel(np.array(ticks, dtype=float)), [f"{h // 1000}k" if h >= 1000 else str(h) for h in ticks])
    axes.set_ylabel("frequency, Hz (mel scale)", color=ink, fontsize=9.5)
    axes.set_xlabel("time, s", color=ink, fontsize=9.5)
    axes.tick_params(colors=ink, labelsize=9)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[len(audio), 1]))
    bar.set_label("dB re maximum", color=ink, fontsize=9.5)
    bar.ax.tick_params(colors=ink, labelsize=8.5)
    bar.outline.set_visible(False)
    figure.canvas.print_png(file)
