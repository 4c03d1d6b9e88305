"""A promotion that waits for people: who may answer, when it is over, and what was edited afterwards."""

import json
import multiprocessing
import time
from dataclasses import replace
from typing import Any

import pytest
import toy

from workbench.base import audit
from workbench.base.errors import BadInput, Corrupt, GateRefused, NotAllowed, NotFound
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.models.approved import is_approved, must_be_approved
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.release.approval import Request, Vote, get, may_vote, requests, state_of
from workbench.release.gates import judge
from workbench.release.people import ROLES, People, Person
from workbench.release.registry import Promotion, approve, promote, reject, rollback
from workbench.serve.engine import Engine

DAY_S = 86_400.0
APPROVED = "insert into approvals values (9, 'flights', 2, ?, 'champion', 'v', '', 0, 'ada', 'zoe', 'w', 1, 0, 0, 'promoted', 0)"
ASKED = Request(
    1, "flights", 3, "d" * 64, "champion", "e" * 64, "", 0, "ada", "zoe", "better", 2, 0.0, DAY_S, "open"
)


def answered(*votes: tuple[str, str]) -> Request:
    return replace(ASKED, votes=tuple(Vote(person, decision, "seen", 1.0) for person, decision in votes))


@pytest.mark.parametrize(
    ("request_", "now", "state"),
    [
        (ASKED, 1.0, "open"),
        (answered(("bob", "approve")), 1.0, "open"),
        (answered(("bob", "approve"), ("eve", "approve")), 1.0, "approved"),
        (answered(("bob", "approve"), ("eve", "reject")), 1.0, "rejected"),
        (answered(("bob", "approve")), DAY_S + 1, "expired"),
        (answered(("bob", "approve"), ("eve", "approve")), DAY_S + 1, "approved"),
        (replace(ASKED, state="stale"), 1.0, "stale"),
        (replace(ASKED, needed=0), 1.0, "approved"),
    ],
)
def test_the_state_is_what_votes_and_clock_say(request_: Request, now: float, state: str) -> None:
    assert state_of(request_, now) == state


