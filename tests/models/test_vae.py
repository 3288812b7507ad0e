"""Proof of acefast.models.v15.vae: diffusers' AutoencoderOobleck is the oracle, with random weights at tiny widths."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderOobleck
from torch import nn

from acefast.models.v15 import names, vae, vae_range, vae_tiling
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_layers import fold, fold_pointwise, fold_transposed

# diffusers 0.42 builds its convolutions with torch's older weight norm
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

CONFIG = VAEConfig(encoder_hidden_size=8, decoder_channels=8, decoder_input_channels=4)
FULL = VAEConfig()
HOP, LATENT = CONFIG.hop, CONFIG.decoder_input_channels
# The encoder's own fp32 error against fp64 is 1 to 2e-6 here: sums in another order may differ by as much again.
REORDERED = 3e-6


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Layers this small cost more to share than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tensors():
    """A checkpoint's tensors, well scaled: layers keep their input's size, and residual branches are small."""
    g = torch.Generator().manual_seed(0)
    shapes = names.vae_encoder_tensors(CONFIG) | names.vae_decoder_tensors(CONFIG)
    result = {}
    for name, shape in shapes.items():
        spread = 0.02 if name.endswith("bias") else 0.3 if name.endswith(("alpha", "beta")) else 1.0
        result[name] = spread * torch.randn(shape, generator=g)
        if name.endswith("weight_g"):
            gain = 2**0.5 if "conv_t1" in name else 0.2 if "res_unit" in name and "conv2" in name else 1.0
            result[name] = gain * (1 + 0.1 * result[name])
    return result


@pytest.fixture(scope="module")
def theirs(tensors):
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(CONFIG).items()}
    model = AutoencoderOobleck(**values).eval().requires_grad_(False)
    model.load_state_dict(tensors)
    return model


def build(kind, tensors, dtype=torch.float32, config=CONFIG, spectral=False):
    with torch.device("meta"):
        model = kind(config, spectral)
    table, state = kind.weight_table(config, spectral), model.state_dict()
    assert table.keys() == state.keys()
    for name, source in table.items():
        parts = [tensors[n] for n in source.names]
        tensor = source.combine(*parts) if source.combine else parts[0]
        assert tensor.shape == state[name].shape and tensor.is_contiguous(), name
        state[name] = tensor.to(source.dtype or dtype)
    model.load_state_dict(state, assign=True)
    return model.eval()


@pytest.fixture(scope="module")
def decoder(tensors):
    return build(vae.Decoder, tensors)


@pytest.fixture(scope="module")
def encoder(tensors):
    return build(vae.Encoder, tensors)


def latents(B, T, seed=1):
    return torch.randn(B, T, LATENT, generator=torch.Generator().manual_seed(seed))


def sound(B, N, seed=1):
    return 0.3 * torch.randn(B, 2, N, generator=torch.Generator().manual_seed(seed))


def first(x):
    """Channels-first to channels-last, or back."""
    return x.transpose(1, 2).contiguous()


# -- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("B, T", [(1, 1), (2, 2), (1, 37)])
def test_decoder_matches_diffusers(decoder, theirs, B, T):
    z = latents(B, T)
    audio = decoder(z)
    assert audio.shape == (B, 2, HOP * T) and audio.dtype == torch.float32 and audio.is_contiguous()
    assert relative(audio, theirs.decode(first(z)).sample) <= 1e-5


@pytest.mark.parametrize("N, T", [(1920, 1), (1921, 1), (3839, 1), (3840, 2), (25_000, 13)])
def test_encoder_matches_diffusers(encoder, theirs, N, T):
    x = sound(2, N)
    mean, std = encoder(x)
    expected = theirs.encode(x).latent_dist
    assert mean.shape == std.shape == (2, T, LATENT) and mean.dtype == std.dtype == torch.float32
    assert relative(mean, first(expected.mean)) <= 1e-5
    assert relative(std, first(expected.std)) <= 1e-5


@pytest.mark.parametrize("side", ("encoder", "decoder"))
def test_every_residual_unit_and_block_matches_diffusers(request, theirs, side):
    ours, theirs = request.getfixturevalue(side), getattr(theirs, side)
    for mine, block in zip(ours.block, theirs.block):
        units = (block.res_unit1, block.res_unit2, block.res_unit3)
        for unit, expected in zip(mine.units, units):
            x = torch.randn(2, 50, unit.conv1.weight.shape[2], generator=torch.Generator().manual_seed(2))
            assert relative(unit(x), first(expected(first(x)))) <= 1e-5
        x = torch.randn(2, 40, len(mine.snake1.alpha), generator=torch.Generator().manual_seed(3))
        if side == "encoder":
            y = mine(x)
        else:
            y = mine.conv_t1(mine.snake1(x))
            for unit in mine.units:
                y = unit(y)
        assert relative(y, first(block(first(x)))) <= 1e-5


def test_bf16_weights_stay_near_fp32(tensors, decoder):
    z = latents(1, 20)
    rounded = {n: t.bfloat16() for n, t in tensors.items()}
    exact = build(vae.Decoder, {n: t.float() for n, t in rounded.items()})(z)
    assert relative(build(vae.Decoder, rounded)(z), exact) <= 1e-5  # folded in fp32, computed in fp32
    low = build(vae.Decoder, rounded, torch.bfloat16)(z)
    assert low.dtype == torch.float32
    assert relative(low, exact) <= 0.05  # sixty roundings, through snakes that amplify


# -- neighbours: not a number spreads exactly as far as the receptive field -------------------------------------------


def poisoned_frames(audio):
    return sorted({int(n) // HOP for n in audio.isnan().any(1)[0].nonzero()})


def test_decoder_needs_nine_frames_and_not_eight(decoder):
    assert vae.Decoder(FULL).halo == decoder.halo == 9
    for frame in (0, 20, 39):
        z = latents(1, 40)
        z[0, frame] = torch.nan
        assert poisoned_frames(decoder(z)) == [*range(max(frame - 9, 0), min(frame + 10, 40))]


def test_encoder_needs_seven_frames(encoder):
    assert encoder.halo == 7
    x = sound(1, 40 * HOP)
    x[0, :, 20 * HOP] = torch.nan
    frames = encoder(x)[0].isnan().any(2)[0].nonzero().flatten().tolist()
    assert frames == [i for i in range(40) if 1920 * i - 12_165 <= 20 * HOP <= 1920 * i + 14_084]
    assert len(frames) == 14  # the sample is a frame's first: 7 frames before it, its own, and 6 after


def test_spans_of_the_encoder_hear_every_sample_they_need_and_no_more(encoder):
    lo, hi, hop, reach = 30, 60, encoder.outer_hop, encoder.outer_reach
    for sample, row in ((lo * hop - reach, lo), (hi * hop + reach - 1, hi - 1)):
        x = sound(1, HOP)
        x[0, :, sample] = torch.nan
        whole = encoder._outer(x, 0, HOP // hop)[:, lo:hi].isnan().any(2)[0]
        assert whole.nonzero().flatten().tolist() == [row - lo]
        assert torch.equal(encoder._outer(x, lo, hi).isnan().any(2)[0], whole)


@pytest.mark.parametrize("tile_frames", (19, 23))
def test_tiles_show_the_decoder_every_neighbour_it_needs(decoder, tile_frames):
    for frame in (0, 13, 39):
        z = latents(1, 40)
        z[0, frame] = torch.nan
        assert poisoned_frames(vae.decode(decoder, z, tile_frames).audio) == poisoned_frames(decoder(z))


def test_a_halo_of_eight_is_seen_to_be_short(decoder, monkeypatch):
    z = latents(1, 40)
    z[0, 2] = torch.nan  # the second tile keeps frames from 11 on and sees those from 3 on
    monkeypatch.setattr(decoder, "halo", 8)
    assert poisoned_frames(vae.decode(decoder, z, 19).audio) != poisoned_frames(decoder(z))


def test_context_frames_are_not_decoded_but_heard(decoder):
    z = latents(1, 40)
    whole = decoder(z)
    for a, b in ((0, 1), (12, 20), (39, 40), (0, 40)):
        piece = decoder(z, (a, b))
        assert piece.shape[2] == (b - a) * HOP
        assert relative(piece, whole[:, :, a * HOP : b * HOP]) <= 1e-6


@pytest.mark.parametrize("rows", (30, 241, 1000))
def test_spans_leave_no_seam(decoder, encoder, monkeypatch, rows):
    z, x = latents(2, 3), sound(2, 3 * HOP + 17)
    audio, (mean, std) = decoder(z), encoder(x)
    monkeypatch.setattr(vae, "SPAN_ROWS", rows)
    assert relative(decoder(z), audio) <= 1e-6
    assert relative(encoder(x)[0], mean) <= REORDERED and relative(encoder(x)[1], std) <= 1e-6


# -- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length, size, halo", [(1, 19, 9), (19, 19, 9), (20, 19, 9), (100, 23, 9), (41, 15, 7)])
def test_windows_have_one_size_and_keep_every_row_once(length, size, halo):
    row = 0
    for start, kept, end in vae_tiling.windows(length, size, halo):
        stop = start + min(size, length)
        assert 0 <= start <= kept < end <= stop <= length and kept == row
        assert start == 0 or kept - start >= halo
        assert stop == length or stop - end >= halo
        row = end
    assert row == length


@pytest.mark.parametrize("T", (1, 18, 19, 20, 60))
@pytest.mark.parametrize("tile_frames", (19, 24, 128, None))
def test_tiled_decoding_is_the_whole_song(decoder, T, tile_frames):
    z = latents(2, T)
    assert relative(vae.decode(decoder, z, tile_frames).audio, decoder(z)) <= 1e-6


@pytest.mark.parametrize("N", (1920, 15 * HOP, 15 * HOP + 1919, 41 * HOP + 5))
def test_tiled_encoding_is_the_whole_song(encoder, N):
    x = sound(2, N)
    for tiled, whole in zip(vae.encode(encoder, x, 15), encoder(x)):
        assert tiled.shape == whole.shape and relative(tiled, whole) <= 1e-6


def test_streamed_and_whole_have_the_same_bits(decoder):
    z = latents(1, 50)
    pieces = list(vae.decode_tiles(decoder, z, 24))
    heard = []
    audio = vae.decode(decoder, z, 24, lambda done, total: heard.append((done, total))).audio
    assert torch.equal(torch.cat([piece for _, piece in pieces], dim=2), audio)
    starts = [start for start, _ in pieces]
    assert starts[0] == 0 and heard == [(frame, 50) for frame in [*starts[1:], 50]]
    assert torch.equal(vae.decode(decoder, z, 24).audio, audio)


def test_songs_of_a_batch_do_not_meet(decoder, encoder):
    z, x = latents(3, 21), sound(3, 5 * HOP)
    assert relative(decoder(z)[1:2], decoder(z[1:2])) <= 1e-6
    assert relative(encoder(x)[0][1:2], encoder(x[1:2])[0]) <= REORDERED
    z[[0, 2]], x[[0, 2]] = torch.nan, torch.nan
    assert decoder(z)[1].isfinite().all() and encoder(x)[0][1].isfinite().all()


def test_inputs_are_not_modified_and_need_not_be_contiguous(decoder, encoder):
    z, x = latents(1, 20), sound(1, 2 * HOP)
    before = z.clone(), x.clone()
    audio, (mean, _) = decoder(z), encoder(x)
    assert torch.equal(z, before[0]) and torch.equal(x, before[1])
    assert torch.equal(decoder(first(z).transpose(1, 2)), audio)
    assert torch.equal(encoder(first(x).transpose(1, 2))[0], mean)


def test_inference_mode_gives_the_same_bits(decoder):
    z = latents(1, 20)
    with torch.inference_mode():
        assert torch.equal(vae.decode(decoder, z, 19).audio, vae.decode(decoder, z.clone(), 19).audio)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_weight_table_takes_every_tensor_of_a_full_size_checkpoint():
    for kind, shapes in (
        (vae.Encoder, names.vae_encoder_tensors(FULL)),
        (vae.Decoder, names.vae_decoder_tensors(FULL)),
    ):
        with torch.device("meta"):
            state = kind(FULL).state_dict()
        table = kind.weight_table(FULL)
        assert table.keys() == state.keys()
        assert {name for source in table.values() for name in source.names} == set(shapes)


def test_weight_norm_is_that_of_torch():
    g = torch.Generator().manual_seed(0)
    for layer, ours in ((nn.Conv1d(3, 5, 7), fold), (nn.ConvTranspose1d(3, 5, 8), None)):
        weight_v = layer.weight.detach()
        weight_g = torch.rand(len(weight_v), 1, 1, generator=g) + 0.5
        expected = torch._weight_norm(weight_v, weight_g, 0)
        actual = ours(weight_g, weight_v).transpose(1, 2) if ours else fold_transposed(weight_g, weight_v)
        if ours is None:  # [half, Cin, stride, Cout] back to [Cin, Cout, 2 * stride]
            actual = actual.view(2, 3, 4, 5).permute(1, 3, 0, 2).reshape(3, 5, 8)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


def test_a_silent_channel_folds_to_zero():
    zero = torch.zeros(2, 3, 1)
    assert torch.equal(fold_pointwise(torch.ones(2, 1, 1), zero), torch.zeros(2, 3))


def test_snake_parameters_are_the_exponentials_and_stay_finite():
    table = vae.Decoder.weight_table(CONFIG)
    log = torch.tensor([[[-40.0], [0.0], [1.5]]], dtype=torch.bfloat16)
    alpha, inv_beta = table["snake1.alpha"].combine(log), table["snake1.inv_beta"].combine(log)
    torch.testing.assert_close(alpha, log.float().exp().flatten())
    torch.testing.assert_close(inv_beta, torch.tensor([1e9, 1.0, 0.22313016]))


def test_16_bit_is_computed_in_fp32_on_a_cpu_that_is_slow_at_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(vae_range, "cpu_multiplies", lambda dtype: dtype == torch.bfloat16)
    assert vae_range.compute_dtype(torch.bfloat16, cpu) == torch.bfloat16
    assert vae_range.compute_dtype(torch.float16, cpu) == vae_range.compute_dtype(torch.float32, cpu) == torch.float32
    monkeypatch.setattr(vae_range, "cpu_multiplies", lambda dtype: False)
    assert vae_range.compute_dtype(torch.bfloat16, cpu) == torch.float32
    assert vae_range.compute_dtype(torch.bfloat16, gpu) == torch.bfloat16
    assert vae_range.compute_dtype(torch.float16, gpu) == torch.float16


# -- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named(decoder, encoder):
    with pytest.raises(ValueError, match=r"Decoder: latents must be \[B, T, latent channels\] = \[any, any, 4\]"):
        decoder(torch.ones(1, 4, 20))
    with pytest.raises(ValueError, match="Decoder: keep must be a range of the 20 frames"):
        decoder(latents(1, 20), (5, 21))
    with pytest.raises(ValueError, match=r"Encoder: audio must be \[B, channels, N\] = \[any, 2, any\]"):
        encoder(torch.ones(1, 1, 4000))
    with pytest.raises(ValueError, match="Encoder: audio must have at least one frame, 1920 samples, got 1919"):
        vae.encode(encoder, torch.ones(1, 2, 1919))
    with pytest.raises(ValueError, match="decode: tile_frames must be at least 19, got 18"):
        vae.decode(decoder, latents(1, 20), 18)
    with pytest.raises(ValueError, match="encode: tile_frames must be at least 15, got 14"):
        vae.encode(encoder, sound(1, 4000), 14)
