"""What a command is doing, where no terminal shows a bar."""

import pytest

from torch_crl.cli.progress import Stages


def test_without_a_terminal_every_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        stages.done(1)
        stages.begin("measuring distances")
        stages.advance()
        for number in range(3):
            stages.begin("12 episodes", 3)
            stages.done(number)
        stages.begin("pictures")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["measuring distances", "12 episodes", "pictures"]


def test_a_terminal_shows_the_stage_and_is_clean_afterwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Stages() as stages:
        stages.begin("choosing blocks", 4)
        stages.done(2)
        stages.begin("healing 2 blocks")
    shown = capsys.readouterr().err
    assert "healing 2 blocks" in shown and "choosing blocks" not in shown.splitlines()
    assert shown.endswith("\x1b[2K")
