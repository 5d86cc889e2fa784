"""Terminals, pipes and logs that are narrow, old, full or gone: nothing printed ends a run."""

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from torch_crl.cli.main import main
from torch_crl.envs.gymnasium import registration
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.metrics import RunLog
from torch_crl.system.terminal import NameCell, console, plain, print_line, print_markdown

COMMAND = str(Path(sys.executable).with_name("torch-crl"))


class Unwritable(io.StringIO):
    """A stream whose every write fails."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise OSError(self.error, os.strerror(self.error))


def test_text_of_others_cannot_reach_the_terminal() -> None:
    assert plain("a\x1b[2J\x07b\tc\nd\re\x9b1m") == "a\\x1b[2J\\x07b\tc\nd\\re\\x9b1m"
    assert plain("txt.\u202eexe") == "txt.\\u202eexe"
    # A path that is not UTF-8, as Python hands it out.
    assert plain(os.fsdecode(b"r\xff\xc3\xa9")) == "r\\xff\u00e9"


def test_brackets_are_shown_and_what_an_encoding_lacks_is_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    table = Table(title="[bold]runs \u00e9")
    table.add_column("name :smile:")
    table.add_row("[red]a[/red]")
    console().print(table)
    print_line("\u00e9[bold]")
    text = raw.getvalue().decode("ascii")
    for shown in ("[bold]runs \\xe9", "name :smile:", "[red]a[/red]", "\\xe9[bold]\n"):
        assert shown in text


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
def test_standard_error_is_optional(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Unwritable(error))
    print_line("lost", stderr=True)
    console(stderr=True).print("lost")
    monkeypatch.setattr(sys, "stderr", None)
    print_line("lost", stderr=True)
    console(stderr=True).print("lost")


def test_standard_output_that_nobody_reads_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for print_it in (print_line, lambda text: console().print(text)):
        monkeypatch.setattr(sys, "stdout", Unwritable(errno.EPIPE))
        with pytest.raises(SystemExit) as left:
            print_it("lost")
        assert left.value.code == 141
    monkeypatch.setattr(sys, "stdout", Unwritable(errno.ENOSPC))
    assert main(["envs"]) == 1
    assert capsys.readouterr().err == "torch-crl: [Errno 28] No space left on device\n"


def closed_pipe() -> int:
    """The end for writing of a pipe that nobody reads any more."""
    while True:
        read, write = os.pipe()
        os.close(read)
        try:
            os.write(write, b"is anybody there?")
        except BrokenPipeError:
            return write
        # A process that another thread forked just now has the other end too.
        os.close(write)


@pytest.mark.parametrize("arguments", [["--help"], ["envs"], ["envs", "--help"]])
def test_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    write = closed_pipe()
    result = subprocess.run(
        [COMMAND, *arguments], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_closed_standard_error_is_no_error() -> None:
    program = f"{COMMAND} envs ant_big_maze 2>&- && {COMMAND} fly 2>&-"
    result = subprocess.run(["sh", "-c", program], capture_output=True, check=False)
    assert (result.returncode, b" ant_big_maze " in result.stdout) == (2, True)


def test_a_terminal_that_goes_away_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with RunLog(RunDirectory(tmp_path), total=100, resumed_at=None, show=True) as log:
            log.announce("\x1b[31mhello")
            shown = b""
            while b"\\x1b[31mhello" not in shown:
                shown += os.read(ours, 10_000)
            assert b"\x1b[31mhello" not in shown
            os.close(ours)
            for step in range(3):
                log.announce("nobody reads this")
                rates = {"collected_steps_per_second": 1.0, "updates_per_second": 1.0}
                log.progress("training", completed=step, updates=0, seconds=step, rates=rates)


def test_names_wrap_at_underscores_and_numbers_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table()
    table.add_column("trial")
    table.add_column("env steps", no_wrap=True)
    table.add_row(NameCell("point_u_maze_crl_actor_learning_rate0.001_seed0"), "100,025,344")
    console().print(table)
    lines = [line.split("\u2502") for line in capsys.readouterr().out.splitlines()[3:-1]]
    assert [line[1].strip() for line in lines] == [
        "point_u_maze_crl_",
        "actor_learning_",
        "rate0.001_seed0",
    ]
    assert lines[0][2].strip() == "100,025,344"


def test_ctrl_c_while_the_command_imports_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What takes long is imported where Ctrl-C is answered.
    program = (
        "import sys; sys.argv = ['/bin/torch-crl']; import torch_crl.cli.main\n"
        "assert not {'gymnasium', 'numpy', 'rich', 'tyro', 'tempfile'} & set(sys.modules)\n"
        "assert torch_crl.cli.main.main(['zoo']) == 0 and 'gymnasium' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registration, "register_tasks", interrupted)
    assert main(["zoo"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("of_terminal", [True, False])
def test_reports_fit_a_terminal_and_stay_markdown_elsewhere(
    of_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# Title\n\n| some words | others |\n|---|---|\n| " + "long " * 20 + "| 1.5 |\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: of_terminal)
    monkeypatch.setenv("COLUMNS", "40")
    print_markdown(text)
    shown = capsys.readouterr().out
    assert (shown == text + "\n") == (not of_terminal)
    if of_terminal:
        lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in shown.splitlines()]
        assert max(map(len, lines)) <= 40 and "1.5" in shown
