"""Measures of audio: how near to a reference, how loud, in what tempo, how bright, how repetitive, how original.

Every measure takes float numpy [2, N] (or [1, N]), full scale +-1, and where time or pitch matters the sample rate in
Hz; it computes on the CPU from numpy and torch alone, changes nothing it is given, and raises ValueError, one sentence,
for a wrong shape, too few samples, or a sample that is NaN or infinite. Each docstring gives the equation, the unit,
the range and the source.

    snr, si_sdr, multi_resolution_stft_distance, log_spectral_distance, frequency_response    against a reference
    loudness, true_peak, clipping                                                             level
    tempo, beat_strength, onset_rate                                                          rhythm
    spectral_centroid, spectral_flatness                                                      timbre
    self_similarity, originality, mel_embedding                                               against itself and others
"""

from acefast.metrics.fidelity import (
    StftDistance,
    frequency_response,
    log_spectral_distance,
    multi_resolution_stft_distance,
    si_sdr,
    snr,
)
from acefast.metrics.level import Clipping, clipping, loudness, true_peak
from acefast.metrics.rhythm import Tempo, beat_strength, onset_rate, tempo
from acefast.metrics.similarity import Originality, SelfSimilarity, mel_embedding, originality, self_similarity
from acefast.metrics.timbre import spectral_centroid, spectral_flatness

__all__ = [
    "Clipping",
    "Originality",
    "SelfSimilarity",
    "StftDistance",
    "Tempo",
    "beat_strength",
    "clipping",
    "frequency_response",
    "log_spectral_distance",
    "loudness",
    "mel_embedding",
    "multi_resolution_stft_distance",
    "onset_rate",
    "originality",
    "self_similarity",
    "si_sdr",
    "snr",
    "spectral_centroid",
    "spectral_flatness",
    "tempo",
    "true_peak",
]
