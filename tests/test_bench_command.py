"""``acefast bench``: what it prints and writes, what it refuses, and what Ctrl-C and a bad GPU leave."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from acefast import nvml
from acefast.bench import cases, command, engines, environment, procedure, weights
from acefast.cli import main
from acefast.testing import TINY, write_checkpoint
from tests.conftest import NARROW_VAE
from tests.nvml_fake import LOST, Fails, FakeNvml

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("offline")
DOCS = (Path(__file__).parents[1] / "docs/bench.md").read_text("utf-8")
FEW = ["--runs", "2", "--warmup-seconds", "0", "--dtype", "float32"]
STAGES = {"prep": 10.0, "step": 20.0, "decode": 30.0, "copy": 1.0, "finish": 1.0}


@pytest.fixture
def bench(tiny, folder):
    """``acefast bench`` of the tiny model in an empty folder: its exit code."""
    return lambda *words: main(["bench", "--model", str(tiny), *FEW, *words])


@pytest.fixture
def songs(monkeypatch):
    """Songs made at once: a function is called in their place; modes eager and fused are there, compile is not."""
    called = []

    class Engine:
        def __init__(self, path, device, dtype, backend):
            self.opened = (path, dtype, backend)

        def song(self, job):
            def once(mark):
                called.append(job)
                if act := acts.get(len(called)):
                    act()
                for stage in ("prep", *["step"] * job.steps, "decode", "copy", "finish"):
                    mark(stage)

            return once

    acts = {}

    class NoCompiler(Engine):
        def __init__(self, *_):
            raise engines.ModeUnavailable("there is no compiler")

    monkeypatch.setattr(cases, "MODES", {"fused": Engine, "eager": Engine, "compile": NoCompiler})
    called_with = type("Songs", (), {"called": called, "acts": acts})
    return called_with


@pytest.fixture
def gpu(monkeypatch):
    """Put a GPU that tells ``sequence`` in place of none: what is measured on the CPU is watched as if on it."""

    def put(*sequence, then=(), **options):
        """``then``: what the GPU tells in the second case, the third, ...; the same where they are more."""
        told = [sequence, *then]

        class Watcher(nvml.Watcher):
            def __init__(self, gpu):
                now = told.pop(0) if len(told) > 1 else told[0]
                super().__init__(nvml.Gpu(FakeNvml(*now), "handle"))

            def summary(self, begin, end):
                self.take()  # a sample falls into every window, however short
                return super().summary(begin, end + 60)

        monkeypatch.setattr(nvml, "Watcher", Watcher)
        found = nvml.Gpu(FakeNvml(*sequence, **options), "handle")
        monkeypatch.setattr(environment, "watch", lambda device: (found, ""))

    return put


def test_a_tiny_song_is_measured_end_to_end(bench, capsys):
    assert bench("--seconds", "5", "--steps", "2", "--json", "o.json", "--markdown", "o.md", "--plot", "o.png") == 0
    out, err = capsys.readouterr()
    assert err == "" and out == Path("o.md").read_text()
    report = json.loads(Path("o.json").read_text())
    (row,) = report["cases"]
    assert report["schema"] == "acefast-bench/1" and report["complete"] and not report["forced"]
    assert (row["model"], row["weights"]) == ("ace-step-1.5-turbo", "checkpoint")
    assert (row["steps"], row["guidance"], row["dtype"], row["runs"]) == (2, 1.0, "float32", 2)
    ms = {stage: figure["p50"] for stage, figure in row["ms"].items()}
    assert set(ms) == set(cases.STAGES) and all(f["min"] <= f["p50"] <= f["p95"] for f in row["ms"].values())
    parts = sum(ms[stage] for stage in ("prep", "diffusion", "decode", "copy", "finish"))
    assert 0.8 * ms["total"] < parts < 1.2 * ms["total"] and row["ms"]["step"]["min"] <= ms["diffusion"] / 2
    assert row["rtf"] == pytest.approx(ms["total"] / 5000)
    assert row["nvml"] is row["peak_bytes"] is row["joules_per_audio_second"] is None
    assert "SM MHz" not in out and re.search(r"^Measured on .+, 1 thread on \d+ cores, torch ", out)
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path().iterdir()} == {"o.json", "o.md", "o.png"}


def test_every_mode_length_and_batch_is_a_case_and_what_cannot_run_says_why(bench, songs, capsys):
    words = ["--seconds", "30,5,30", "--batch", "1,2", "--mode", "compile,fused,graph,eager"]
    assert bench(*words, "--json", "o.json") == 0
    rows = json.loads(Path("o.json").read_text())["cases"]
    assert len(rows) == 16
    assert [(r["mode"], r["seconds"], r["batch"]) for r in rows[4:6]] == [("fused", 30, 1), ("fused", 30, 2)]
    assert {r["mode"]: r["unavailable"] for r in rows} == {
        "compile": "there is no compiler",
        "graph": "CUDA graphs need a GPU and torch sees none",
        "fused": None,
        "eager": None,
    }
    assert "30 s x 2, graph: not measured, CUDA graphs need a GPU and torch sees none" in capsys.readouterr().out


def test_predictions_stand_beside(bench, songs, capsys):
    Path("p.json").write_text(json.dumps([{"seconds": 30, "predicted_ms": {"total": 1e6}, "device": "a100-40"}]))
    assert bench("--seconds", "30,5", "--predicted", "p.json", "--json", "o.json", "--plot", "o.png") == 0
    first, second = json.loads(Path("o.json").read_text())["cases"]
    assert first["predicted_ms"] == {"total": 1e6} and first["passes"] and second["predicted_ms"] is None
    out = capsys.readouterr().out
    assert "| measured/predicted |" in out and "1000000" in out and "Predicted for a100-40." in out


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Random weights of full size are tiny; the folders they are written to."""
    written = []

    def write(folder, **words):
        written.append(folder)
        assert words["layout"] == "diffusers"
        return write_checkpoint(folder, **words | {"config": TINY, "vae_config": NARROW_VAE})

    monkeypatch.setattr("acefast.testing.write_checkpoint", write)
    return written


