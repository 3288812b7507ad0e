"""``bench/bench_stream.py``: how soon a stream is heard, in the README's words."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("bench_stream", Path(__file__).parents[1] / "bench/bench_stream.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.mark.usefixtures("offline")
def test_times_are_told_for_songs_segments_and_windows(tiny, monkeypatch, capsys):
    monkeypatch.setattr(script, "ROUNDS", 1)
    script.main(["--model", str(tiny), "--seconds", "6,12", "--long", "32"])
    about, *lines = capsys.readouterr().out.splitlines()
    assert about.endswith("in float32; seconds of CPU") and ", 1 thread, torch " in about
    whats, times = zip(*(line.split(": ") for line in lines))
    assert whats == ("song of 6 s", "song of 12 s", "32 s in segments of 20", "decoding 6 s")
    for words in times[:3]:
        first, whole = re.fullmatch(r"first second after ([\d.]+), whole after ([\d.]+)", words).groups()
        assert 0 < float(first) < float(whole)
    assert re.fullmatch(r"[\d.]+ in windows that grow, [\d.]+ in windows of one length", times[3])
