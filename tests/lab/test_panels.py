import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ipywidgets.widgets import widget
from jupyter_client.manager import start_new_kernel

from workbench.base.errors import Stopped
from workbench.base.progress import State, Tracker, track
from workbench.lab.panels import DOUBLE_CLICK_S, StopButton, card, curve, duration, line

NASTY = "<script>alert(1)</script>'\"&"


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DISPLAY", "notebook")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (119.8, "2 min 00 s"),
        (599, "9 min 59 s"),
        (600, "10 min"),
        (3599, "1 h 00 min"),
        (7260, "2 h 01 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_a_duration_reads_well(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_curve_says_what_it_draws() -> None:
    drawn = curve("loss", [(1, 0.9), (2, 0.2), (3, 0.4)])
    told = "loss: 3 points, 0.9 to 0.4, lowest 0.2, highest 0.9"
    assert f"role='img' aria-label='{told}'" in drawn
    assert "<b>0.4</b>" in drawn
    assert f"<img alt='{told}'" in curve("loss", [(1, 0.9), (2, 0.2), (3, 0.4)], static=True)


@pytest.mark.parametrize(
    "values",
    [[0.5], [math.nan], [math.inf, 1.0], [math.nan] * 3, [0.0] * 4, [1e308, -1e308, 0.0], [3, 2**70]],
)
def test_a_curve_draws_only_what_is_finite(values: list[float]) -> None:
    drawn = curve("loss", list(enumerate(values)))
    points = re.findall(r"points='([^']*)'", drawn)
    assert not re.search(r"nan|inf", " ".join(points))
    assert all(0 <= float(y) <= 34 for pair in points for y in re.findall(r",([\d.e+-]+)", pair))


def test_a_long_curve_stays_small_and_keeps_its_ends() -> None:
    drawn = curve("loss", [(i, float(i)) for i in range(100_000)])
    assert len(drawn) < 3000
    line = re.findall(r"polyline points='([^']*)'", drawn)[0].split()
    assert (line[0], line[-1]) == ("3.0,30.0", "129.0,4.0")


def test_nothing_in_a_card_is_markup_of_others() -> None:
    state = State(NASTY, NASTY, 1, 2, NASTY, {NASTY: 1.0}, {NASTY: [(1, 1.0), (2, 2.0)]})
    for state.outcome in ("", "done", "stopped", "failed"):
        drawn = card(state, 1.0)
        assert "<script" not in drawn
        assert "'\"" not in drawn
        assert "&lt;script&gt;" in drawn


@pytest.mark.parametrize("outcome", ["done", "stopped", "failed"])
def test_an_ended_card_says_how_and_when(outcome: str) -> None:
    state = State("fit", "epoch", 3, 10, "epochs", {"loss": 0.5}, outcome=outcome)
    text = re.sub(r"<[^>]*>", "", card(state, 42.0))
    assert re.search(rf"{outcome} after 42 s, \d\d:\d\d:\d\d", text)
    assert "left, ends" not in text
    assert line(state, 42.0) == f"fit: {outcome} after 42 s · epoch · 3 of 10 epochs · loss=0.5"


def test_a_running_card_says_when_it_ends() -> None:
    state = State("fit", "epoch", 5, 10, "epochs")
    state.started_at -= 30
    drawn = card(state, 30.0)
    assert "aria-valuenow='50'" in drawn
    assert re.search(r"50% · 30 s left, ends \d\d:\d\d:\d\d", drawn)


def test_an_unknown_total_has_no_percent() -> None:
    drawn = card(State("read", "rows", 12_000), 3.0)
    assert "12,000 rows" in drawn
    assert "aria-valuenow" not in drawn
    assert re.search(r"\d%(?! *;|')", re.sub(r"<[^>]*>", "", drawn)) is None


def test_a_panel_leaves_no_widget_and_no_thread(panel: None) -> None:
    before = set(widget._instances)
    with track("fit") as tracker:
        tracker.stage("epoch", total=2)
        tracker.advance(2, loss=1.0)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "panel"])
    assert set(widget._instances) <= before


def test_a_stage_of_nothing_and_a_metric_that_is_new_each_time(panel: None) -> None:
    with track("fit") as tracker:
        tracker.stage("empty", total=0)
        tracker.stage("epoch", total=500)
        for i in range(500):
            tracker.advance(1, **{f"metric {i}": i})
    assert repr(tracker.display).startswith("fit: done")


def test_outside_the_main_thread_a_second_press_only_asks(panel: None) -> None:
    seen: list[str] = []

    def work() -> None:
        try:
            with track("fit") as tracker:
                tracker.display.button.press()
                time.sleep(DOUBLE_CLICK_S + 0.1)
                tracker.display.button.press()
                tracker.advance()
        except Stopped:
            seen.append("stopped")

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(10)
    assert seen == ["stopped"]


def test_a_press_after_the_end_does_nothing(panel: None) -> None:
    with track("fit") as tracker:
        pass
    tracker.display.button.press()
    tracker.display.button.press()
    assert not tracker.stop_requested


# ---- a real kernel, spoken to as a browser does