def test_a_model_that_is_not_here_is_measured_with_random_weights(folder, songs, small, downloads, capsys):
    assert main(["bench", "--model", "base", *FEW, "--json", "o.json"]) == 0
    (row,) = json.loads(Path("o.json").read_text())["cases"]
    assert (row["model"], row["weights"], row["guidance"]) == ("ace-step-1.5-base", "random", 7.0)
    assert not small[0].exists() and not downloads  # the temporary folder is gone
    assert "Random weights of the model's size" in capsys.readouterr().out


def test_random_weights_can_be_kept(folder, songs, small):
    for _ in range(2):
        assert main(["bench", "--model", "turbo", "--weights", "kept", *FEW]) == 0
    assert len(small) == 1 and Path("kept/model_index.json").exists()
    assert main(["bench", "--model", "base", "--weights", "kept", *FEW]) == 2  # another model's lie there


def test_weights_that_are_here_are_taken_unless_random_ones_are_asked_for(folder, tiny, songs, small, monkeypatch):
    Path("models").mkdir()
    Path("models/ace-step-1.5-turbo").symlink_to(tiny)
    monkeypatch.setenv("ACEFAST_MODELS", "models")
    for more, kind in (([], "checkpoint"), (["--random"], "random")):
        assert main(["bench", "--model", "turbo", *FEW, *more, "--json", "o.json"]) == 0
        (row,) = json.loads(Path("o.json").read_text())["cases"]
        assert (row["model"], row["weights"]) == ("ace-step-1.5-turbo", kind)


def test_no_weights_are_written_for_modes_that_cannot_run(folder, small, capsys):
    assert main(["bench", "--model", "turbo", "--mode", "graph", *FEW]) == 2 and small == []
    assert capsys.readouterr().err.count("\n") == 1


def test_full_size_is_the_published_one():
    from acefast.testing import full_size

    assert full_size("turbo")["config"].num_hidden_layers == 24 and full_size("xl-base")["config"].hidden_size == 2560
    assert weights.find("demo") is not None


# -- refusals ----------------------------------------------------------------------------------------------------------

