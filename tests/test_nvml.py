"""The NVML watcher, against a library object that replays recorded sequences, and where there is no NVML."""

from __future__ import annotations

import os
import sys
import time

import pytest

from acefast import nvml
from acefast.nvml import Gpu, NvmlUnavailable, Watcher, joules, open_gpu
from tests.nvml_fake import LIBRARY_NOT_FOUND, LOST, NO_PERMISSION, NOT_SUPPORTED, TIMEOUT, Fails, FakeNvml


def replay(*sequence: dict, samples: int | None = None, **options) -> tuple[Watcher, dict]:
    """Watch a GPU that tells ``sequence``, a sample each 50 ms from time 1 on: the watcher and its summary."""
    times = iter(1 + i / 20 for i in range(1000))
    watcher = Watcher(Gpu(FakeNvml(*sequence, **options), "handle"), clock=lambda: next(times))
    for _ in range(len(sequence) if samples is None else samples):
        watcher.take()
    return watcher, watcher.summary(0, 100)


def test_a_calm_gpu_has_figures_and_no_problem():
    _, told = replay(*({"watts": watts, "celsius": 50 + i} for i, watts in enumerate((200.0, 300.0, 400.0))))
    assert told["problems"] == [] and told["missing"] == {} and told["samples"] == 3
    assert told["power_w"] == {"min": 200, "mean": 300, "max": 400} and told["celsius"]["max"] == 52
    assert told["sm_mhz"]["mean"] == 1410 and told["memory_mhz"]["min"] == 1593 and told["limit_w"]["max"] == 400
    assert told["memory_bytes"]["max"] == 10**9 and told["utilisation"]["mean"] == 98
    assert told["throttled"] == {} and told["others"] == told["ecc_corrected"] == told["ecc_uncorrected"] == 0


def test_only_the_samples_of_the_window_count():
    watcher, _ = replay({"watts": 100.0}, {"watts": 300.0}, {"watts": 500.0}, {"watts": 900.0})
    told = watcher.summary(1.04, 1.11)
    assert told["samples"] == 2 and told["power_w"] == {"min": 300, "mean": 400, "max": 500}


def test_another_process_counts_whenever_it_was_seen():
    """They are looked for with every twentieth sample only, of which a short window may have none."""
    watcher, _ = replay({}, {}, {}, pids=(os.getpid(), 7))
    told = watcher.summary(1.04, 1.11)
    assert told["samples"] == 2 and told["others"] == 1 and "shared with 1 other process" in told["problems"][0]


def test_a_window_without_a_sample_is_a_problem():
    watcher, _ = replay({}, {})
    told = watcher.summary(50, 60)
    assert told["problems"] == ["it was over before the GPU could be looked at"]
    assert told["sm_mhz"] is told["throttled"] is told["joules"] is None


def test_energy_is_the_integral_of_power():
    assert joules([(0, 100.0), (1, 300.0), (3, 300.0)], 3) == pytest.approx(200 + 600)  # trapezoids, uneven
    assert joules([(0, 100.0), (1, None), (2, 300.0)], 2) == pytest.approx(400)  # a gap is bridged
    assert joules([(1, 200.0), (2, 200.0)], 4) == pytest.approx(800)  # the ends are taken at the mean
    assert joules([(1, 200.0)], 4) is None and joules([], 4) is None and joules([(0, None), (1, None)], 1) is None


@pytest.mark.parametrize("bit, reason", nvml.THROTTLES.items())
def test_every_throttle_reason_is_a_problem(bit, reason):
    _, told = replay({}, {"reasons": bit}, {"reasons": bit | nvml.IDLE}, {})
    assert told["throttled"] == {reason: 0.5}
    assert told["problems"] == [f"the GPU was throttled: {reason} in 50% of the time"]


def test_the_reasons_that_count_are_these():
    assert {*nvml.THROTTLES} == {0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0x200, 0x400}


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x100], ids=["idle", "clocks set by a user", "display"])
def test_what_is_no_throttling_is_no_problem(bits):
    assert replay({"reasons": bits}, {})[1]["problems"] == []


@pytest.mark.parametrize("which, name", [("sm", "SM"), ("memory", "memory")])
def test_a_clock_that_falls_below_95_percent_of_its_mean_is_a_problem(which, name):
    _, told = replay(*[{which: 1400}] * 19, {which: 1300})  # the mean is 1395, 95 % of it 1325.25
    assert told["problems"] == [f"the {name} clock fell to 1300 MHz, below 95% of its mean 1395"]
    assert replay(*[{which: 1400}] * 19, {which: 1330})[1]["problems"] == []
    assert replay(*[{which: 1400}] * 19, {which: 300, "reasons": nvml.IDLE})[1]["problems"] == []  # at rest


def test_errors_that_come_are_counted_and_those_not_corrected_are_a_problem():
    _, told = replay({"ecc": (5, 2)}, {"ecc": (6, 2)})
    assert (told["ecc_corrected"], told["ecc_uncorrected"], told["problems"]) == (1, 0, [])
    _, told = replay({"ecc": (5, 2)}, {"ecc": (5, 3)})
    assert told["ecc_uncorrected"] == 1 and told["problems"] == ["memory had 1 uncorrected ECC errors"]


