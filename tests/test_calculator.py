"""The calculator of bench/: sizes and sums that are known otherwise, the order of its times, published measurements."""

from __future__ import annotations

import pytest

from acefast.models.v15.config import Config, VAEConfig
from acefast.models.v15.vae import Decoder
from acefast.sim.driver import MULTIPROCESSORS
from acefast.sim.roofline import GPUS, JUDGED, predicted_us
from acefast.testing import FULL_XL
from bench.calculator import decoder, transformer
from bench.calculator.gpus import ANCHORS, DEVICES
from bench.calculator.song import MODELS, Job, compiled, latency, plan, work
from bench.calculator.work import TUNING, elementwise, matmul, matmul_seconds, window_pairs

A100 = DEVICES["a100-40"]


def ms(job: Job, kind: str, device=A100) -> dict[str, float]:
    return {stage: 1e3 * seconds for stage, seconds in latency(job, device, kind).items()}


def test_sizes_are_the_models():
    assert transformer.layer_parameters(Config()) == 62_914_560 and transformer.tokens(Config(), 6001) == 3001
    assert transformer.layer_parameters(FULL_XL) > 1.9 * transformer.layer_parameters(Config())
    assert 8 < decoder.halo(VAEConfig()) < decoder.HALO == Decoder(VAEConfig(decoder_channels=2)).halo
    assert [level[2] for level in decoder.levels(VAEConfig())] == [10, 6, 4, 4, 2]


@pytest.mark.parametrize("rows", [1, 100, 129, 500])
def test_window_pairs_are_those_one_counts(rows):
    pairs = sum(min(rows - 1, i + 128) - max(0, i - 128) + 1 for i in range(rows))
    assert window_pairs(rows, 128) == pairs


def test_overlapping_tiles_decode_each_frame_and_its_halo():
    assert decoder.decoded(1024) == (1024, 1) and decoder.decoded(1025) == (1025 + 2 * 9, 2)
    assert decoder.decoded(6000) == (6000 + 5 * 2 * 9, 6)  # five borders of nine frames on either side


def test_the_plans_launches_are_the_specifications():
    """292 a step of 2B and 388 of XL, one more with guidance; 28 a tile."""
    for model, launches in (("turbo", 292), ("xl-turbo", 388), ("base", 293), ("xl-base", 389)):
        steps, kernels = plan(Job(model, 120))["dit"]
        assert sum(k.launches for k in kernels) == launches and steps == (8 if "turbo" in model else 50)
    assert sum(k.launches for k in decoder.fused(VAEConfig(), 512, 1)) == 28


def test_work_is_the_specifications():
    counted = work(Job("turbo", 240))
    assert counted["dit"]["tflop"] == pytest.approx(77.7, abs=0.1)
    assert counted["decode"]["tflop"] == pytest.approx(29.7, abs=0.2)
    assert work(Job("turbo", 240, 8))["dit"]["tflop"] == pytest.approx(8 * counted["dit"]["tflop"])
    assert work(Job("turbo", 240), plain=True)["dit"]["gb"] > 4 * counted["dit"]["gb"]


@pytest.mark.parametrize(
    ("job", "floor", "target", "eager"),
    [
        (Job("turbo", 30), 43, 81, 401),
        (Job("turbo", 120), 176, 278, 925),
        (Job("turbo", 240), 370, 562, 2002),
        (Job("turbo", 120, 8), 1441, 2033, 7372),
        (Job("base", 120), 1543, 2091, 5379),
        (Job("xl-turbo", 240), 823, 1187, 3179),
    ],
    ids=str,
)
def test_times_are_the_specifications_table(job, floor, target, eager):
    for kind, expected in (("floor", floor), ("target", target), ("eager", eager)):
        assert ms(job, kind)["total"] == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize("device", [*DEVICES.values(), *ANCHORS.values()], ids=lambda device: device.name)
