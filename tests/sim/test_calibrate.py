"""Measured times make the judged constants: the fit, its files, the command, and the timing of kernels itself."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from acefast.cases import Case, all_cases
from acefast.cli import main
from acefast.request import RequestError
from acefast.sim import kernel_times
from acefast.sim.calibrate import BOUNDS, as_file, fastest, fit, lines, predict, read_judged, read_times, shares
from acefast.sim.roofline import JUDGED, Judged, predicted_us

TRUE = Judged(
    attention=0.5, matmul=0.6, fp32=0.5, memory=0.7, l2_gain=3.5, l2_share=0.5, launch_us=4.0, matmul_launch_us=6.0
)


def kernels(noise: float = 0.0, true: Judged = TRUE, count: int = 60) -> list[dict]:
    """Kernels of every kind and size, as they would be measured where ``true`` holds."""
    g, found = np.random.default_rng(0), []
    for i in range(count):
        dots, attention = i % 3 == 0, i % 6 == 0
        flops = 10 ** g.uniform(6, 12.5) if dots else 10 ** g.uniform(3, 10.5)
        kernel = dict(kernel=f"k{i}", flops=flops, bytes=10 ** g.uniform(4, 9), dots=dots, attention=attention)
        found.append(kernel | {"measured_us": predict(kernel, 80, true) * math.exp(noise * g.standard_normal())})
    return found


def test_constants_are_found_again_from_what_they_predict():
    fitted = fit(kernels(), 80)
    assert asdict(fitted.judged) == pytest.approx(asdict(TRUE), rel=1e-3)
    assert fitted.kept == () and fitted.after < 1e-4 < 0.3 < fitted.before


def test_noise_of_5_percent_moves_them_little():
    fitted = fit(kernels(0.05), 80)
    assert asdict(fitted.judged) == pytest.approx(asdict(TRUE), rel=0.1) and fitted.after < 0.06


def test_what_no_kernel_tells_keeps_its_value():
    fitted = fit([k for k in kernels() if not k["dots"]], 80)
    assert {*fitted.kept} == {"attention", "matmul", "matmul_launch_us"}
    for name in fitted.kept:
        assert getattr(fitted.judged, name) == getattr(JUDGED, name)
    assert fitted.judged.memory == pytest.approx(0.7, rel=1e-3)


def test_a_constant_is_found_that_bounds_no_kernel_at_first():
    """Memory at a fifth: predictions see only the arithmetic, until memory has become slow enough to show."""
    true, found = replace(JUDGED, memory=0.2), []
    for i in range(24):
        bytes = 10 ** (8 + i / 24)  # beyond L2
        ratio = 1.3 if i % 2 else 20.0  # arithmetic over memory, in time, at first
        flops = ratio * bytes / (1555e3 * JUDGED.memory) * 312e6 * JUDGED.matmul
        found.append({"kernel": f"k{i}", "flops": flops, "bytes": bytes, "dots": True})
    fitted = fit([k | {"measured_us": predict(k, 80, true)} for k in found], 80)
    assert fitted.judged.memory == pytest.approx(0.2, rel=1e-2)
    assert fitted.judged.matmul == pytest.approx(JUDGED.matmul, rel=1e-2)


def test_nothing_exceeds_its_peak():
    fitted = fit([{**k, "measured_us": k["measured_us"] / 3} for k in kernels(count=24)], 80)
    for name, (low, high) in BOUNDS.items():
        assert low * 0.999 <= getattr(fitted.judged, name) <= high * 1.001


def test_a_fit_that_is_no_better_keeps_all():
    fitted = fit(kernels(true=JUDGED), 80)
    assert asdict(fitted.judged) == pytest.approx(asdict(JUDGED), rel=1e-6) and fitted.after <= fitted.before < 1e-9


def test_shares_are_of_the_peaks():
    matmul = {"flops": 156e6, "bytes": 0, "dots": True, "measured_us": 1.0}
    assert shares(matmul, 80) == pytest.approx((0.5, 0))
    assert shares({"flops": 19.5e6, "bytes": 1555e3, "measured_us": 2.0}, 80) == pytest.approx((0.5, 0.5))


def test_predictions_use_the_constants_they_are_given():
    stream = dict(flops=0.0, bytes=1e9, sm=80, dots=False)
    assert predicted_us(**stream) == pytest.approx(1e9 / (1555e3 * 0.85) + 2)
    assert predicted_us(**stream, judged=TRUE) == pytest.approx(1e9 / (1555e3 * 0.7) + 4)
    small = stream | {"bytes": 1e7}
    assert predicted_us(**small, judged=TRUE) == pytest.approx(1e7 / (1555e3 * 3.5) + 4)
    assert predicted_us(**small, judged=replace(TRUE, l2_share=0.1)) == pytest.approx(1e7 / (1555e3 * 0.7) + 4)


def written(tmp_path, **changes) -> Path:
    path = tmp_path / "times.json"
    measured = {"schema": "acefast-kernel-times/1", "sm": 80, "gpu": "A100", "kernels": kernels(count=24)}
    path.write_text(json.dumps(measured | changes))
    return path


def test_the_command_writes_constants_and_shows_before_and_after(tmp_path, monkeypatch, capsys):
    times, out = written(tmp_path), tmp_path / "judged.json"
    monkeypatch.chdir(tmp_path)
    kept = ["--json", str(tmp_path / "again.json"), "--markdown", str(tmp_path / "o.md")]
    assert main(["bench", "--calibrate", "./judged.json", "--kernel-times", str(times), *kept]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "o.md").read_text() == text and read_times(tmp_path / "again.json") == read_times(times)
    assert text.startswith("Fitted to 24 kernels measured on sm_80; predictions were off by a factor of 1.")
    assert "| memory | 0.85 | 0.7 |" in text and "| k23 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| k7 |"))
    measured, floor, _, _, before, after, off, right = (float(cell) for cell in row.split(" | ")[1:9])
    assert off == pytest.approx(measured / before, abs=0.02) and right == pytest.approx(1, abs=0.01)
    assert 0 < floor < after
    found = read_judged(out)
    assert asdict(found) == pytest.approx(asdict(TRUE), rel=1e-2)
    told = json.loads(out.read_text())
    assert (told["sm"], told["gpu"], told["kernels"]) == (80, "A100", 24) and told["error_after"] < told["error_before"]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"schema": "x"}, "its schema is 'x', not 'acefast-kernel-times/1'"),
        ({"sm": 75}, "sm must be one of 80, 86, 89, 90, 100, 120, got 75"),
        ({"kernels": []}, "holds no measured kernels"),
        ({"kernels": [{"kernel": "a", "flops": 1, "bytes": 1}]}, "kernel 'a' needs a number as measured_us, got None"),
        ({"kernels": [{"kernel": "a", "flops": 1, "bytes": 1, "measured_us": 0}]}, "needs a number as measured_us"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, changes, sentence, capsys):
    with pytest.raises(RequestError, match=sentence):
        read_times(written(tmp_path, **changes))
    out = tmp_path / "judged.json"
    assert main(["bench", "--calibrate", str(out), "--kernel-times", str(tmp_path / "times.json")]) == 2
    assert sentence in capsys.readouterr().err and not out.exists()


def test_constants_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "judged.json"
    path.write_text(as_file(fit(kernels(count=6), 80), {"sm": 80, "kernels": []}))
    told = json.loads(path.read_text())
    del told["judged"]["memory"]
    path.write_text(json.dumps(told))
    with pytest.raises(RequestError, match="judged must have attention, fp32, l2_gain, l2_share, launch_us, matmul"):
        read_judged(path)


# -- timing ------------------------------------------------------------------------------------------------------------


def toy(log: list, size: int = 1000) -> Case:
    def launch(x, n, out):
        assert int(n) == 0  # memory without values is zero
        log.append(x.data_ptr())
        out.copy_(x * 2)

    def real(device):
        x = torch.empty(size, device=device)
        return {"x": x, "n": torch.empty(1, dtype=torch.int32, device=device), "out": torch.empty_like(x)}

    bytes = lambda given: 8 * given["x"].numel()  # noqa: E731
    return Case("toy", "c1", launch, None, real, None, ("out",), lambda given: 0, bytes)


def test_a_kernel_is_timed_on_copies_that_outgrow_l2():
    log: list[int] = []
    told = kernel_times.time_case(toy(log), torch.device("cpu"), 80)
    launches = kernel_times.ROWS * max(kernel_times.LAUNCHES, kernel_times.COPIES)
    assert len(log) == kernel_times.COPIES + launches and len(set(log)) == kernel_times.COPIES
    assert log[kernel_times.COPIES] != log[kernel_times.COPIES + 1]
    assert told["measured_us"] > 0 == told["flops"] and told["bytes"] == 8000 and told["shape"].startswith("x [1000], ")
    assert told["predicted_us"] == pytest.approx(predicted_us(0, 8000, 80, dots=False))
    log.clear()
    kernel_times.time_case(toy(log, size=1_000_000), torch.device("cpu"), 86)  # 8 MB, an L2 of 6
    assert len(set(log)) == 2


def test_a_row_tells_what_a_kernel_takes_of_a_multiprocessor():
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    (case,) = (one for one in all_cases() if one.name == "snake/tiny-bf16")
    held = kernel_times.resources(case, 80)
    assert 16 <= held["registers"] <= 255 and 1 <= held["blocks_per_sm"] <= 32
    row = {"kernel": "toy", "measured_us": 9.0, "flops": 0.0, "bytes": 1e6, "dots": False, "attention": False}
    told = lines([{**row, **held}], 80, fit([row], 80))
    assert told[-1].endswith(f"| {held['registers']} | {held['blocks_per_sm']} |") and told[-1].count("|") == 12


def test_of_twins_the_faster_one_is_fitted_to():
    told = [("op", "a", "triton", 3.0), ("op", "a", "cuda", 2.0), ("op", "b", "triton", 1.0), ("op", "b", "cuda", 4.0)]
    rows = [
        dict(zip(("kernel", "config", "family", "measured_us"), each)) for each in (*told, ("one", "a", "cuda", 9.0))
    ]
    assert [(k["config"], k["family"]) for k in fastest(rows)] == [("a", "cuda"), ("b", "triton"), ("a", "cuda")]
    assert fastest(rows[:1]) == rows[:1]


def test_measured_kernels_are_what_the_fit_reads(tmp_path):
    told = kernel_times.time_cases([toy([])], torch.device("cpu"), 80, "A100")
    path = tmp_path / "times.json"
    path.write_text(json.dumps(told))
    assert read_times(path)["kernels"][0]["kernel"] == "toy"
    assert told["kernels"][0]["passes"] in (True, False)


def test_kernels_are_timed_on_a_gpu_whose_peaks_are_known(monkeypatch):
    about = SimpleNamespace(name="Tesla T4", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(kernel_times, "as_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(kernel_times, "current", lambda device: contextlib.nullcontext())
    with pytest.raises(RequestError, match="the peaks of Tesla T4, sm_75, are not known; those of sm_80, "):
        kernel_times.time_here(lambda: (), "cuda")
    about.name, about.major, about.minor = "A100", 8, 0
    told = kernel_times.time_here(lambda: (), "cuda")
    assert told == {"schema": "acefast-kernel-times/1", "sm": 80, "gpu": "A100", "kernels": []}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_kernels_are_predicted_with_fitted_constants(tmp_path, monkeypatch, capsys):
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast import cases
    from tests.sim.toy_cases import SCALE

    monkeypatch.setattr(cases, "all_cases", lambda family: (SCALE,))
    path, found = tmp_path / "judged.json", []
    slow = kernels(true=replace(JUDGED, launch_us=40.0))
    path.write_text(as_file(fit(slow, 80), {"sm": 80, "kernels": slow}))
    for more in ([], ["--judged", str(path)]):
        assert main(["kernels", "--sm", "90", "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["predicted_us"])
    assert found[1] - found[0] == pytest.approx(38, abs=1)
