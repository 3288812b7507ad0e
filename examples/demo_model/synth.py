"""What every sound here is made of: random numbers, oscillators, envelopes, filters, echo, loudness. numpy only.

A sound is a mono float32 array [N] at 48 kHz; a bus is float32 [2, N]. Filters are causal analogue responses laid over
an FFT of the padded sound: a short sound costs microseconds, a whole song some milliseconds, and nothing rings ahead
of its attack.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

SR = 48_000  # samples per second
TABLE = 4096  # samples in one cycle of a wavetable


def generator(*words: int | str) -> np.random.Generator:
    """A generator of its own for each list of words: what one layer of a song draws never moves another's."""
    return np.random.default_rng([zlib.crc32(w.encode()) if isinstance(w, str) else w for w in words])


def samples(seconds: float) -> int:
    """Nearest whole number of samples."""
    return round(seconds * SR)


@lru_cache(maxsize=64)
def clock(n: int) -> np.ndarray:
    """Seconds of samples 0..n-1: float32 [n], read-only."""
    t = np.arange(n, dtype=np.float32) / SR
    t.flags.writeable = False
    return t


def hertz(midi: float) -> float:
    """Frequency of a MIDI note: 69 is 440 Hz."""
    return 440.0 * 2 ** ((midi - 69) / 12)


def phase(frequency: float | np.ndarray, n: int) -> np.ndarray:
    """Cycles from 0 up, without their whole part: float32 [n]; ``frequency`` in Hz, one number or [n]."""
    if np.ndim(frequency):
        cycles = np.cumsum(np.asarray(frequency, np.float64)) / SR
    else:
        cycles = np.arange(n) * (float(frequency) / SR)
    return (cycles - np.floor(cycles)).astype(np.float32)  # in float64 until here: float32 drifts within a second


def sine(cycles: np.ndarray) -> np.ndarray:
    """sin(2 pi cycles), float32."""
    return np.sin(np.float32(2 * np.pi) * cycles)


