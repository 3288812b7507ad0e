"""The README's commands run as they stand, in an empty folder; the tiny random model stands in for a download."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import soundfile

from acefast import cli, testing

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
SONGS = [line for line in COMMANDS if "acefast generate" in line]


def test_readme_has_a_command_that_installs_and_makes_a_song_and_one_that_tests():
    assert SONGS[0].startswith("pip install . && acefast generate ")
    assert sum(line.startswith("python -m venv .venv && ") and "pytest" in line for line in COMMANDS) == 1


@pytest.mark.parametrize("line", SONGS)
def test_every_command_that_makes_a_song_makes_it(line, tiny, tmp_path, folder, offline, monkeypatch):
    monkeypatch.setenv("ACEFAST_MODEL", str(tiny))
    made = 0
    for words in map(shlex.split, line.replace("/tmp/", f"{tmp_path}/").split(" && ")):
        if words[:3] == ["python", "-m", "acefast.testing"]:
            assert testing.main(words[3:]) == 0
        elif words[:2] == ["acefast", "generate"]:
            assert cli.main([*words[1:], "--steps", "1"]) == 0
            output = words[words.index("-o") + 1]
            assert soundfile.info(output).samplerate == 48_000
            made += 1
        else:
            assert words == ["pip", "install", "."]
    assert made == 1