@pytest.mark.parametrize(
    ("request_", "person", "now", "error", "said"),
    [
        (ASKED, Person("ada", ("approver",)), 1.0, NotAllowed, "asked for it"),
        (ASKED, Person("zoe", ("approver",)), 1.0, NotAllowed, "trained it"),
        (ASKED, Person("bob", ("reader", "admin")), 1.0, NotAllowed, "takes the role approver"),
        (answered(("bob", "approve")), Person("bob", ("approver",)), 1.0, NotAllowed, "already"),
        (ASKED, Person("bob", ("approver",)), DAY_S + 1, GateRefused, "expired"),
        (answered(("eve", "reject")), Person("bob", ("approver",)), 1.0, GateRefused, "rejected"),
        (replace(ASKED, state="promoted"), Person("bob", ("approver",)), 1.0, GateRefused, "promoted"),
    ],
)
def test_who_may_not_answer(request_: Request, person: Person, now: float, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        may_vote(request_, person, now)
    may_vote(ASKED, Person("bob", ("approver",)), 1.0)


@pytest.fixture
def team(ledger: Ledger, project, monkeypatch) -> dict[str, Person]:
    "Ada asks; Bob, Eve and Zoe answer; two approvals are needed."
    (project / "settings.ini").write_text("[laptop]\napprovals_needed = 2\n")
    people = People(ledger)
    tokens = {"ada": people.add("ada", ["admin", "author", "approver"], by=Person("me", ROLES, "local"))}
    ada = people.get("ada")
    for name in ("bob", "eve", "zoe"):
        tokens[name] = people.add(name, ["approver"], by=ada)
    monkeypatch.setenv("ADA", tokens["ada"])
    monkeypatch.setenv("WORKBENCH_USER_TOKEN", "env:ADA")
    return {name: people.sign_in(token) for name, token in tokens.items()}


@pytest.fixture
def bundles(shelf: Shelf) -> list[Bundle]:
    return [shelf.add("flights", **toy.linear_parts(slope=slope)) for slope in (1.0, 2.0, 3.0)]


@pytest.fixture
def asked(shelf: Shelf, team, bundles: list[Bundle], evidence) -> Request:
    return ask(shelf, bundles[0], evidence)


def ask(shelf: Shelf, bundle: Bundle, evidence: Any, against: Bundle | None = None, alias: str = "champion"):
    old = evidence(against.ref, 0.70, digest=against.digest) if against else None
    new = evidence(bundle.ref, 0.72, digest=bundle.digest)
    verdict = judge(new, baseline=old or evidence("flights/9", 0.69), champion=old)
    return promote(bundle, verdict=verdict, alias=alias, ledger=shelf.ledger)


def told(ledger: Ledger) -> list[tuple[str, str]]:
    return [(entry.actor, entry.action) for entry in audit.entries(ledger) if entry.action != "person"]


def test_two_people_approve_and_the_alias_moves(shelf: Shelf, asked: Request, team, bundles) -> None:
    assert isinstance(asked, Request) and asked.state == "open" and shelf.aliases("flights") == {}
    one = approve(asked.id, "slices hold", by=team["bob"], ledger=shelf.ledger)
    assert isinstance(one, Request) and one.missing == 1 and shelf.aliases("flights") == {}
    done = approve(asked.id, "latency too", by=team["eve"], ledger=shelf.ledger)
    assert isinstance(done, Promotion) and shelf.aliases("flights") == {"champion": 1}
    assert get(asked.id, shelf.ledger).state == "promoted" and is_approved(bundles[0], shelf.ledger)
    assert told(shelf.ledger) == [
        ("ada", "request"), ("bob", "approve"), ("eve", "approve"), ("eve", "promote")
    ]  # fmt: skip
    assert shelf.changes("flights")[-1]["user"] == "eve" and audit.verify(shelf.ledger).problems == ()
    must_be_approved(bundles[0], shelf.ledger)
    with pytest.raises(GateRefused, match="flights/2 .* was not approved; this profile asks for 2"):
        must_be_approved(bundles[1], shelf.ledger)


def test_an_answer_is_used_once(shelf: Shelf, asked: Request, team, bundles, evidence) -> None:
    for name in ("bob", "eve"):
        approve(asked.id, "ok", by=team[name], ledger=shelf.ledger)
    with pytest.raises(GateRefused, match="request 1 is promoted"):
        approve(asked.id, "again", by=team["zoe"], ledger=shelf.ledger)
    again = ask(shelf, bundles[1], evidence, against=bundles[0])
    assert again.id != asked.id and again.votes == () and again.missing == 2


def test_nobody_approves_their_own(shelf: Shelf, asked: Request, team) -> None:
    with pytest.raises(NotAllowed, match="own work"):
        approve(asked.id, "mine is good", ledger=shelf.ledger)  # signed in as ada
    assert get(asked.id, shelf.ledger).votes == () and told(shelf.ledger)[-1] == ("ada", "refuse")


def test_a_role_that_was_taken_away_counts_for_nothing(shelf: Shelf, asked: Request, team) -> None:
    People(shelf.ledger).grant("bob", ["reader"], by=team["ada"])
    with pytest.raises(NotAllowed, match="takes the role approver"):
        approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)  # signed in while he had it
    with pytest.raises(NotAllowed, match="takes the role approver"):
        approve(asked.id, "ok", by=Person("ghost", ROLES), ledger=shelf.ledger)


def test_one_rejection_ends_it(shelf: Shelf, asked: Request, team, bundles, evidence) -> None:
    approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)
    assert reject(asked.id, "Hawaii is late", by=team["eve"], ledger=shelf.ledger).state == "rejected"
    with pytest.raises(GateRefused, match="rejected"):
        approve(asked.id, "please", by=team["zoe"], ledger=shelf.ledger)
    assert ask(shelf, bundles[0], evidence).id == asked.id + 1  # ask again, anew