def wavetable(levels: np.ndarray) -> np.ndarray:
    """One cycle, [TABLE], of the sum of the sines 1, 2, ... with these levels; its RMS is 1."""
    spectrum = np.zeros(TABLE // 2 + 1, complex)
    spectrum[1 : len(levels) + 1] = -1j * np.asarray(levels)
    cycle = np.fft.irfft(spectrum)
    return (cycle / max(np.sqrt(np.mean(cycle**2)), 1e-12)).astype(np.float32)


@lru_cache(maxsize=512)
def harmonics(kind: str, frequency: float, cutoff: float) -> np.ndarray:
    """Wavetable of ``kind`` (saw, square, organ, plucked, flute) at ``frequency``, low-passed at ``cutoff`` (Hz)."""
    n = np.arange(1, max(2, min(200, int(16_000 / frequency))) + 1)
    levels = {
        "saw": 1 / n,
        "square": (n % 2) / n,
        "organ": np.select([n == 1, n == 2, n == 3, n == 4, n == 8], [1, 0.8, 0.5, 0.25, 0.12], 0.0),
        "plucked": np.abs(np.sin(np.pi * n * 0.21)) / n,  # a string plucked at a fifth of its length
        "flute": np.select([n == 1, n == 2, n == 3], [1, 0.25, 0.08], 0.0),
    }[kind]
    return wavetable(levels / (1 + (n * frequency / cutoff) ** 4) ** 0.5)


def lookup(table: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    """The wavetable at these cycles."""
    return table[(cycles * TABLE).astype(np.int32) & (TABLE - 1)]


def decay(n: int, seconds: float) -> np.ndarray:
    """exp(-t / seconds), float32 [n]."""
    return np.exp(clock(n) * np.float32(-1 / seconds))


def gate(seconds: float, attack: float = 0.004, release: float = 0.05) -> np.ndarray:
    """1 for ``seconds`` with a linear attack, then a squared fall over ``release`` seconds."""
    hold, tail, rise = samples(seconds), samples(release), max(1, samples(attack))
    out = np.ones(hold + tail, np.float32)
    out[hold:] = np.linspace(1, 0, tail, dtype=np.float32) ** 2
    rise = min(rise, hold + tail)
    out[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)
    return out


def noise(n: int, *words: int | str) -> np.ndarray:
    """White noise of RMS 1, float32 [n], the same for the same words."""
    return generator(*words).standard_normal(n, dtype=np.float32)


def fast_length(n: int) -> int:
    """The smallest 2**a * 3**b * 5**c that is at least n: lengths the FFT likes."""
    best = 1 << (n - 1).bit_length()
    three = 1
    while three < best:
        five = three
        while five < best:
            whole = five << max(0, (-(-n // five) - 1).bit_length())
            best = min(best, whole)
            five *= 5
        three *= 3
    return best


@lru_cache(maxsize=64)
def response(size: int, low: float = 0, high: float = 0, band: float = 0, q: float = 1, poles: int = 2) -> np.ndarray:
    """Frequency response, complex64 [size // 2 + 1], of a low-pass, a high-pass and a band-pass in a row; 0 is none."""
    f = np.fft.rfftfreq(size, 1 / SR)
    out = np.ones(len(f), complex)
    if low:
        out /= (1 + 1j * f / low) ** poles
    if high:
        out *= (1j * f / high / (1 + 1j * f / high)) ** poles
    if band:
        out *= (1j * f / band / q) / (1 - (f / band) ** 2 + 1j * f / band / q)
    return out.astype(np.complex64)


def filtered(x: np.ndarray, **filters: float) -> np.ndarray:
    """``x`` [..., N] through ``response(**filters)``; same length, what rings on after it is cut."""
    n = x.shape[-1]
    size = fast_length(n + 2400)  # 50 ms for the ringing, or it would come round to the start
    return np.fft.irfft(np.fft.rfft(x, size) * response(size, **filters), size)[..., :n].astype(np.float32)


def saturate(x: np.ndarray, drive: float) -> np.ndarray:
    """tanh(drive * x) / tanh(drive): 1 stays 1, what is quieter comes up."""
    return np.tanh(x * np.float32(drive)) * np.float32(1 / np.tanh(drive))


def crushed(x: np.ndarray, bits: int, hold: int) -> np.ndarray:
    """An old sampler: each ``hold``-th sample held, rounded to ``bits`` bits."""
    steps = 2.0 ** (bits - 1)
    return np.repeat(np.round(x[::hold] * steps) / steps, hold)[: len(x)].astype(np.float32)


def normalised(x: np.ndarray, peak: float = 1.0) -> np.ndarray:
    """``x`` with its largest sample at ``peak``."""
    return (x * np.float32(peak / max(float(np.abs(x).max()), 1e-9))).astype(np.float32)


def place(bus: np.ndarray, sound: np.ndarray, start: int, gain: float = 1.0) -> None:
    """Add ``sound`` * gain to ``bus`` [..., N] from sample ``start`` on; what lies outside is dropped."""
    first, last = max(start, 0), min(start + len(sound), bus.shape[-1])
    if first < last:
        bus[..., first:last] += sound[first - start : last - start] * np.float32(gain)


@lru_cache(maxsize=64)
def room(seconds: float, low: float, variant: int) -> np.ndarray:
    """Impulse response, float32 [2, N], energy 1: noise that falls by 60 dB in ``seconds``, dull above ``low`` Hz."""
    n = samples(seconds)
    tail = np.stack([noise(n, "room", variant, side) for side in (0, 1)]) * decay(n, seconds / 6.9)
    tail[:, : samples(0.008)] = 0  # the walls are some metres away
    tail = filtered(tail, low=low, high=250)
    return tail / np.sqrt(np.square(tail).sum(1, keepdims=True))


@lru_cache(maxsize=4)
def k_weight(size: int) -> np.ndarray:
    """Power response, float32 [size // 2 + 1], of ITU-R BS.1770's loudness filter: a shelf of 4 dB and a high-pass."""
    f = np.fft.rfftfreq(size, 1 / SR)
    z = np.exp(-2j * np.pi * f / SR)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    return (np.abs(shelf * high) ** 2).astype(np.float32)


def loudness(spectrum: np.ndarray, size: int, n: int) -> float:
    """LUFS of n samples whose zero-padded spectrum is [2, size // 2 + 1]; BS.1770 without its gate."""
    power = (np.abs(spectrum) ** 2 * k_weight(size)).sum() * 2 / size / n  # Parseval, both halves of the spectrum
    return float(-0.691 + 10 * np.log10(max(power, 1e-12)))