class Cell:
    "A running cell of a kernel, with the messages it sent so far."

    def __init__(self, client: Any, source: str) -> None:
        self.client, self.messages = client, []
        self.id = client.execute(source)

    def read_until(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 20) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=timeout_s)
            self.messages.append(message)
            if wanted(message):
                return message
        raise AssertionError("the message never came")

    def finish(self) -> list[dict[str, Any]]:
        def ended(message: dict[str, Any]) -> bool:
            state = message["content"].get("execution_state")
            return state == "idle" and message["parent_header"].get("msg_id") == self.id

        self.read_until(ended)
        return self.messages

    def button(self) -> str:
        def is_button(message: dict[str, Any]) -> bool:
            state = message["content"].get("data", {}).get("state", {})
            return message["msg_type"] == "comm_open" and state.get("description") == "Stop"

        comm_id = self.read_until(is_button)["content"]["comm_id"]
        self.read_until(lambda message: message["msg_type"] == "display_data")  # now it can be seen
        return comm_id


class Kernel:
    def __init__(self, client: Any) -> None:
        self.client = client
        made = self._control("create_subshell_request")
        self.subshell = made["content"]["subshell_id"]

    def _control(self, kind: str) -> dict[str, Any]:
        self.client.control_channel.send(self.client.session.msg(kind, {}))
        return self.client.get_control_msg(timeout=10)

    def cell(self, body: str) -> Cell:
        return Cell(self.client, f"import time\nfrom workbench.base.progress import track\n{body}")

    def press(self, comm_id: str) -> None:
        "What JupyterLab sends when a widget button is pressed."
        data = {"method": "custom", "content": {"event": "click"}}
        message = self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        message["header"]["subshell_id"] = self.subshell
        self.client.shell_channel.send(message)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    manager, client = start_new_kernel(extra_arguments=["--IPKernelApp.log_level=ERROR"])
    setup = "import os; os.environ['WORKBENCH_DISPLAY'] = 'notebook'"
    try:
        client.execute_interactive(setup, timeout=30)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def kinds(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message["content"] for message in messages if message["msg_type"] == kind]


def wait_until(seen: Callable[[], bool], timeout_s: float = 5) -> None:
    end = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("body", "outcome"), [("pass", "done"), ("1 / 0", "failed")])
def test_the_end_is_a_card_without_widgets(kernel: Kernel, body: str, outcome: str) -> None:
    messages = kernel.cell(f"with track('fit') as t:\n t.advance(5, loss=.5)\n {body}").finish()
    (shown,) = kinds(messages, "display_data")
    (final,) = kinds(messages, "update_display_data")
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    assert shown["data"]["text/plain"].startswith("fit: running")
    assert final["transient"] == shown["transient"]
    assert set(final["data"]) == {"text/plain", "text/html"}
    assert final["data"]["text/plain"].startswith(f"fit: {outcome} after")
    opened, closed = ({c["comm_id"] for c in kinds(messages, kind)} for kind in ("comm_open", "comm_close"))
    assert opened == closed
    assert len(opened) == 8  # box, html, button, their layouts, two styles


def test_stop_reaches_a_busy_cell(kernel: Kernel) -> None:
    body = (
        "with track('fit') as t:\n t.stage('rows', 10**9)\n"
        " while True: time.sleep(.001); t.advance(1, loss=.5)"
    )
    cell = kernel.cell(body)
    comm_id = cell.button()
    cell.read_until(lambda message: "of 1,000,000,000" in str(message["content"]))
    pressed_at = time.monotonic()
    kernel.press(comm_id)
    messages = cell.finish()
    assert time.monotonic() - pressed_at < 1
    (error,) = kinds(messages, "error")
    assert error["ename"] == "Stopped"
    assert kinds(messages, "update_display_data")[0]["data"]["text/plain"].startswith("fit: stopped")


def test_a_second_press_interrupts_a_step_that_hangs(kernel: Kernel) -> None:
    cell = kernel.cell("with track('fit') as t: time.sleep(60)")
    comm_id = cell.button()
    kernel.press(comm_id)
    cell.read_until(lambda message: "Stop now" in str(message["content"]))
    kernel.press(comm_id)  # a double click, which interrupts nothing
    time.sleep(DOUBLE_CLICK_S + 0.1)
    kernel.press(comm_id)
    pressed_at = time.monotonic()
    messages = cell.finish()
    assert time.monotonic() - pressed_at < 1
    assert kinds(messages, "error")[0]["ename"] == "KeyboardInterrupt"
    assert "fit: stopped" in kinds(messages, "update_display_data")[0]["data"]["text/plain"]


def test_after_a_stop_the_kernel_works_on(kernel: Kernel) -> None:
    messages = kernel.cell("with track('again') as t: t.advance()\nprint('fine')").finish()
    assert kinds(messages, "stream")[0]["text"] == "fine\n"
    assert not kinds(messages, "error")


def test_a_busy_reporter_sends_ten_pictures_a_second(kernel: Kernel) -> None:
    body = (
        "with track('fit') as t:\n end = time.monotonic() + 1.5\n"
        " while time.monotonic() < end: t.advance(1, loss=.5)"
    )
    sent = len(kinds(kernel.cell(body).finish(), "comm_msg"))
    assert 5 <= sent <= 20


def test_the_clock_goes_on_through_a_long_step(kernel: Kernel) -> None:
    cell = kernel.cell("with track('fit') as t:\n t.stage('one', 1)\n time.sleep(2.5)")
    sent = [content["data"]["state"]["value"] for content in kinds(cell.finish(), "comm_msg")]
    assert [text for text in sent if "running for 1." in text or "running for 2." in text]


def test_a_stop_button_needs_no_kernel() -> None:
    button = StopButton(Tracker("fit", None, "rows"))
    button.click()
    assert button.tracker.stop_requested
    button.close()
