"""``bench/tune.py``: what it tries, drops, prefers and writes, without a GPU."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.cases import all_cases
from acefast.kernel_config import Config, pick
from acefast.sim.interpreter import interpreted
from bench import tune
from bench.tune_grids import GRIDS

TABLE = """\
# before
CONFIGS = {
    ("wide", 80): _tile(1, 2),  # a word
    ("wide", 90): _tile(
        3, 4
    ),
    ("half", 80): _tile(5, 6),
    **{("half", sm): _tile(7, 8) for sm in (86, 90)},
    ("narrow", 80): _tile(9, 9),
}
AFTER = 1
"""


def serial(function, jobs):
    return list(map(function, jobs))


def case_named(name):
    return next(case for case in all_cases() if case.name == name)


def row(us, rows=4, current=False, dropped=None):
    config = {"tiles": {"ROWS": rows}, "num_warps": 4, "num_stages": 1, "compiler": {}}
    return {"config": config, "current": current, "registers": 1, "shared_bytes": 1, "dropped": dropped, "us": us}


def table_of(source):
    """What CONFIGS of a source is, its tiles as tuples."""
    room = {"_tile": lambda *numbers: numbers}
    exec(source, room)
    return room["CONFIGS"]


@pytest.mark.parametrize(("kernel", "name"), GRIDS)
def test_candidates_are_different_configurations_of_a_class_there_is(kernel, name):
    current = tune.current_of(kernel, name, 90)
    found = tune.candidates(kernel, name, current)
    assert found[0] == current and len(found) > 2
    assert all(config not in found[:i] and set(config.tiles) == set(current.tiles) for i, config in enumerate(found))
    assert any(name == known for known, _ in importlib.import_module(f"acefast.kernels.{kernel}").CONFIGS)


def test_a_class_without_a_grid_has_other_warps_and_stages_tried():
    current = Config({"X": 3}, num_warps=4, num_stages=3)
    found = tune.candidates("no kernel", "no class", current)
    assert len(found) == 6 and {(c.num_warps, c.num_stages) for c in found} == {
        (w, s) for w in (4, 8) for s in (2, 3, 4)
    }
    assert all(c.tiles == {"X": 3} for c in found)


def test_a_grid_of_a_tile_that_the_kernel_has_not_is_refused(monkeypatch):
    monkeypatch.setitem(GRIDS, ("k", "c"), ({"BLOCKS": (1,)},))
    with pytest.raises(ValueError, match="k has no BLOCKS; it has X"):
        tune.candidates("k", "c", Config({"X": 3}))


def test_cases_are_found_by_kernel_or_name_and_grouped_by_class():
    cases = tune.selected(["residual_norm/2b-full", "snake"])
    assert {case.kernel for case in cases} == {"residual_norm", "snake"}
    grouped = tune.by_class(tune.selected(["residual_norm/2b-full"]), 90, serial)
    assert [(key, [case.config for case in of]) for key, of in grouped.items()] == [
        (("residual_norm", "wide"), ["2b-full"])
    ]
    with pytest.raises(ValueError, match="no kernel or case 'norm'"):
        tune.selected(["norm"])


def test_a_trial_launches_its_class_alone_and_leaves_the_table_as_it_was():
    kernel = importlib.import_module("acefast.kernels.residual_norm")
    before, config = kernel.CONFIGS, Config({"ROWS": 1}, num_warps=2)
    with tune.trial("residual_norm", "wide", config) as table:
        assert pick(kernel.CONFIGS, "wide", 90) is config and pick(kernel.CONFIGS, "wide", 80) is config
        assert pick(kernel.CONFIGS, "narrow", 90) == before["narrow", 80]
        assert table.asked == ["wide", "narrow"]
    assert kernel.CONFIGS is before


def test_what_does_not_compile_or_spills_is_dropped_with_its_reason(monkeypatch):
    now = pick(importlib.import_module("acefast.kernels.residual_norm").CONFIGS, "wide", 90)
    good = tune.compiled(("residual_norm/2b-full", "wide", now, 90))
    assert good["dropped"] is None and good["registers"] > 16
    bad = tune.compiled(("residual_norm/2b-full", "wide", Config({"ROWS": 3}, num_warps=4), 90))
    assert bad["dropped"].startswith("2b-full does not compile: ")
    monkeypatch.setattr(tune, "faults", lambda case, made: ["spills 8 bytes", "and more"])
    assert tune.compiled(("residual_norm/2b-full", "wide", now, 90))["dropped"] == "2b-full: spills 8 bytes"


def test_a_wrong_candidate_is_dropped_and_the_faster_of_two_rounds_counts(monkeypatch):
    case, name = case_named("residual_norm/2b-gate-norm"), "wide"
    kernel = importlib.import_module("acefast.kernels.residual_norm")
    rows = [row({}, 4, current=True), row({}, 2), row({}, 1), row({}, 8, dropped="spills")]
    times = iter([30.0, 20.0, 31.0, 19.0])
    monkeypatch.setattr(tune.kernel_times, "arguments", lambda *given: case.small(torch.Generator()))
    monkeypatch.setattr(tune.kernel_times, "copies", lambda given, sm: [given])
    monkeypatch.setattr(tune.kernel_times, "measured_us", lambda *given: next(times))

    def launch(**given):
        case.launch(**given)
        if pick(kernel.CONFIGS, name, 90)["ROWS"] == 1:
            tune.outputs_of(case, given)[0].add_(1)

    told = {key: getattr(case, key) for key in ("kernel", "config", "reference", "tolerance", "outputs")}
    wrong = SimpleNamespace(**told, launch=launch)
    with interpreted():
        tune.time_candidates(wrong, name, rows, torch.device("cpu"), 90)
    assert [r["us"] for r in rows] == [{"2b-gate-norm": 30.0}, {"2b-gate-norm": 19.0}, {}, {}]
    assert rows[2]["dropped"].startswith("2b-gate-norm: relative L2 ") and rows[3]["dropped"] == "spills"


def test_the_best_has_the_smallest_mean_share_of_the_current_time():
    rows = [row({"a": 10.0, "b": 40.0}, current=True), row({"a": 5.0, "b": 40.0}), row({"a": 5.0, "b": 20.0}, rows=2)]
    assert [tune.score(r, rows) for r in rows] == pytest.approx([1.0, 0.5**0.5, 0.5])
    assert tune.score(row({}), [row({})]) == 1.0
    text = tune.table("snake", "wide", [rows[2], row({}, dropped="spills")])
    assert "| ROWS=2, 4 warps, 1 stages | 1 | 1 | 1.000 | 5.00 | 20.00 |" in text and "| spills |" in text


def test_a_line_goes_to_its_class_where_no_other_one_overrides_it():
    want = table_of(TABLE)
    for name, sm in (("wide", 90), ("wide", 86), ("half", 90), ("half", 120), ("narrow", 80), ("new", 90)):
        changed = tune.with_line(TABLE, name, sm, "_tile(0, 0)")
        assert table_of(changed) == {**want, (name, sm): (0, 0)}
        assert "# a word" in changed and changed.startswith("# before") and changed.endswith("AFTER = 1\n")
    assert "3, 4" not in tune.with_line(TABLE, "wide", 90, "_tile(0, 0)")


@pytest.mark.parametrize(("kernel", "name"), [("conv1d", "last"), ("residual_unit", "c128"), ("residual_norm", "wide")])
def test_a_written_expression_makes_the_configuration(kernel, name):
    room = importlib.import_module(f"acefast.kernels.{kernel}")
    plain = pick(room.CONFIGS, name, 80)
    for config in (plain, Config(plain.tiles, 8, 2, {"maxnreg": 128})):
        written = tune.call(room, config)
        assert eval(written, vars(room)) == config
        assert ast.parse(written).body[0].value.func.id == (
            "_tile" if hasattr(room, "_tile") and config is plain else "Config"
        )


def test_applying_a_report_takes_the_best_that_compiles_and_gains_enough(tmp_path, monkeypatch):
    room = SimpleNamespace(__file__=str(tmp_path / "k.py"), Config=Config)
    Path(room.__file__).write_text('CONFIGS = {\n    ("a", 80): Config({}),\n    ("b", 80): Config({}),\n}\n')
    monkeypatch.setattr(tune.importlib, "import_module", lambda name: room)
    monkeypatch.setattr(tune, "selected", lambda names: [])
    case = SimpleNamespace(name="k/one")
    monkeypatch.setattr(tune, "by_class", lambda *given: {("k", "a"): [case], ("k", "b"): [case]})
    monkeypatch.setattr(tune, "compiled", lambda job: {"dropped": "spills" if job[2]["ROWS"] == 1 else None})
    gains = [row({"x": 5.0}, 1), row({"x": 6.0}, 2), row({"x": 7.0}, 8), row({"x": 10.0}, 4, current=True)]
    none = [row({"x": 9.9}, 1), row({"x": 10.0}, 4, current=True), row({}, 2, dropped="spills")]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"sm": 90, "kernels": {"k": {"a": gains, "b": none}}}))
    assert tune.apply(json.loads(report.read_text()), serial) == [
        'k, a: not Config({"ROWS": 1}, num_warps=4): spills',
        'k, a: Config({"ROWS": 2}, num_warps=4), 0.600 of the time before',
        "k, b: nothing gains 2 %",
    ]
    added = '    ("a", 90): Config({"ROWS": 2}, num_warps=4),\n'
    assert Path(room.__file__).read_text() == (
        f'CONFIGS = {{\n    ("a", 80): Config({{}}),\n{added}    ("b", 80): Config({{}}),\n}}\n'
    )


def test_compiling_alone_needs_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GRIDS, ("residual_norm", "wide"), ({"ROWS": (4,)},))
    file = tmp_path / "found.json"
    options = ["--compile-only", "--sm", "90", "--processes", "1", "--json", str(file)]
    assert tune.main(["residual_norm/2b-full", *options]) == 0
    assert "residual_norm, wide" in capsys.readouterr().out
    told = json.loads(file.read_text())
    assert told["schema"] == tune.SCHEMA and told["sm"] == 90 and told["gpu"] is None
    rows = told["kernels"]["residual_norm"]["wide"]
    assert [(r["config"]["tiles"], r["current"], r["us"], r["dropped"]) for r in rows] == [
        ({"ROWS": 4}, True, {}, None)
    ]


@pytest.mark.parametrize(("words", "told"), [([], "name a kernel"), (["nothing"], "no kernel or case 'nothing'")])
def test_a_wrong_command_is_one_sentence(words, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        tune.main(words)
    assert told in capsys.readouterr().err
