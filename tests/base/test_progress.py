"""Progress: the right display, a tenth a line, and Stop that stops."""

import io
import os
import re
import subprocess
import sys
import time

import pytest

from workbench.base import events
from workbench.base.errors import Stopped
from workbench.base.progress import display_name, track


def test_a_log_gets_one_line_per_tenth(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORKBENCH_DISPLAY", "log")
    with track("check") as tracker:
        tracker.stage("rows", total=1000)
        for _ in range(1000):
            tracker.advance()
            tracker._shown_at = 0.0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 11 and captured.out == ""
    assert re.search(r"1,000/1,000 rows \(100%\)", lines[-1])


def test_a_terminal_line_is_removed_at_the_end(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_DISPLAY", "terminal")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with track("fit", unit="epochs") as tracker:
        tracker.stage("train", total=2)
        tracker.advance(auc=0.7)
        tracker.advance(auc=0.71)
        shown = sys.stderr.getvalue()
    assert "fit: train" in shown and "auc=0.71" in shown


def test_stop_is_raised_at_the_next_step() -> None:
    with pytest.raises(Stopped, match="fit was stopped"), track("fit") as tracker:
        tracker.stage("train", total=3)
        tracker.stop()
        tracker.advance()
    assert tracker.state.outcome == "stopped"


def test_an_error_shows_as_failed() -> None:
    with pytest.raises(ValueError), track("fit") as tracker:
        raise ValueError
    assert tracker.state.outcome == "failed"


def test_expected_end_is_a_share_of_the_time_spent() -> None:
    with track("fit") as tracker:
        tracker.stage("train", total=10)
        tracker.state.started_at = time.monotonic() - 5
        tracker.advance(5)
        assert tracker.state.eta_s == pytest.approx(5, abs=0.2)


def test_the_environment_chooses_the_display(monkeypatch) -> None:
    for name in ("quiet", "log", "terminal"):
        monkeypatch.setenv("WORKBENCH_DISPLAY", name)
        assert display_name() == name
    monkeypatch.setenv("WORKBENCH_DISPLAY", "hologram")
    assert display_name() in ("log", "terminal")


def test_json_events_carry_the_run() -> None:
    stream = io.StringIO()
    events.configure("json", stream)
    with events.bound(run="20130901-a"):
        events.get_logger("train").info("epoch", loss=0.4)
    events.configure("text")
    assert '"run": "20130901-a"' in stream.getvalue() and '"loss": 0.4' in stream.getvalue()


def test_a_full_disk_behind_the_log_costs_the_line_only() -> None:
    code = "from workbench.base import events; events.get_logger('train').info('epoch'); print('went on')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stderr=full, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "went on\n" and done.returncode == 0


def test_a_closed_pipe_does_not_stop_the_work() -> None:
    code = "from workbench.base.progress import track\nimport os\nos.close(2)\n"
    code += "with track('check') as t:\n    t.stage('rows', total=10)\n    [t.advance() for _ in range(10)]\nprint('went on')"
    env = {**os.environ, "WORKBENCH_DISPLAY": "log"}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert done.stdout == "went on\n" and done.returncode == 0