def test_a_refused_rejection_is_told_as_a_refused_approval_is(shelf: Shelf, asked: Request, team) -> None:
    with pytest.raises(NotAllowed, match="asked for it"):
        reject(asked.id, "not now", by=team["ada"], ledger=shelf.ledger)
    assert told(shelf.ledger)[-1] == ("ada", "refuse") and get(asked.id, shelf.ledger).votes == ()


def test_the_same_question_is_asked_once(shelf: Shelf, asked: Request, bundles, evidence) -> None:
    approve_first = ask(shelf, bundles[0], evidence)
    assert approve_first.id == asked.id and len(requests(shelf.ledger)) == 1


def test_after_its_time_it_is_over(shelf: Shelf, asked: Request, team) -> None:
    with shelf.ledger.change() as db:
        db.execute("update approvals set expires_at=?", (time.time() - 1,))
    assert requests(shelf.ledger, "expired")[0].id == asked.id and requests(shelf.ledger, "open") == []
    with pytest.raises(GateRefused, match="request 1 is expired"):
        approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)


def test_stale_evidence_is_refused_and_the_request_closed(
    shelf: Shelf, asked: Request, team, bundles, evidence
) -> None:
    shelf.set_alias("flights", "champion", 3)  # another champion stands meanwhile
    with pytest.raises(GateRefused, match="was judged against no champion, but flights/3"):
        approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)
    assert get(asked.id, shelf.ledger).state == "stale" and ("bob", "stale") in told(shelf.ledger)


@pytest.mark.parametrize(
    "edit",
    [
        "update approvals set version=2, digest=(select digest from versions where version=2)",
        "update approvals set needed=1",
        "update approvals set author='bob'",
        "update approvals set verdict=verdict || '0'",
        "update votes set person='zoe' where person='bob'",
        "insert into votes values (1, 'zoe', 'approve', 'made up', 1.0, 3)",
        "delete from votes",
    ],
)
def test_what_was_edited_counts_for_nothing(shelf: Shelf, asked: Request, team, edit: str) -> None:
    approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)
    with shelf.ledger.change() as db:
        db.execute(edit)
    with pytest.raises((Corrupt, GateRefused, NotFound, BadInput)):
        for name in ("eve", "zoe"):
            approve(asked.id, "ok", by=team[name], ledger=shelf.ledger)
        raise AssertionError("an edited request was promoted")
    assert shelf.aliases("flights") == {}


def test_with_a_broken_audit_nothing_is_promoted(shelf: Shelf, asked: Request, team) -> None:
    approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)
    path = shelf.ledger.store.root / audit.AUDIT_FILE
    path.write_text(path.read_text().replace("bob", "zoe"))
    with pytest.raises(Corrupt, match="the audit is broken"):
        approve(asked.id, "ok", by=team["eve"], ledger=shelf.ledger)
    assert shelf.aliases("flights") == {}


