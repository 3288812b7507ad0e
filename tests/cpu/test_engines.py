"""Each engine of csrc/cpu against sums in fp64, built with the sanitizers; AMX also on a CPU that has none; then with a
fault put in."""

from __future__ import annotations

import shutil

import pytest

from tests.cpu.programs import CHECKS, CSRC, HERE, build, needs, run

STAND_IN = ("-DCOUNTED", "-include", str(HERE / "amx.h"))  # compiled for AVX-512, and no instruction of AMX in it
ENGINES = {  # source, instructions, what is tested
    **{f"fp32-{level}": ("fp32", level, f"ENGINE={level}::fp32_engine") for level in ("portable", "avx2", "avx512")},
    **{f"int8-{level}": ("int8", level, f"ENGINE8={level}::int8_engine") for level in ("portable", "avx2", "avx512")},
    "bf16": ("bf16", "bf16", "ENGINE=bf16_engine"),
    "vnni": ("vnni", "bf16", "ENGINE8=vnni_engine"),
    "amx": ("amx", "amx", "ENGINE=amx_engine"),
    "amx8": ("amx", "amx", "ENGINE8=amx8_engine"),
}


def program(folder, engine, *, stand_in=False, file="", old="", new=""):
    """The program of an engine, with ``new`` for the only ``old`` of a file of csrc/cpu."""
    source, isa, tested = ENGINES[engine]
    isa = "bf16" if stand_in else isa
    needs(isa)
    copy = folder / f"engine_{source}.cpp"
    shutil.copy(CSRC / "cpu" / copy.name, copy)
    if file:
        text = (CSRC / "cpu" / file).read_text()
        assert text.count(old) == 1, old
        (folder / file).write_text(text.replace(old, new))
    options = (*(STAND_IN if stand_in else ()), f"-D{tested}", f'-DSOURCE="{copy}"', f"-I{folder}", f"-I{CSRC}/cpu")
    return build(folder / "program", "engines.cpp", isa, *CHECKS, *options)


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_are_right_at_every_size_and_nothing_else_is_read_or_written(engine, tmp_path):
    assert run(program(tmp_path, engine)) == ""


@pytest.mark.parametrize("engine", ("amx", "amx8"))
def test_amx_as_the_manual_describes_it_loads_as_many_tiles_as_it_multiplies(engine, tmp_path):
    assert run(program(tmp_path, engine, stand_in=True)) == ""


TWICE = "_tile_loadd(6, b, 4 * COLUMNS);\n      _tile_loadd(6, b, 4 * COLUMNS);\n      _tile_loadd(7"
FAULTS = {  # engine, file, what is there, what is put there
    "a tap's weights are those before": ("fp32-portable", "engine_fp32.cpp", "b += length", "b += (t == 0) * length"),
    "a column that is none": ("fp32-portable", "engine_fp32.cpp", "j < n ? value(w[j", "j <= n ? value(w[j"),
    "a row's last part has the length of others": ("fp32-avx2", "engine_fp32.cpp", "K - k < CHUNK ?", "K - k < 0 ?"),
    "the second k of a pair is the first": ("int8-avx2", "engine_int8.cpp", "2L + k % 2]", "2L]"),
    "a part of a row begins where the first does": ("int8-portable", "engine_int8.cpp", "+ k + i]", "+ i]"),
    "one row for another": ("bf16", "engine_bf16.cpp", "r % 3 * stride + k", "r % 2 * stride + k"),
    "the last k is left out": ("bf16", "packing.h", "k + 1 < valid ?", "k + 2 < valid ?"),
    "columns that are none": ("bf16", "packing.h", "n >= 32 ? ~0u : (1u << n) - 1", "~0u"),
    "unsigned rows, signed columns": ("vnni", "engine_vnni.cpp", "low[r], first, all)", "low[r], all, first)"),
    "columns that are not offset": ("vnni", "engine_vnni.cpp", "char(0x80)", "0"),
    "rows that are none": ("amx", "engine_amx.cpp", "count < 16 ? count : 16,", "16,"),
    "the first rows twice": ("amx", "engine_amx.cpp", "a + 16 * stride + t", "a + t"),
    "the first columns twice": ("amx", "engine_amx.cpp", "_tile_dpbf16ps(1, 4, 7)", "_tile_dpbf16ps(1, 4, 6)"),
    "a tile by itself": ("amx", "engine_amx.cpp", "_tile_dpbf16ps(2, 5, 6)", "_tile_dpbf16ps(2, 5, 5)"),
    "columns in as many rows as there are rows": ("amx", "engine_amx.cpp", "second, 16, 16}", "second, first, 16}"),
    "a tile loaded twice": ("amx", "engine_amx.cpp", "_tile_loadd(6, b, 4 * COLUMNS);\n      _tile_loadd(7", TWICE),
    "tiles that stay": ("amx", "engine_amx.cpp", "if (configured) _tile_release();", ""),
    "tiles of another size": ("amx", "engine_amx.cpp", "if (rows == configured) return", "if (configured) return"),
    "a step of k by three": (
        "amx8",
        "engine_amx.cpp",
        "_tile_loadd(4, a + k, stride)",
        "_tile_loadd(4, a + k - 1, stride)",
    ),
    "an offset that is none": ("amx8", "engine_amx.cpp", "ROWS, 0,", "ROWS, 128,"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    engine, file, old, new = FAULTS[fault]
    assert run(program(tmp_path, engine, stand_in=engine.startswith("amx"), file=file, old=old, new=new))
