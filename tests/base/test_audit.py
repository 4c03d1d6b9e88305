"""Whatever is done to the audit afterwards is found."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from workbench.base.audit import AUDIT_FILE, check, entries, note, prepare, publish, verify
from workbench.base.errors import BadInput, Corrupt
from workbench.base.ledger import Ledger
from workbench.base.redact import forget, remember
from workbench.base.store import Store


def decide(ledger: Ledger, actor: str = "ada", subject: str = "flights/3") -> int:
    prepare(ledger)
    with ledger.change() as db:
        seq = note(db, actor, "approve", subject, why="fast, and né à Paris\u2028too")
    publish(ledger)
    return seq


@pytest.fixture
def ten(ledger: Ledger) -> Ledger:
    for turn in range(10):
        decide(ledger, subject=f"flights/{turn}")
    return ledger


def test_what_was_decided_is_there_in_order(ten: Ledger) -> None:
    found = entries(ten)
    assert [entry.seq for entry in found] == list(range(1, 11))
    assert found[0].prev == "" and [e.prev for e in found[1:]] == [e.hash for e in found[:-1]]
    lines = (ten.store.root / AUDIT_FILE).read_text().removesuffix("\n").split("\n")
    assert [json.loads(line)["subject"] for line in lines] == [entry.subject for entry in found]
    assert verify(ten).problems == () and verify(ten).head == found[-1].hash
    assert [entry.seq for entry in entries(ten, "flights/4")] == [5]
    assert (ten.store.root / AUDIT_FILE).stat().st_mode & 0o077 == 0


def test_any_change_of_the_file_is_found(ten: Ledger) -> None:
    path, chance, found = ten.store.root / AUDIT_FILE, random.Random(11), 0
    whole = path.read_bytes()
    for turn in range(100):
        lines = whole.split(b"\n")[:-1]
        at = chance.randrange(len(lines))
        if turn % 4 == 0:
            del lines[at]
        elif turn % 4 == 1:
            lines.insert(at, lines[chance.randrange(len(lines))])
        else:
            place = chance.randrange(len(lines[at]))
            lines[at] = (
                lines[at][:place]
                + bytes([lines[at][place] ^ 1 << chance.randrange(7)])
                + lines[at][place + 1 :]
            )
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        found += bool(verify(ten).problems)
    path.write_bytes(whole)
    assert found == 100 and verify(ten).problems == ()


def test_any_change_of_the_ledger_is_found(ten: Ledger) -> None:
    chance, found = random.Random(12), 0
    for turn in range(40):
        seq = chance.randrange(1, 11)
        row = ten.query("select * from audit where seq=?", seq)[0]
        with ten.change() as db:
            if turn % 2:
                db.execute("delete from audit where seq=?", (seq,))
            else:
                db.execute("update audit set line=? where seq=?", (row["line"].replace("ada", "eve"), seq))
        found += bool(verify(ten).problems)
        with ten.change() as db:
            db.execute("insert or replace into audit values (?,?,?,?)", tuple(row))
    assert found == 40 and verify(ten).problems == ()


def test_a_chain_that_was_made_anew_is_found_by_the_head_that_was_kept(ten: Ledger, project: Path) -> None:
    head = verify(ten).head
    decide(ten)
    assert verify(ten, head).problems == ()
    other = Ledger(Store(project / "other"))
    for turn in range(12):
        decide(other, "eve", f"flights/{turn}")
    assert verify(other).problems == ()
    assert "rewritten" in verify(other, head).problems[0]
    with pytest.raises(BadInput, match="all 64 characters"):  # a shorter one is no sign of tampering
        verify(ten, head[:12])


def test_a_broken_audit_is_refused_with_what_to_do(ten: Ledger) -> None:
    (ten.store.root / AUDIT_FILE).unlink()
    with pytest.raises(Corrupt, match="entry 1 is not in audit.jsonl") as caught:
        check(ten)
    assert "backup" in caught.value.hint


def test_a_file_that_was_changed_is_not_written_over(ten: Ledger) -> None:
    path = ten.store.root / AUDIT_FILE
    path.write_text(path.read_text()[:-40])
    before = path.read_bytes()
    decide(ten)
    assert path.read_bytes() == before and len(entries(ten)) == 11
    assert verify(ten).problems


def test_a_torn_line_is_finished(ten: Ledger) -> None:
    path = ten.store.root / AUDIT_FILE
    with ten.change() as db:
        note(db, "bob", "reject", "flights/3")
    line = ten.query("select line from audit where seq=11")[0]["line"]
    for cut in (1, len(line) // 2, len(line), len(line) + 1):
        with ten.change() as db:
            db.execute("update audit set ends=0 where seq=11")
        size = ten.query("select ends from audit where seq=10")[0]["ends"]
        path.write_bytes(path.read_bytes()[:size] + (line + "\n").encode()[:cut])
        assert verify(ten).problems == ()


def test_a_decision_that_was_not_taken_leaves_no_entry(ten: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ten.change() as db:
        note(db, "bob", "reject", "flights/3")
        raise ZeroDivisionError
    assert len(entries(ten)) == 10 and verify(ten).problems == ()


def test_a_secret_is_not_written(ten: Ledger) -> None:
    remember("env:KEY", "hunter2hunter2")
    try:
        with ten.change() as db:
            note(db, "bob", "reject", "flights/3", why="the key is hunter2hunter2")
        publish(ten)
    finally:
        forget()
    assert "hunter2" not in (ten.store.root / AUDIT_FILE).read_text()


def _work(root: Path, turns: int) -> None:
    ledger = Ledger(Store(root))
    for turn in range(turns):
        decide(ledger, f"p{os.getpid()}", f"flights/{turn}")


def test_many_write_at_once_and_some_are_killed(ledger: Ledger) -> None:
    prepare(ledger)
    context, chance = multiprocessing.get_context("forkserver"), random.Random(13)
    whole = [context.Process(target=_work, args=(ledger.store.root, 8)) for _ in range(3)]
    cut = [context.Process(target=_work, args=(ledger.store.root, 1000)) for _ in range(4)]
    for one in (*whole, *cut):
        one.start()
    for one in cut:
        until = time.monotonic() + chance.random() * 0.4
        while time.monotonic() < until:
            assert verify(ledger).problems == ()  # also while they write
        os.kill(one.pid, signal.SIGKILL)
    for one in (*whole, *cut):
        one.join(60)
    assert verify(ledger).problems == ()
    by = [entry.actor for entry in entries(ledger)]
    assert all(by.count(f"p{one.pid}") == 8 for one in whole)
