"""The command line as a process: the bar keeps to terminals, Ctrl-C leaves nothing, exit codes are as promised."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import soundfile

pytestmark = pytest.mark.usefixtures("offline")
ROOT = Path(__file__).parents[1]
SHORT = ["--duration", "5", "--steps", "1"]


def shell(*arguments: str | Path, folder: Path) -> dict:
    """What subprocess needs to run ``acefast`` in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    return dict(args=[sys.executable, "-m", "acefast.cli", *map(str, arguments)], cwd=folder, env=environment)


class Terminal:
    """A process whose standard error is a terminal of 100 columns."""

    def __init__(self, *arguments: str | Path, folder: Path) -> None:
        self.own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(**shell(*arguments, folder=folder), stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        self.text = ""

    def read(self, until: str = "(?!)") -> bool:
        """Read until a pattern has been shown, or to the end; whether it has."""
        while not re.search(until, self.text):
            try:
                got = os.read(self.own, 4096)
            except OSError:  # the other side is closed
                got = b""
            if not got:
                return False
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", got.decode("utf-8", "ignore"))
        return True

    def end(self) -> int:
        """The exit code; what was left to read has been read."""
        self.read()
        os.close(self.own)
        return self.process.wait()


def test_exit_codes_are_the_processs_own(folder):
    codes = {}
    for name, arguments in {
        "request": ["generate", "x", "-o", "x.wav", "--bpm", "1"],
        "checkpoint": ["generate", "x", "-o", "x.wav", "--model", "./missing"],
    }.items():
        made = subprocess.run(**shell(*arguments, folder=folder), capture_output=True, text=True)
        codes[name] = made.returncode
        assert made.stdout == "" and made.stderr.startswith("acefast: ") and made.stderr.count("\n") == 1
    assert codes == {"request": 2, "checkpoint": 3} and list(folder.iterdir()) == []


STAGES = {"loading": "1/1", "reading": "1/1", "composing": "3/3", "rendering": "128/128", "finishing": "1/1"}


def test_bar_shows_stages_steps_and_times_on_a_terminal(tiny, folder):
    arguments = ["--duration", "5", "--steps", "3", "-o", "x.wav", "--model", tiny]
    terminal = Terminal("generate", "boom bap", *arguments, folder=folder)
    assert terminal.end() == 0
    for stage, count in STAGES.items():  # name, bar, steps, elapsed, remaining
        assert re.search(rf"{stage} +\S+ +{count} +\d:\d\d:\d\d +0:00:00", terminal.text), terminal.text[-1000:]
    assert [path.name for path in folder.iterdir()] == ["x.wav"]


def test_bar_is_off_where_there_is_no_terminal(tiny, folder):
    arguments = shell("generate", "boom bap", *SHORT, "-o", "x.wav", "--model", tiny, "--seed", "5", folder=folder)
    made = subprocess.run(**arguments, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    assert re.fullmatch(r"x\.wav: 5\.12 s, seed 5, made in [\d.]+ s\n", made.stdout)


def test_quiet_turns_off_the_bar_and_the_closing_line(command, monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert command("boom bap", *SHORT, "-o", "x.wav", "--quiet") == 0
    assert terminal.getvalue() == capsys.readouterr().out == ""
    assert command("boom bap", *SHORT, "-o", "x.wav") == 0
    assert "composing" in terminal.getvalue()


def test_a_warning_is_one_line_and_told_once(command, capsys, tune, folder):
    soundfile.write(folder / "tune.wav", tune.T, 48_000, "FLOAT")
    cover = ["--task", "cover", "--source", "tune.wav", "--strength", "0.5", "--steps", "1"]
    assert command("dust " * 400, *cover, "-o", "x.wav", "--normalize", "off") == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("acefast: ") for line in told)
    assert "prompt is too long" in told[0] and "above full scale" in told[1]


def test_ctrl_c_stops_a_process_and_leaves_nothing(tiny, folder):
    arguments = ["--duration", "120", "--steps", "200", "-o", "x.wav", "--json", "--model", tiny]
    terminal = Terminal("generate", "boom bap", *arguments, folder=folder)
    assert terminal.read(until=r"composing +\S+ +[1-9]\d*/200"), terminal.text[-1000:]
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "200/200" not in terminal.text and "rendering" not in terminal.text
    assert terminal.text.rstrip().endswith("acefast: interrupted; no unfinished file is left")
    assert list(folder.iterdir()) == [] and terminal.process.stdout.read() == b""


EARLY = """
import signal, sys

class Finder:
    def find_spec(name, *_):
        if name == "torch.nn":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder)
from acefast.cli import main
assert "torch" not in sys.modules
sys.exit(main())
"""


def test_ctrl_c_is_heard_while_torch_is_still_being_imported(tiny, folder):
    arguments = shell("generate", "boom bap", *SHORT, "-o", "x.wav", "--model", tiny, folder=folder)
    arguments["args"][1:3] = ["-c", EARLY]
    made = subprocess.run(**arguments, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (130, "")
    assert made.stderr == "acefast: interrupted; no unfinished file is left\n"
    assert list(folder.iterdir()) == []


def test_ctrl_c_is_heard_within_the_step(command, folder, tiny_pipe, monkeypatch, capsys):
    real, steps = tiny_pipe.model.velocity, []

    def interrupted(*args, **kwargs):
        steps.append(args[1])
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(tiny_pipe.model, "velocity", interrupted)
    assert command("boom bap", "--steps", "9", "--duration", "5", "-o", "x.wav") == 130
    assert len(steps) == 3 and list(folder.iterdir()) == []
    assert capsys.readouterr().err == "acefast: interrupted; no unfinished file is left\n"


@pytest.mark.parametrize("old", [b"", b"an older song"], ids=["no file yet", "a file to replace"])
def test_ctrl_c_while_saving_leaves_what_was_there(command, folder, monkeypatch, old):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)

    if old:
        (folder / "x.wav").write_bytes(old)
    monkeypatch.setattr(soundfile.SoundFile, "write", interrupted)
    assert command("boom bap", *SHORT, "-o", "x.wav", "--json") == 130
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == ({"x.wav": old} if old else {})


# -- streams that do not take or give everything -----------------------------------------------------------------------


def through_a_shell(command: str, folder: Path, **environment: str) -> tuple[int, str]:
    """The exit code and standard error of ``command``, in which acefast stands for the command itself."""
    needs = shell(folder=folder)
    command = command.replace("acefast", f"'{sys.executable}' -m acefast.cli")
    needs |= dict(args=["bash", "-o", "pipefail", "-c", command], env={**needs["env"], **environment})
    made = subprocess.run(**needs, capture_output=True, text=True)
    assert "Traceback" not in made.stderr and "Exception ignored" not in made.stderr, made.stderr
    return made.returncode, made.stderr


def test_a_name_the_terminal_cannot_spell_is_escaped(tiny, folder):
    made = f"acefast generate x {' '.join(SHORT)} --model '{tiny}' -o ü.wav"
    assert through_a_shell(made, folder, PYTHONIOENCODING="ascii") == (0, "")
    assert [path.name for path in folder.iterdir()] == ["ü.wav"]
    code, told = through_a_shell("acefast generate x --model ./ü -o x.wav", folder, PYTHONIOENCODING="ascii")
    assert code == 3 and "\\xfc" in told and told.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_is_full_is_one_sentence_and_the_songs_are_saved(tiny, folder):
    code, told = through_a_shell("acefast info > /dev/full", folder)
    assert code == 2
    assert told == "acefast: standard output cannot be written: No space left on device; send it elsewhere\n"
    made = f"acefast generate x {' '.join(SHORT)} --model '{tiny}' -o x.wav --seed 1,2 > /dev/full"
    code, told = through_a_shell(made, folder)
    assert code == 2 and "the songs are saved" in told and told.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == {"x-1.wav", "x-2.wav"}
    assert through_a_shell("acefast generate x -o x.wav --bpm 1 2> /dev/full", folder)[0] == 2


@pytest.mark.parametrize("arguments", ["info", "generate --help"])
def test_a_reader_that_leaves_early_is_no_failure(arguments, folder):
    assert through_a_shell(f"acefast {arguments} | head -n 0", folder) == (0, "")


def test_closed_streams_are_lived_with(tiny, folder):
    made = f"acefast generate x {' '.join(SHORT)} --model '{tiny}'"
    code, told = through_a_shell(f"{made} -o x.wav --lyrics - <&-", folder)
    assert code == 2 and told.startswith("acefast: lyrics: standard input cannot be read") and told.count("\n") == 1
    assert through_a_shell(f"{made} -o x.wav >&- 2>&-", folder) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["x.wav"]
