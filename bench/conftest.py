"""Fixtures of the op benchmarks: ``pytest bench -k snake``. Each run is held to the reference before it is timed."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BACKENDS, BackendUnavailable, why_unavailable
from acefast.sim.roofline import floor_us, predicted_us

ROWS = pytest.StashKey[list[tuple[str, float, float, float]]]()  # name, then microseconds
GATE = {torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 2e-3}  # relative L2 against the reference


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where ops run")
    parser.addoption("--dtype", default="bfloat16", help="dtype of the inputs: bfloat16, float16 or float32")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash.get(ROWS, []):
        width = max(len(row[0]) for row in rows)
        terminalreporter.section("medians here beside an A100's floor and target, which are predicted, in us")
        terminalreporter.write_line(f"{'':{width}} {'measured':>12} {'floor':>10} {'target':>10}")
        for name, *times in rows:
            terminalreporter.write_line(f"{name:{width}} {times[0]:12.1f} {times[1]:10.2f} {times[2]:10.2f}")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if reason := why_unavailable(request.param):
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture
def op_benchmark(benchmark, device: torch.device, request: pytest.FixtureRequest):
    """Time ``op(*args, backend=backend)``; the record gets what the counted bytes and tensor-core flops say.

    That is GB/s and TFLOP/s as measured, and the microseconds an A100 would need: at its peaks (floor), and at what a
    good kernel reaches of them (target); the end of the run shows them beside what was measured. A backend that has no
    kernel for the op or its input is skipped.
    """

    def run(op, *args, reference, backend: str, bytes: int = 0, flops: int = 0, **kwargs) -> None:
        def call():
            out = op(*args, backend=backend, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return out

        with torch.inference_mode():
            try:
                found = _tensors(call())
            except BackendUnavailable as error:
                pytest.skip(str(error))
            for got, want in zip(found, _tensors(reference(*args, **kwargs))):
                error = (got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)
                assert error <= GATE.get(got.dtype, 0.0), f"relative L2 {error:.1e} against the reference"
            benchmark(call)
        if benchmark.stats is None:  # --benchmark-disable: checked, not timed
            return
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {"device": str(device), "backend": backend}
        if bytes:
            benchmark.extra_info["GB/s"] = round(bytes / seconds / 1e9, 2)
        if flops:
            benchmark.extra_info["TFLOP/s"] = round(flops / seconds / 1e12, 4)
        if bytes or flops:
            counted = {"flops": flops, "bytes": bytes, "sm": 80, "dots": bool(flops)}
            benchmark.extra_info["A100 floor, us (predicted)"] = round(floor_us(**counted), 1)
            benchmark.extra_info["A100 target, us (predicted)"] = round(predicted_us(**counted), 1)
            request.config.stash[ROWS].append(
                (benchmark.name, 1e6 * seconds, floor_us(**counted), predicted_us(**counted))
            )

    return run


def _tensors(out) -> tuple[torch.Tensor, ...]:
    return (out,) if isinstance(out, torch.Tensor) else tuple(t for t in out if t is not None)
