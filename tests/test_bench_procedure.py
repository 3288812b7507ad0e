"""How a case is timed, what its row tells, and what a prediction is put beside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch

from acefast.bench import cases, environment, predictions, procedure
from acefast.bench.cases import Case, Session, row, withheld
from acefast.bench.procedure import CpuClock, CudaClock, Effort, Run, figures, percentile, repeat, timed, warm_up
from acefast.nvml import Gpu, GpuLost
from acefast.request import RequestError
from tests.nvml_fake import LOST, Fails, FakeNvml

SHORT = Effort(warmup_seconds=0, runs=2, run_seconds=60)
CASE = Case("ace-step-1.5-turbo", "random", 10.0, 2, 8, 1.0, "fused", "bfloat16", "cpu")


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that goes on only when told, ``clock(seconds)``."""
    now = [100.0]
    monkeypatch.setattr(procedure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def on(seconds: float) -> None:
        now[0] += seconds

    return on


def runs(clock, *seconds: float):
    """Runs that take these seconds, the last one for ever after."""
    left = list(seconds)

    def run() -> Run:
        took = left.pop(0) if len(left) > 1 else left[0]
        clock(took)
        return Run({}, 1e3 * took)

    return run


# -- procedure ---------------------------------------------------------------------------------------------------------


def test_warm_up_ends_when_three_in_a_row_differ_by_less_than_1_percent(clock):
    told = warm_up(runs(clock, 9.0, 1.0, 1.02, 1.0, 1.005, 1.009, 5.0), Effort())
    assert told == {"runs": 6, "settled": True, "first_ms": pytest.approx(9000)}


def test_warm_up_ends_when_the_time_is_up_and_the_first_run_does_not_count(clock):
    told = warm_up(runs(clock, 500.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0), Effort(warmup_seconds=4.5))
    assert told == {"runs": 5, "settled": False, "first_ms": pytest.approx(500_000)}
    assert warm_up(runs(clock, 500.0), Effort(warmup_seconds=0))["runs"] == 1


def test_runs_end_at_their_number_or_when_the_time_is_up(clock):
    assert len(repeat(runs(clock, 0.1), Effort())) == 20
    assert len(repeat(runs(clock, 7.0), Effort())) == 5  # 35 s; the fifth began before 30
    assert len(repeat(runs(clock, 99.0), Effort(runs=3))) == 1


def test_percentiles_are_linear_between_neighbours():
    assert [percentile([4, 1, 3, 2], p) for p in (0, 50, 95, 100)] == pytest.approx([1, 2.5, 3.85, 4])
    assert percentile([7.0], 95) == 7


def test_a_run_is_cut_at_its_marks(clock):
    def once(mark):
        for stage, seconds in (("prep", 1), ("step", 2), ("step", 3), ("decode", 4)):
            clock(seconds)
            mark(stage)
        clock(5)  # counts in the total alone

    run = timed(once, CpuClock)
    assert run.stages == {"prep": [1000], "step": [2000, 3000], "decode": [4000]} and run.total == 15_000


def test_figures_are_of_stages_a_run_and_of_steps_each():
    told = figures([Run({"prep": [1.0], "step": [2.0, 4.0]}, 8.0), Run({"prep": [3.0], "step": [6.0, 8.0]}, 20.0)])
    assert {k: v["p50"] for k, v in told.items()} == {"prep": 2, "diffusion": 10, "step": 5, "total": 14}
    assert told["step"]["min"] == 2 and told["total"] == {"p50": 14, "p95": pytest.approx(19.4), "min": 8}


def test_a_gpu_is_timed_by_events_and_waited_for_before_the_end(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")
            self.at = len(log)

        def elapsed_time(self, other):
            return float(other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))

    def once(mark):
        log.extend(["prep"] * 3)
        mark("prep")
        log.append("step")
        mark("step")

    assert timed(once, CudaClock).stages == {"prep": [4.0], "step": [2.0]}
    assert log[:2] == ["wait", "record"] and log[-2:] == ["wait", "wait"]


# -- rows --------------------------------------------------------------------------------------------------------------


class Engine:
    """What calls ``once`` for a song."""

    def __init__(self, once):
        self.once = once

    def song(self, job):
        return self.once


def until(true) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def measure(engine, gpu=None):
    return Session(torch.device("cpu"), torch.bfloat16, None, 8, SHORT, gpu).measure(CASE, engine)


def test_a_row_has_rates_energy_and_the_watched_figures():
    made = [Run({"prep": [100.0], "step": [50.0] * 8, "decode": [500.0]}, 1000.0)] * 4
    watched = {"joules": 800.0, "problems": []}
    told = row(CASE, made, {"runs": 3, "settled": True, "first_ms": 1.0}, watched, None, 5)
    assert told["rtf"] == pytest.approx(1.0 / 20) and told["joules_per_audio_second"] == pytest.approx(800 / 80)
    assert told["ms"]["diffusion"]["p50"] == 400 and told["runs"] == 4 and told["peak_bytes"] == 5
    assert told["predicted_ms"] is None and told["passes"] is None


def watched(told: dict) -> dict:
    """The row of songs each of which takes two samples' time of a GPU that tells ``told``: one was taken within it."""
    library, songs = FakeNvml(told), iter(range(9))

    def once(mark) -> None:
        begun = library.at
        if next(songs):  # the first is the warm-up, which nobody watches
            until(lambda: library.at >= begun + 2)

    return measure(Engine(once), Gpu(library, "handle"))


def test_a_case_is_watched_while_it_is_measured():
    told = watched({"watts": 200.0})
    assert told["nvml"]["samples"] >= 1 and told["nvml"]["power_w"]["mean"] == 200
    throttled = watched({"reasons": 0x40})
    assert throttled["problems"] == ["the GPU was throttled: hardware thermal slowdown in 100% of the time"]
    kept = withheld(throttled)
    assert kept["withheld"] and kept["ms"] is kept["rtf"] is None and kept["problems"] and kept["model"] == CASE.model


def test_a_gpu_lost_in_a_run_is_told_as_that():

    def dying(library) -> dict:
        songs = iter(range(9))

        def dies(mark):
            if next(songs):  # the first is the warm-up
                until(lambda: library.at >= 1)  # the second sample is being taken
                raise RuntimeError("CUDA error: unspecified launch failure")

        return measure(Engine(dies), Gpu(library, "handle"))

    with pytest.raises(GpuLost, match=r"^GPU is lost$"):
        dying(FakeNvml({}, {"watts": Fails(LOST)}))
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        dying(FakeNvml())


def test_a_case_that_takes_too_much_memory_is_one_that_cannot_run():
    def dies(mark):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    told = measure(Engine(dies))
    assert told["unavailable"].startswith("the song ran out of memory when 2.00 GiB more were asked for; lower --sec")


# -- predictions -------------------------------------------------------------------------------------------------------


def predicted(tmp_path, content):
    (tmp_path / "p.json").write_text(json.dumps(content))
    return predictions.read(tmp_path / "p.json")


ABOUT = vars(CASE)


@pytest.mark.parametrize("key", ["cases", "rows", "predictions", None])
def test_a_prediction_is_for_the_case_that_it_names(tmp_path, key):
    entries = [{"model": "turbo", "seconds": s, "batch": 2, "predicted_ms": {"total": 10 * s}} for s in (10, 30)]
    predict = predicted(tmp_path, {key: entries, "device": "a100-40"} if key else entries)
    assert predict(ABOUT)["predicted_ms"] == {"total": 100} and predict({**ABOUT, "batch": 1}) is None
    assert predict(ABOUT).get("device") == ("a100-40" if key else None)
    assert predict({**ABOUT, "mode": "graph"}) and predict({**ABOUT, "mode": "eager"}) is None
    assert predict({**ABOUT, "model": "ace-step-1.5-base"}) is None


def test_stages_go_by_other_names_too(tmp_path):
    predict = predicted(tmp_path, {"predicted_ms": {"text": 1, "conditions": 2, "DiT": 80, "per step": 10, "vae": 30}})
    assert predict(ABOUT)["predicted_ms"] == {"prep": 3, "diffusion": 80, "step": 10, "decode": 30}
    assert predicted(tmp_path, {"predicted_ms": 7})(ABOUT)["predicted_ms"] == {"total": 7}


def test_the_calculator_s_answer_is_one_for_each_mode(tmp_path):
    """As bench/predict.py --json gives it: times of each stage, launches of each stage, estimates of other modes."""
    stages = {"prep": {"floor_ms": 1, "predicted_ms": 2, "eager_ms": 9}, "dit": {"floor_ms": 8, "predicted_ms": 16}}
    told = {"model": "turbo", "seconds": 10.0, "batch": 2, "steps": 8, "device": "A100", "stages": stages}
    told |= {
        "floor_ms": 10,
        "predicted_ms": 20,
        "compiled_ms": 50,
        "eager_ms": 90,
        "launches": {"prep": 9, "dit": 2336},
    }
    predict = predicted(tmp_path, told)
    ours = predict(ABOUT)
    assert ours["predicted_ms"] == {"prep": 2, "diffusion": 16, "step": 2, "total": 20} and ours["launches"] == 292
    assert ours["floor_ms"]["total"] == 10 and ours["device"] == "A100"
    assert predict({**ABOUT, "mode": "compile"})["predicted_ms"] == {"total": 50}
    assert predict({**ABOUT, "mode": "eager"})["predicted_ms"] == {"prep": 9, "total": 90}
    assert predict({**ABOUT, "steps": 4}) is None


@pytest.mark.parametrize("content", [[], {}, [{"predicted_ms": {}}], [{"predicted_ms": True}], 3])
def test_a_file_without_a_prediction_is_refused(tmp_path, content):
    with pytest.raises(RequestError, match="holds no prediction; 'predicted_ms' is the key"):
        predicted(tmp_path, content)
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        predictions.read(tmp_path / "missing.json")


def test_measured_over_predicted_passes_up_to_the_limit():
    ms = {name: {"p50": value} for name, value in (("diffusion", 135.0), ("decode", 10.0), ("total", 200.0))}
    given = {"predicted_ms": {"diffusion": 100, "decode": 10}, "floor_ms": 50, "flops": 4e12, "bytes": 2e9}
    told = predictions.beside(ms, given | {"launches": 292, "device": "a100-40"})
    assert told["measured_over_predicted"] == {"diffusion": 1.35, "decode": 1.0} and told["passes"] is True
    assert (told["floor_share"], told["tflops"], told["gb_s"], told["launches"]) == (0.25, 20.0, 10.0, 292)
    assert predictions.beside(ms, {"predicted_ms": {"diffusion": 99}})["passes"] is False
    assert predictions.beside(ms, {"predicted_ms": {"step": 1}})["passes"] is None


# -- environment -------------------------------------------------------------------------------------------------------


def test_the_environment_names_machine_versions_and_revision(monkeypatch):
    told = environment.environment(torch.device("cpu"))
    assert told["cpu"] and told["cores"] >= 1 and told["threads"] == 1 and told["torch"] == torch.__version__
    assert told["git"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", told["git"])
    assert len(told["kernel_tables"]) == 12 and "gpu_name" not in told
    monkeypatch.setattr(environment, "PACKAGE", environment.PACKAGE / "nowhere")
    assert environment.git_revision() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_package_that_only_lies_within_a_repository_has_no_revision(monkeypatch, tmp_path):
    """Such as one installed into a virtual environment there."""
    author = ["-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "package")
    assert environment.git_revision() is None
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", environment.git_revision())


def test_a_gpu_s_environment_is_what_nvml_tells_else_what_torch_knows(monkeypatch):
    about = SimpleNamespace(name="A100", major=8, minor=0, total_memory=4, uuid="1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    gpu = torch.device("cuda")
    told = environment.environment(gpu, Gpu(FakeNvml(), "handle"))
    assert told["gpu_name"] == "NVIDIA A100-SXM4-40GB" and told["pcie"] == "gen4 x8" and told["nvml"] is None
    bare = environment.environment(gpu, None, "nvidia-ml-py is not installed")
    assert bare["gpu_name"] == "A100" and bare["gpu_uuid_hash"] == told["gpu_uuid_hash"] and bare["driver"] is None
    assert bare["nvml"] == "nvidia-ml-py is not installed" and bare["gpu_sm"] == 80
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert environment.watch(gpu) == (None, "nvidia-ml-py is not installed; pip install acefast[gpu]")
    assert environment.watch(torch.device("cpu")) == (None, "")


def test_kernel_tables_hash_changes_with_a_configuration(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: spec)
    hashes = []
    for text in (
        "W = 4\nCONFIGS = {('a', 80): W}",
        "# a word\nW = 4\nCONFIGS = {('a', 80): W}",
        "W = 8\nCONFIGS = {('a', 80): W}",
    ):
        (tmp_path / "k.py").write_text(text)
        hashes.append(environment.kernel_tables())
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "k.py").write_text("X = 1")
    assert environment.kernel_tables() is None


def test_what_decides_about_a_prediction_is_in_the_case():
    assert {*predictions.KEYS} <= set(ABOUT) and cases.STAGES[-1] == "total"
