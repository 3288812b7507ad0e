"""Pieces of a song's audio: windows that grow from a second on, and frames decoded with others as their context."""

from __future__ import annotations

import pytest
import torch

from acefast.models.v15 import vae
from acefast.models.v15.vae_tiling import windows
from tests.songs import HOP


@pytest.fixture(scope="module")
def decoder(tiny_pipe):
    return tiny_pipe.model.decoder


def latents(frames: int) -> torch.Tensor:
    return torch.randn(1, frames, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length, first, keep", [(1, 0, 2), (40, 0, 5), (100, 0, 2), (100, 33, 2), (100, 99, 1)])
def test_windows_grow_from_the_first_rows_on(length, first, keep):
    row, size = first, 23
    for i, (start, kept, end) in enumerate(windows(length, size, 9, first, keep)):
        stop = start + min(size, length)
        assert 0 <= start <= kept < end <= stop <= length and kept == row
        assert (start == 0 or kept - start >= 9) and (stop == length or stop - end >= 9)
        assert end - kept <= keep * 2**i and (end - kept == keep * 2**i or stop - end <= 9)
        row = end
    assert row == length


@torch.inference_mode()
def test_a_song_begins_with_a_second_of_its_own(decoder):
    z = latents(300)
    pieces = list(vae.decode_tiles(decoder, z))
    assert [start for start, _ in pieces] == [0, 25, 75, 175, 285]  # later ones keep 110 of 128
    assert torch.equal(torch.cat([piece for _, piece in pieces], 2), vae.decode(decoder, z).audio)


@torch.inference_mode()
@pytest.mark.parametrize("tile_frames", (19, None))
def test_frames_kept_are_those_of_the_whole(decoder, tile_frames):
    z = latents(60)
    whole = decoder(z)
    for a, b in ((0, 1), (12, 20), (30, 60), (59, 60), (0, 60)):
        starts, pieces = zip(*vae.decode_tiles(decoder, z, tile_frames, keep=(a, b)))
        audio, expected = torch.cat(pieces, 2), whole[:, :, a * HOP : b * HOP]
        assert starts[0] == a and audio.shape == expected.shape
        assert (audio - expected).norm() <= 1e-6 * expected.norm()
