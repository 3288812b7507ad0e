"""How long the tiles of a song and of a stream are: acefast.models.v15.vae_tiling."""

from __future__ import annotations

import pytest
import torch

from acefast.models.v15 import vae, vae_tiling
from acefast.models.v15.config import VAEConfig


def test_tiles_take_at_most_a_sixth_of_a_gpus_memory():
    with torch.device("meta"):
        coders = [kind(VAEConfig()).half() for kind in (vae.Decoder, vae.Encoder)]
    sizes = {
        (1, 40): 1024,
        (8, 40): 512,
        (8, 80): 1024,
        (1, 8): 512,
        (8, 12): 128,
        (8, 4): 128,
    }  # the last does not fit
    for coder in coders:
        assert 1.5e9 < vae_tiling.arena_bytes(coder.levels(1024), 1, torch.float16) < 1.52e9
        for (batch, gb), frames in sizes.items():
            assert vae_tiling.frames_that_fit(coder, batch, gb << 30) == frames, (batch, gb)


@pytest.mark.parametrize("length", (96, 97, 130, 250, 750, 1024, 1025, 1030, 3000, 6000, 15_000))
def test_tiles_are_of_few_lengths_and_hardly_longer_than_needed(length):
    size = vae_tiling.even_size(length, 1024, 9)
    count = len([*vae_tiling.windows(length, size, 9)])
    assert size <= min(length, 1024) and size % 32 == 0 and (size - 32 - 18) * count + 18 < length
    needed = len([*vae_tiling.windows(length, 1024, 9)])
    assert count == (2 if length < 1024 and length % 32 else needed)


def test_a_song_too_short_for_two_tiles_is_one():
    assert [vae_tiling.even_size(length, 1024, 9) for length in (1, 31, 50)] == [1, 31, 50]


@pytest.mark.parametrize("length, first, stop", [(15_000, 0, 15_000), (750, 0, 750), (200, 0, 200), (60, 0, 60)])
def test_a_streams_tiles_grow_in_fixed_sizes(length, first, stop):
    check_growing(length, first, stop)


@pytest.mark.parametrize("length, first, stop", [(850, 100, 816), (850, 0, 1), (850, 849, 850), (130, 120, 125)])
def test_so_do_those_of_a_segment(length, first, stop):
    check_growing(length, first, stop)


def check_growing(length, first, stop, halo=9):
    found, at = [*vae_tiling.growing(length, (128, 256, 512, 1024), halo, first, stop)], first
    for i, (start, size, begin, end) in enumerate(found):
        assert begin == at < end <= stop and 0 <= start <= begin and end <= start + size <= length
        assert (start == 0 or begin - start >= halo) and (start + size == length or start + size - end >= halo)
        assert size in (128, 256, 512, 1024, length) and size <= 128 << i
        at = end
    assert at == stop
    sizes = [window.size for window in found]
    left = min(stop + halo, length) - max(found[-1].first - halo, 0)
    assert not [n for n in (128, 256, 512, 1024) if left <= n < sizes[-1]]  # no shorter one would do
    assert sizes[:-1] == [128, 256, 512, *[1024] * 99][: len(sizes) - 1] and sizes[0] == min(128, length)


def test_on_the_kernels_a_stream_is_heard_soon_and_a_song_is_not_delayed(monkeypatch):
    monkeypatch.setattr(vae_tiling, "on_kernels", lambda coder: True)
    monkeypatch.setitem(vae_tiling.TILE_FRAMES, "decode", 512)  # as if a GPU had the memory
    with torch.device("meta"):
        decoder = vae.Decoder(VAEConfig())
    assert [w.size for w in vae_tiling.tiles("decode", decoder, 1, 3000, None, soon=True)][:4] == [128, 256, 512, 512]
    assert {w.size for w in vae_tiling.tiles("decode", decoder, 1, 3000, None)} == {448}
    assert {w.size for w in vae_tiling.tiles("decode", decoder, 1, 3000, 50, soon=True)} == {50}
