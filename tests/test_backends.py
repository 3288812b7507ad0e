"""Which backend runs: argument > use_backend > environment > auto, and nothing falls back in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acefast import backends
from acefast.backends import BackendUnavailable, choose_backend, emulated, emulated_sm, use_backend
from acefast.cuda import loader
from acefast.orders import FIRST

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def all_available(monkeypatch):
    monkeypatch.setattr(backends, "why_unavailable", lambda name: "")
    monkeypatch.delenv("ACEFAST_BACKEND", raising=False)


def test_auto_takes_the_first_kernel_that_fits_the_device(all_available):
    assert choose_backend("op", None, GPU, ("cuda", "triton", "cpu")) == "cuda"
    assert choose_backend("op", None, CPU, ("cuda", "triton", "cpu")) == "cpu"
    assert choose_backend("op", None, CPU, ("cuda",)) == "reference"


@pytest.mark.parametrize("sm, first", [(80, "cuda"), (89, "cuda"), (90, "triton"), (100, "triton")])
def test_auto_takes_the_kernel_that_is_fastest_on_the_gpu(all_available, monkeypatch, sm, first):
    monkeypatch.setitem(FIRST, "op", {80: "cuda", 90: "triton"})
    with emulated(sm):
        assert choose_backend("op", None, GPU, ("triton", "cuda")) == first
        assert choose_backend("op", None, GPU, ("cuda", "triton")) == first
        assert choose_backend("op", None, GPU, ("cuda",)) == "cuda"
        assert choose_backend("op", "cuda", GPU, ("triton", "cuda")) == "cuda"
        monkeypatch.setitem(FIRST, "op/wide", {80: "triton"})
        assert choose_backend("op", None, GPU, ("triton", "cuda"), "wide") == "triton"
        assert choose_backend("op", None, GPU, ("triton", "cuda"), "narrow") == first
        assert choose_backend("another", None, GPU, ("cuda", "triton")) == "cuda"


def test_auto_skips_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(backends, "why_unavailable", lambda name: "missing" if name == "cuda" else "")
    assert choose_backend("op", None, GPU, ("cuda", "triton")) == "triton"


def test_argument_beats_context_beats_environment(all_available, monkeypatch):
    monkeypatch.setenv("ACEFAST_BACKEND", "triton")
    order = ("cuda", "triton")
    assert choose_backend("op", None, GPU, order) == "triton"
    with use_backend("cuda"):
        assert choose_backend("op", None, GPU, order) == "cuda"
        assert choose_backend("op", "reference", GPU, order) == "reference"
    assert choose_backend("op", None, GPU, order) == "triton"


def test_backend_named_for_an_op_runs_or_raises(all_available):
    with pytest.raises(BackendUnavailable, match=r"op: backend='cuda' cannot run: .*no cuda kernel.*; try backend="):
        choose_backend("op", "cuda", GPU, ("triton",))


def test_backend_in_force_leaves_ops_without_that_kernel_on_the_reference(all_available):
    with use_backend("triton"):
        assert choose_backend("op", None, GPU, ("cuda",)) == "reference"


def test_unavailable_backend_says_why(monkeypatch):
    monkeypatch.setattr(backends, "why_unavailable", lambda name: "torch sees no CUDA GPU")
    with pytest.raises(BackendUnavailable, match="torch sees no CUDA GPU"), use_backend("triton"):
        pass


def test_unknown_backend_is_refused():
    with pytest.raises(BackendUnavailable, match=r"'metal' is unknown; it is one of reference, triton"):
        choose_backend("op", "metal", CPU)


@pytest.fixture
def no_gpu(monkeypatch):
    """Triton and the kernels of both families installed, no GPU."""
    monkeypatch.setattr(backends, "_why_not_installed", lambda name: "")
    monkeypatch.setattr(backends, "_sees_gpu", lambda: False)
    for name in ("ACEFAST_BACKEND", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("index", "runs"), [(0, "reference"), (1, "triton")])
def test_kernels_run_on_the_current_gpu_alone(all_available, monkeypatch, index, runs):
    """A launch goes to the current GPU and its stream, wherever the tensors lie."""
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(backends, "_sm", lambda index: 80)
    device = torch.device("cuda", index)
    assert choose_backend("op", None, device, ("triton",)) == runs
    if runs == "triton":
        assert choose_backend("op", "triton", device, ("triton",)) == runs
    else:
        sentence = r"op: backend='triton' cannot run: its input is on cuda:0, the current GPU is cuda:1; call it within"
        with pytest.raises(BackendUnavailable, match=sentence):
            choose_backend("op", "triton", device, ("triton",))


def test_kernels_are_not_given_to_older_gpus(all_available, monkeypatch):
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backends, "_sm", backends._sm.__wrapped__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert choose_backend("op", None, GPU, ("triton",)) == "reference"
    with pytest.raises(BackendUnavailable, match="for GPUs of sm_80 or later and cuda:0 is sm_75; try"):
        choose_backend("op", "triton", GPU, ("triton",))


@pytest.mark.parametrize("device", [CPU, torch.device("meta"), torch.device("mps")])
def test_tensors_that_lie_on_no_gpu_are_not_given_to_its_kernels(all_available, monkeypatch, device):
    """Where there is a GPU, too."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    assert choose_backend("op", None, device, ("cuda", "triton")) == "reference"
    for name in ("cuda", "triton"):
        sentence = f"op: backend='{name}' cannot run: its kernels need CUDA tensors and the input is on '{device}'; try"
        with pytest.raises(BackendUnavailable, match=sentence), use_backend(name):
            choose_backend("op", None, device, ("cuda", "triton"))
        with use_backend(name):
            assert choose_backend("op", None, device, ("cpu",)) == "reference"