@pytest.mark.parametrize("model", MODELS)
def test_floor_target_compiled_and_eager_come_in_that_order(model, device):
    job = Job(model, 60)
    floor, target, plain = (ms(job, kind, device)["total"] for kind in ("floor", "target", "eager"))
    assert 0 < floor < target < 1e3 * compiled(job, device)["total"] < plain


def test_more_bandwidth_or_multiprocessors_are_never_slower():
    assert ms(Job("base", 120), "floor", DEVICES["a100-80"])["total"] <= ms(Job("base", 120), "floor")["total"]
    assert ms(Job("turbo", 30), "target", DEVICES["a100-80"])["total"] < ms(Job("turbo", 30), "target")["total"]


def test_a_product_takes_whole_waves():
    one = 2 * 128 * 256 * 4096 / (A100.flops() / A100.multiprocessors * 0.86)
    assert matmul_seconds(9 * 128, 12 * 256, 4096, A100) == pytest.approx(one)  # 108 tiles
    assert matmul_seconds(9 * 128 + 1, 12 * 256, 4096, A100) > 1.5 * one


def test_constants_are_those_of_the_roofline():
    """What streams, and what multiplies in one wave, takes as long as acefast.sim says."""
    streamed = elementwise("t", "copy", 1e9)
    assert 1e6 * streamed.target(A100) == pytest.approx(predicted_us(0, 1e9, 80, dots=False))
    product = matmul("t", "product", 9 * 128, 12 * 256, 4096)
    at_most = predicted_us(product.flops, product.bytes, 80, dots=True) - JUDGED.matmul_launch_us
    assert 1e6 * matmul_seconds(*product.mnk, A100) == pytest.approx(at_most * JUDGED.matmul / 0.86)
    assert DEVICES["a100-40"].gpu is GPUS[80] and DEVICES["h100"].gpu is GPUS[90]
    assert all(d.multiprocessors <= MULTIPROCESSORS[d.sm] for d in DEVICES.values())
    assert TUNING.attention[0][1] == JUDGED.attention


PUBLISHED = [  # on PyTorch or TensorRT, with other machines' hosts: name, device, job, stage, seconds
    ("2B turbo, 8 steps", "pro6000", Job("turbo", 86.8, text=70, lyrics=167, cached=True), "dit", 0.229),
    (
        "2B SFT, 50 steps unguided",
        "pro6000",
        Job("turbo", 86.8, steps=50, text=70, lyrics=167, cached=True),
        "dit",
        1.72,
    ),
    ("XL turbo, 8 steps", "pro6000", Job("xl-turbo", 86.8, text=70, lyrics=167, cached=True), "dit", 0.547),
    ("XL SFT, 50 steps", "pro6000", Job("xl-turbo", 86.8, steps=50, text=70, lyrics=167, cached=True), "dit", 3.62),
    ("decoder, tiles of 512", "pro6000", Job("turbo", 86.8), "decode", 0.275),
]


@pytest.mark.parametrize(("name", "device", "job", "stage", "seconds"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_measurements_lie_between_floor_and_a_little_above_eager(name, device, job, stage, seconds):
    """Plain PyTorch, published by others: the estimate of eager is 0.6 to 1.15 of it, and no floor is above it."""
    floor, plain = (latency(job, ANCHORS[device], kind)[stage] for kind in ("floor", "eager"))
    assert 2 * floor < seconds and 0.6 < plain / seconds < 1.15


def test_published_whole_songs_and_tensorrt_are_not_below_the_floor():
    """TensorRT's 43 ms for one forward of four songs are the floor to 2 %, of a GPU that clocks above its maker's."""
    four = Job("turbo", 60, 4, steps=1, text=70, lyrics=130)
    assert 0.98 * latency(four, ANCHORS["5090"], "floor")["dit"] < 0.043
    for device, seconds in (("a100-40", 2.0), ("3090", 10.0)):  # "under 2 s", "under 10 s" per full song
        assert latency(Job("turbo", 240), DEVICES[device], "floor")["total"] < seconds