def test_what_a_gpu_does_not_tell_is_none_and_is_not_asked_again():
    gone = Fails(NOT_SUPPORTED)
    watcher, told = replay(*[dict(watts=gone, ecc=gone, reasons=gone, busy=gone)] * 3)
    assert told["power_w"] is told["joules"] is told["throttled"] is told["ecc_uncorrected"] is None
    assert told["problems"] == [] and told["sm_mhz"]["mean"] == 1410
    assert told["missing"] == {
        name: "Not Supported" for name in ("power_w", "reasons", "utilisation", "ecc_corrected", "ecc_uncorrected")
    }
    assert watcher.gpu.library.asked.count("watts") == 1


def test_a_driver_that_permits_little_says_so():
    _, told = replay(*[dict(watts=Fails(NO_PERMISSION), memory=Fails(NO_PERMISSION))] * 2, pids=Fails(NO_PERMISSION))
    assert told["missing"] == dict.fromkeys(("memory_mhz", "power_w", "others"), "Insufficient Permissions")
    assert told["others"] is None and told["problems"] == []


def test_a_sample_that_fails_in_passing_is_left_out():
    watcher, told = replay({"watts": 100.0}, {"watts": Fails(TIMEOUT)}, {"watts": 300.0})
    assert told["power_w"] == {"min": 100, "mean": 200, "max": 300} and told["missing"] == {}
    assert watcher.gpu.library.asked.count("watts") == 3


def test_an_old_library_lacks_a_function(monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetTotalEccErrors")
    assert "nvmlDeviceGetTotalEccErrors" in replay({}, {})[1]["missing"]["ecc_corrected"]


def test_a_gpu_lost_midway_ends_the_sampling_and_is_a_problem():
    watcher, told = replay({}, {}, {"watts": Fails(LOST)}, {}, samples=2)
    assert not watcher.take() and watcher.lost == "GPU is lost" and len(watcher.samples) == 2
    told = watcher.summary(0, 100)
    assert told["problems"] == ["the GPU was lost: GPU is lost"] and told["joules"] is None


@pytest.mark.parametrize(
    "pids, others",
    [((os.getpid(),), 0), ((os.getpid(), 7), 1), ((7,), 0), ((7, 8, 9), 2), ((), 0)],
    ids=["alone", "shared", "alone in a container", "shared, in a container", "none told"],
)
def test_other_processes_are_a_problem(pids, others):
    _, told = replay({}, pids=pids)
    assert told["others"] == others
    ending = "es" * (others > 1)
    assert told["problems"] == ([f"the GPU is shared with {others} other process{ending}"] if others else [])


def test_facts_of_the_gpu():
    gpu = open_gpu("GPU-1", library=FakeNvml())
    facts = gpu.facts()
    assert facts["name"] == "NVIDIA A100-SXM4-40GB" and facts["driver"] == "570.86"
    assert (facts["pcie"], facts["pcie_max"]) == ("gen4 x8", "gen4 x16")
    assert facts["ecc"] is False and facts["persistence"] is True and facts["mig"] is None  # ECC is only pending
    assert len(facts["uuid_hash"]) == 12 and "GPU" not in facts["uuid_hash"]


def test_a_gpu_is_found_by_its_uuid_else_by_its_pci_address():
    assert open_gpu("GPU-2", "00000000:65:00.0", FakeNvml()).handle == "handle"
    with pytest.raises(NvmlUnavailable, match=r"^NVML does not know the GPU GPU-2: Not Found$"):
        open_gpu("GPU-2", "", FakeNvml())


def test_without_a_driver_or_without_the_library_it_says_why(monkeypatch):
    with pytest.raises(NvmlUnavailable, match=r"^NVML cannot be started: NVML Shared Library Not Found$"):
        open_gpu("GPU-1", library=FakeNvml(starts=LIBRARY_NOT_FOUND))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match=r"^nvidia-ml-py is not installed; pip install acefast\[gpu\]$"):
        open_gpu("GPU-1")


def test_the_thread_samples_at_its_rate_until_the_block_ends():
    with Watcher(Gpu(FakeNvml(), "handle"), hertz=100) as watcher:
        begin = time.perf_counter()
        while len(watcher.samples) < 11 and time.perf_counter() < begin + 20:
            time.sleep(0.01)
    count = len(watcher.samples)
    time.sleep(0.05)
    took = watcher.samples[10]["time"] - watcher.samples[0]["time"]
    assert len(watcher.samples) == count >= 11 and took > 0.09  # ten periods of 10 ms, less what the first one took


def test_a_mistake_in_the_thread_is_raised_where_the_block_ends(monkeypatch):
    monkeypatch.setattr(Gpu, "sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), Watcher(Gpu(FakeNvml(), "handle")):
        pass


def test_the_real_library_has_every_name_and_none_of_it_runs_here_without_a_driver():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = {n for n in vars(FakeNvml) if n.startswith(("nvml", "NVML"))}
    assert {n for n in names if not hasattr(pynvml, n)} == set()
    assert (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_CLOCK_SM) == (15, 3, 1)
    words = ("SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert [getattr(pynvml, f"nvmlClocksThrottleReason{word}") for word in words] == [*nvml.THROTTLES][:6]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(NvmlUnavailable, match="NVML cannot be started"):
            open_gpu("GPU-1")