@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
def test_triton_runs_without_a_gpu_while_it_is_emulated(no_gpu, device):
    with emulated(90), use_backend("triton"):
        assert emulated_sm() == 90
        assert choose_backend("op", None, device, ("triton",)) == "triton"
        assert choose_backend("op", "triton", device, ("triton",)) == "triton"
        with pytest.raises(BackendUnavailable, match="torch sees no CUDA GPU"):
            choose_backend("op", "cuda", device, ("cuda",))
    assert emulated_sm() is None
    with pytest.raises(BackendUnavailable, match="torch sees no CUDA GPU"):
        choose_backend("op", "triton", device, ("triton",))


def test_cuda_kernels_are_recorded_without_a_gpu_and_with_neither_way_to_load_them(no_gpu, monkeypatch):
    monkeypatch.setattr(backends, "_why_not_installed", lambda name: "not installed")
    with loader.recorded(lambda *launch: None):
        assert choose_backend("op", "cuda", CPU, ("cuda",)) == "cuda"
    with pytest.raises(BackendUnavailable, match="op: backend='cuda' cannot run: not installed; try"):
        choose_backend("op", "cuda", CPU, ("cuda",))


def test_on_a_gpu_that_no_way_of_loading_serves_the_reasons_are_told(no_gpu, monkeypatch):
    monkeypatch.setattr(backends, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backends, "_sm", lambda index: 75)
    monkeypatch.setattr(backends, "_why_not_loaded", backends._why_not_loaded.__wrapped__)
    monkeypatch.setattr(loader, "why_unavailable", lambda sm: f"nothing for sm_{sm}")
    with pytest.raises(BackendUnavailable, match="op: backend='cuda' cannot run: nothing for sm_75; try"):
        choose_backend("op", "cuda", GPU, ("cuda",))


def test_emulation_leaves_the_choice_of_a_cpu_alone(no_gpu):
    with emulated():
        assert choose_backend("op", None, CPU, ("triton",)) == "reference"


def test_emulation_brings_no_kernels_that_are_not_installed(no_gpu, monkeypatch):
    monkeypatch.setattr(backends, "_why_not_installed", lambda name: "triton is not installed")
    with emulated(), pytest.raises(BackendUnavailable, match="triton is not installed"):
        choose_backend("op", "triton", CPU, ("triton",))


def test_emulation_ends_after_an_error(no_gpu):
    with pytest.raises(ZeroDivisionError), emulated():
        raise ZeroDivisionError
    assert emulated_sm() is None


def test_interpreting_triton_for_a_whole_process_counts_as_emulation(no_gpu, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("op", "triton", CPU, ("triton",)) == "triton" and emulated_sm() == 80


def test_context_restores_the_backend_after_an_error(all_available):
    with pytest.raises(ZeroDivisionError), use_backend("triton"):
        raise ZeroDivisionError
    assert choose_backend("op", None, GPU, ("cuda", "triton")) == "cuda"


@pytest.mark.parametrize(
    ("capability", "vendor", "flags", "bf16", "fp16"),
    [
        ("AVX512", "GenuineIntel", {"avx512f"}, False, False),
        ("AVX512", "GenuineIntel", {"avx512f", "avx512_bf16"}, False, False),  # at half the rate of fp32
        ("AVX512", "GenuineIntel", {"avx512_bf16", "amx_tile", "amx_bf16"}, True, False),
        ("AVX512", "GenuineIntel", {"amx_bf16", "amx_fp16"}, True, True),
        ("AVX512", "AuthenticAMD", {"avx512f", "avx512_bf16"}, True, False),
        ("AVX2", "AuthenticAMD", {"avx2"}, False, False),
        ("AVX512", "", set(), False, False),  # not Linux
        ("DEFAULT", "", set(), True, True),  # not x86
    ],
)
def test_which_cpus_gain_by_16_bit(monkeypatch, capability, vendor, flags, bf16, fp16):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(backends, "_cpu_vendor_and_flags", lambda: (vendor, flags))
    assert backends.cpu_multiplies.__wrapped__(torch.bfloat16) == bf16
    assert backends.cpu_multiplies.__wrapped__(torch.float16) == fp16


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads /proc/cpuinfo")
def test_linux_tells_of_its_cpu():
    vendor, flags = backends._cpu_vendor_and_flags()
    assert vendor and ("sse2" in flags) == ("AVX" in torch.backends.cpu.get_cpu_capability())