REFUSED = {
    "mode": (["--mode", "fusd"], "mode must be one of eager, compile, fused, graph, got 'fusd'; try fused"),
    "seconds": (["--seconds", "5,x"], "seconds must be a number of at least 1, got 'x'"),
    "too short": (["--seconds", "3"], "duration"),
    "batch": (["--batch", "0"], "batch must be a whole number of at least 1, got '0'"),
    "runs": (["--runs", "1.5"], "runs must be a whole number of at least 1, got '1.5'"),
    "steps": (["--steps", "999"], "steps"),
    "infinite": (["--run-seconds", "inf"], "run-seconds must be a number of at least 0, got 'inf'"),
    "json": (["--json", "missing/o.json"], "the folder 'missing' does not exist"),
    "plot": (["--plot", "o.jpg"], "draws a PNG"),
    "same file": (["--json", "o", "--markdown", "o"], "--json, --markdown and --plot must name different files"),
    "predicted": (["--predicted", "no.json"], "predicted: 'no.json' cannot be read: No such file"),
    "device": (["--device", "tpu"], "device"),
    "option": (["--sekonds", "3"], "unknown option --sekonds; the nearest known one is --seconds"),
    "graph alone": (
        ["--mode", "graph"],
        "nothing could be measured; graph: CUDA graphs need a GPU",
    ),
    "compile alone": (["--mode", "compile"], "nothing could be measured; compile: there is no compiler"),
    "calibrate": (["--calibrate", "j.json"], "kernels are measured on a GPU and the device is 'cpu'; give"),
    "calibrate over itself": (
        ["--calibrate", "j.json", "--json", "./j.json"],
        "--calibrate, --json, --markdown and --plot must name different files",
    ),
    "a picture of kernels": (["--calibrate", "j.json", "--plot", "o.png"], "--plot has no use with --calibrate"),
    "kernels alone": (["--kernel-times", "t.json"], "--kernel-times has no use without --calibrate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_sentence(bench, songs, capsys, name):
    arguments, sentence = REFUSED[name]
    if "--calibrate" in arguments:
        arguments = [*arguments, "--device", "cpu"]
    assert bench(*arguments) == 2 and songs.called == []
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("acefast: ") and err.count("\n") == 1 and out == ""
    assert list(Path().iterdir()) == []


def test_a_model_that_nobody_knows_is_exit_code_3(folder, capsys):
    assert main(["bench", "--model", "nonsense"]) == 3 and "nonsense" in capsys.readouterr().err


# -- GPUs that nothing can be measured on ------------------------------------------------------------------------------


def test_a_calm_gpu_is_reported(bench, songs, gpu):
    gpu({"watts": 200.0})
    assert bench("--json", "o.json") == 0
    (row,) = json.loads(Path("o.json").read_text())["cases"]
    assert row["problems"] == [] and row["nvml"]["power_w"]["max"] == 200


def test_a_shared_gpu_is_refused_before_anything_is_measured(bench, songs, gpu, capsys):
    gpu(pids=(1, 2))
    assert bench("--json", "o.json") == 4 and songs.called == []
    assert capsys.readouterr().err.startswith(
        "acefast: bench: the GPU is shared with 1 other process, and nothing that"
    )
    assert list(Path().iterdir()) == []


THROTTLED = {"reasons": 0x4}


def test_a_throttled_case_is_not_reported_and_the_others_are(bench, songs, gpu, capsys):
    gpu(then=[[THROTTLED]])
    assert bench("--seconds", "30,60", "--json", "o.json", "--plot", "o.png") == 4
    out, err = capsys.readouterr()
    first, second = json.loads(Path("o.json").read_text())["cases"]
    assert first["ms"] and second["ms"] is second["rtf"] is None and second["withheld"]
    assert "60 s x 1, fused is not reported: the GPU was throttled: software power cap in 100% of the time; " in err
    assert "--force" in err and "no figures, the GPU was throttled" in out


@pytest.fixture
def throttled(gpu):
    gpu(THROTTLED)


def test_a_throttled_gpu_alone_leaves_no_report(bench, songs, throttled, capsys):
    assert bench("--json", "o.json", "--plot", "o.png") == 4
    out, err = capsys.readouterr()
    assert out == "" and "is not reported: the GPU was throttled" in err and list(Path().iterdir()) == []


def test_force_reports_all_the_same_and_says_so(bench, songs, throttled, capsys):
    assert bench("--force", "--json", "o.json", "--plot", "o.png") == 0
    out = capsys.readouterr().out
    report = json.loads(Path("o.json").read_text())
    assert report["forced"] and report["cases"][0]["ms"] and report["cases"][0]["problems"]
    assert out.startswith("**Not to be relied on**: reported by force") and "the GPU was throttled" in out


def test_a_gpu_lost_midway_ends_the_work_and_what_was_measured_is_reported(bench, songs, gpu, capsys):
    gpu(then=[[{"watts": Fails(LOST)}]])
    assert bench("--seconds", "30,60,90", "--json", "o.json") == 4
    assert "the GPU was lost: GPU is lost; 1 of 3 cases had been measured, and they alone" in capsys.readouterr().err
    report = json.loads(Path("o.json").read_text())
    assert not report["complete"] and [bool(row["ms"]) for row in report["cases"]] == [True, False]


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_reports_the_cases_that_were_finished(bench, songs, capsys):
    songs.acts[5] = lambda: signal.raise_signal(signal.SIGINT)  # three runs a case
    assert bench("--seconds", "5,10,15", "--json", "o.json", "--plot", "o.png") == 130
    out, err = capsys.readouterr()
    assert err == "acefast: bench: interrupted; 1 of 3 cases had been measured, and they alone are reported\n"
    report = json.loads(Path("o.json").read_text())
    assert not report["complete"] and [row["seconds"] for row in report["cases"]] == [5]
    assert out.startswith("**Incomplete**") and {p.name for p in Path().iterdir()} == {"o.json", "o.png"}


def test_ctrl_c_before_the_first_case_is_finished_leaves_nothing(bench, songs, small, capsys):
    songs.acts[2] = lambda: signal.raise_signal(signal.SIGINT)
    assert main(["bench", "--model", "turbo", *FEW, "--json", "o.json"]) == 130
    out, err = capsys.readouterr()
    assert err == "acefast: bench: interrupted; nothing was measured and no file is written\n" and out == ""
    assert list(Path().iterdir()) == [] and not small[0].exists()


def test_ctrl_c_while_writing_leaves_what_was_there(bench, songs, monkeypatch, capsys):
    Path("o.json").write_text("older")
    monkeypatch.setattr(command, "_draw", lambda *_: signal.raise_signal(signal.SIGINT))
    assert bench("--json", "o.json", "--plot", "o.png") == 130
    assert capsys.readouterr().err == "acefast: interrupted; no unfinished file is left\n"
    assert Path("o.json").read_text() == "older" and [p.name for p in Path().iterdir()] == ["o.json"]


@pytest.mark.parametrize("load", [0.4, 7.5])
def test_a_busy_machine_is_told(bench, songs, monkeypatch, capsys, load):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    assert bench("--json", "o.json") == 0
    assert ("The machine was busy (7.5 processes ran in the minute" in capsys.readouterr().out) == (load > 1)
    assert json.loads(Path("o.json").read_text())["environment"]["load"] == load


def test_quiet_prints_nothing(bench, songs, capsys):
    assert bench("--quiet", "--json", "o.json") == 0 and capsys.readouterr() == ("", "")


def test_progress_is_told_on_a_terminal(bench, songs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert bench() == 0
    assert "fused: warming up\n" in capsys.readouterr().err


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_document_names_every_key(bench, songs, throttled):
    assert bench("--force", "--json", "o.json") == 0
    report = json.loads(Path("o.json").read_text())
    (row,) = report["cases"]
    gpu_facts = {"gpu_name", "gpu_uuid_hash", "gpu_sm", "gpu_memory", "cuda", "driver", "ecc", "mig", "persistence"}
    gpu_facts |= {"pcie", "pcie_max", "nvml"}
    blocks = (report, report["environment"], gpu_facts, report["procedure"], row, row["ms"], row["nvml"], ["withheld"])
    found = [key for block in blocks for key in block]
    assert [key for key in found if f"`{key}`" not in DOCS] == []
    assert set(vars(procedure.Effort())) <= set(report["procedure"]) and torch.__version__ in str(report)