def test_who_died_before_the_move_is_taken_over(shelf: Shelf, asked: Request, team, monkeypatch) -> None:
    approve(asked.id, "ok", by=team["bob"], ledger=shelf.ledger)
    with monkeypatch.context() as patch:
        patch.setattr("workbench.release.registry.must_be_untouched", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            approve(asked.id, "ok", by=team["eve"], ledger=shelf.ledger)
    assert get(asked.id, shelf.ledger).state == "approved" and shelf.aliases("flights") == {}
    assert isinstance(approve(asked.id, "finish", by=team["zoe"], ledger=shelf.ledger), Promotion)
    assert shelf.aliases("flights") == {"champion": 1}


def test_an_alias_that_answers_nobody_needs_no_approval(shelf: Shelf, team, bundles, evidence) -> None:
    assert isinstance(ask(shelf, bundles[0], evidence, alias="shadow"), Promotion)
    assert isinstance(ask(shelf, bundles[0], evidence, alias="canary"), Request)


def test_rollback_asks_nobody_and_is_told(shelf: Shelf, asked: Request, team, bundles, evidence) -> None:
    for request, against in ((asked, None), (None, bundles[0])):
        request = request or ask(shelf, bundles[1], evidence, against=against)
        for name in ("bob", "eve"):
            approve(request.id, "ok", by=team[name], ledger=shelf.ledger)
    assert shelf.aliases("flights") == {"champion": 2}
    assert rollback("flights", why="late", ledger=shelf.ledger).version == 1
    assert told(shelf.ledger)[-1] == ("ada", "rollback")
    must_be_approved(shelf.load("flights", 1), shelf.ledger)


def test_a_reader_may_neither_promote_nor_roll_back(
    shelf: Shelf, asked, team, bundles, evidence, monkeypatch
):
    token = People(shelf.ledger).add("kim", ["reader"], by=team["ada"])
    monkeypatch.setenv("ADA", token)
    with pytest.raises(NotAllowed, match="takes the role author"):
        ask(shelf, bundles[0], evidence)
    with pytest.raises(NotAllowed, match="takes the role author"):
        rollback("flights", ledger=shelf.ledger)


def test_a_reason_is_asked_for(shelf: Shelf, asked: Request, team) -> None:
    with pytest.raises(BadInput, match="no reason"):
        approve(asked.id, " ", by=team["bob"], ledger=shelf.ledger)
    with pytest.raises(NotFound, match="no request 7"):
        approve(7, "ok", by=team["bob"], ledger=shelf.ledger)


def _answer(root: Any, person: Person, barrier: Any, said: Any) -> None:
    ledger = Ledger(Store(root))
    barrier.wait()
    try:
        said.put(type(approve(1, "ok", by=person, ledger=ledger)).__name__)
    except Exception as error:  # whatever it is, the test must hear it
        said.put(type(error).__name__)


def test_of_three_who_answer_at_once_one_promotes(shelf: Shelf, asked: Request, team) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier, said = context.Barrier(3), context.SimpleQueue()
    work = [
        context.Process(target=_answer, args=(shelf.ledger.store.root, team[name], barrier, said))
        for name in ("bob", "eve", "zoe")
    ]
    for one in work:
        one.start()
    heard = sorted(said.get() for _ in work)
    for one in work:
        one.join(30)
    assert heard.count("Promotion") == 1 and set(heard) <= {"Promotion", "Request", "GateRefused"}
    assert shelf.aliases("flights") == {"champion": 1}
    assert len(shelf.changes("flights")) == 1 and audit.verify(shelf.ledger).problems == ()


def test_a_request_is_looked_at(asked: Request) -> None:
    assert "flights/1 as champion, asked by ada: open until" in str(asked) and "2 more" in str(asked)
    shown = replace(asked, why="<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in shown and "0 of 2" in shown
    json.dumps({k: v for k, v in vars(asked).items() if k != "votes"})


def test_the_server_takes_only_what_was_approved(shelf: Shelf, team, bundles) -> None:
    shelf.set_alias("flights", "champion", 1)  # past the front door
    with pytest.raises(GateRefused, match="flights/1 .* was not approved"):
        Engine("flights@champion", shelf.ledger, approved=True)
    with shelf.ledger.change() as db:
        db.execute(APPROVED, (bundles[1].digest,))
    shelf.set_alias("flights", "champion", 2)
    engine = Engine("flights@champion", shelf.ledger, approved=True)
    shelf.set_alias("flights", "champion", 3)
    assert not engine.refresh() and engine.version == 2  # a version that nobody approved does not take over
    assert Engine("flights/3", shelf.ledger).version == 3  # to measure it, it must be asked
