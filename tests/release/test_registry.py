"""Nothing is promoted on a promise, and everything can be taken back."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy

from workbench.base.errors import BadInput, Corrupt, GateRefused, NotFound
from workbench.base.ledger import Ledger
from workbench.base.records import find, runs
from workbench.base.store import Store
from workbench.models import bundle as bundles
from workbench.models.bundle import Bundle
from workbench.models.folder import WEIGHTS
from workbench.models.shelf import Shelf
from workbench.release.evidence import measure
from workbench.release.gates import Waiver, default_gates, judge
from workbench.release.registry import champion, judge_again, last_verdict, promote, rollback, status


@pytest.fixture
def three(shelf: Shelf) -> list[Bundle]:
    return [shelf.add("flights", **toy.linear_parts(slope=slope)) for slope in (1.0, 2.0, 3.0)]


@pytest.fixture
def judged(evidence):
    def judged(bundle: Bundle, against: Bundle | None = None, auc: float = 0.72, **more: Any):
        old = evidence(against.ref, 0.70, digest=against.digest) if against else None
        new = evidence(bundle.ref, auc, digest=bundle.digest, **more)
        return judge(new, baseline=old or evidence("flights/1", 0.69), champion=old)

    return judged


def test_promote_keeps_the_verdict_and_the_reason(shelf: Shelf, three, judged) -> None:
    verdict = judged(three[0])
    done = promote(three[0], verdict=verdict, ledger=shelf.ledger)
    assert (done.name, done.alias, done.version, done.previous) == ("flights", "champion", 1, None)
    run = find(done.run, shelf.ledger)
    assert (run.kind, run.status) == ("promote", "succeeded")
    assert json.loads((run.folder / "verdict.json").read_text()) == verdict.to_json()
    assert (
        shelf.changes("flights")[-1]["why"] == verdict.why and shelf.changes("flights")[-1]["run"] == run.id
    )
    assert champion("flights", shelf.ledger).version == 1


def test_a_failed_verdict_is_refused_and_recorded(shelf: Shelf, three, judged) -> None:
    verdict = judged(three[0], latency_p99_ms=99.0, size_mb=900.0)
    with pytest.raises(GateRefused) as caught:
        promote(three[0], verdict=verdict, ledger=shelf.ledger)
    for part in ("latency_p99_ms 99", "size_mb 900", "<= 20"):
        assert part in caught.value.what
    assert shelf.aliases("flights") == {} and champion("flights", shelf.ledger) is None
    run = runs(shelf.ledger, kind="promote")[0]
    assert (
        run.status == "failed" and "latency_p99_ms" in run.error and (run.folder / "verdict.json").is_file()
    )


def test_a_verdict_that_was_edited_is_read_gate_by_gate(shelf: Shelf, three, judged) -> None:
    bad = judged(three[0], latency_p99_ms=99.0)
    for forged in (replace(bad, passed=True), replace(bad, rows=[], passed=True), replace(bad, rows=[])):
        with pytest.raises(GateRefused):
            promote(three[0], verdict=forged, ledger=shelf.ledger)
    assert shelf.aliases("flights") == {}


def test_a_verdict_about_another_bundle_is_refused(shelf: Shelf, three, judged) -> None:
    with pytest.raises(GateRefused, match="the verdict is about flights/1"):
        promote(three[1], verdict=judged(three[0]), ledger=shelf.ledger)


def test_the_champion_that_was_judged_against_must_still_stand(shelf: Shelf, three, judged) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    with pytest.raises(GateRefused, match="no champion, but flights/1"):
        promote(three[1], verdict=judged(three[1]), ledger=shelf.ledger)
    promote(three[1], verdict=judged(three[1], three[0]), ledger=shelf.ledger)
    with pytest.raises(GateRefused, match="but flights/2"):
        promote(three[2], verdict=judged(three[2], three[0]), ledger=shelf.ledger)
    promote(three[2], verdict=judged(three[2]), alias="challenger", ledger=shelf.ledger)
    assert shelf.aliases("flights") == {"champion": 2, "challenger": 3}


def test_promoting_the_champion_again_changes_nothing(shelf: Shelf, three, judged) -> None:
    verdict = judged(three[0])
    first, again = (promote(three[0], verdict=verdict, ledger=shelf.ledger) for _ in range(2))
    assert "is now version 1" in str(first) and "is version 1 already" in str(again)
    assert shelf.aliases("flights") == {"champion": 1} and len(shelf.changes("flights")) == 1
    with pytest.raises(NotFound):
        rollback("flights", ledger=shelf.ledger)


def test_rollback_restores(shelf: Shelf, three, judged) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    promote(three[1], verdict=judged(three[1], three[0]), ledger=shelf.ledger)
    promote(three[2], verdict=judged(three[2], three[1]), ledger=shelf.ledger)
    before = champion("flights", shelf.ledger).predictor()(toy.columns(20)).tobytes()
    done = [rollback("flights", why="slow", ledger=shelf.ledger) for _ in range(2)]
    assert [(d.version, d.previous) for d in done] == [(2, 3), (1, 2)]
    after = champion("flights", shelf.ledger)
    assert after.digest == three[0].digest and after.predictor()(toy.columns(20)).tobytes() != before
    assert [run.status for run in runs(shelf.ledger, kind="rollback")] == ["succeeded"] * 2
    with pytest.raises(NotFound, match="no version before 1"):
        rollback("flights", ledger=shelf.ledger)
    with pytest.raises(NotFound, match="model 'weather' is not on the shelf") as caught:
        rollback("weather", ledger=shelf.ledger)
    assert "flights" in caught.value.hint
    with pytest.raises(NotFound, match="flights@shadow is not set") as caught:
        rollback("flights", alias="shadow", ledger=shelf.ledger)
    assert "champion" in caught.value.hint


def test_a_reference_is_no_name(shelf: Shelf, three, judged) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    for call in (champion, lambda name, ledger: rollback(name, ledger=ledger)):
        for wrong in ("flights@champion", None):
            with pytest.raises(BadInput):
                call(wrong, shelf.ledger)


def test_promote_takes_a_reference_and_only_a_verdict(shelf: Shelf, three, judged) -> None:
    with pytest.raises(BadInput, match="verdict is None, expected Verdict"):
        promote("flights/1", verdict=None, ledger=shelf.ledger)
    with pytest.raises(BadInput, match="model is .*, expected"):
        promote(None, verdict=judged(three[0]), ledger=shelf.ledger)
    assert promote("flights/1", verdict=judged(three[0]), ledger=shelf.ledger).version == 1
    assert last_verdict("flights/1", shelf.ledger).digest == three[0].digest


def test_a_model_is_not_promoted_on_its_training_rows(shelf: Shelf, judged) -> None:
    bundle = shelf.add("flights", **toy.linear_parts(lineage={"data": "september"}))
    with pytest.raises(GateRefused, match="judged on the rows it was trained on"):
        promote(bundle, verdict=judged(bundle), ledger=shelf.ledger)
    assert shelf.aliases("flights") == {}


def test_rollback_needs_no_model(shelf: Shelf, three, judged) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    promote(three[1], verdict=judged(three[1], three[0]), ledger=shelf.ledger)
    (three[1].path / WEIGHTS).unlink()
    assert rollback("flights", ledger=shelf.ledger).version == 1


def test_a_bundle_that_changed_on_disk_is_not_promoted(shelf: Shelf, three, judged) -> None:
    path = three[0].path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(Corrupt):
        promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    assert shelf.aliases("flights") == {}


def test_only_what_is_on_the_shelf_is_promoted(shelf: Shelf, judged, tmp_path: Path) -> None:
    loose = bundles.save(tmp_path / "loose", **toy.linear_parts())
    with pytest.raises(BadInput, match="not on the shelf"):
        promote(loose, verdict=judged(loose), ledger=shelf.ledger)


def _promotes(root: Path, version: int, verdict: Any, start: Any, out: Any) -> None:
    ledger = Ledger(Store(root))
    bundle = Shelf(ledger).load("flights", version)
    start.wait()
    try:
        promote(bundle, verdict=verdict, ledger=ledger)
        out.put("promoted")
    except GateRefused:
        out.put("refused")


def test_of_many_promoted_at_once_one_wins(shelf: Shelf, three, judged) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    context = multiprocessing.get_context("spawn")
    start, out, root = context.Barrier(4), context.Queue(), shelf.ledger.store.root
    verdicts = [judged(bundle, three[0]) for bundle in (*three[1:], *three[1:])]
    made = [
        context.Process(target=_promotes, args=(root, 2 + i % 2, verdict, start, out))
        for i, verdict in enumerate(verdicts)
    ]
    for process in made:
        process.start()
    answers = [out.get(timeout=120) for _ in made]
    for process in made:
        process.join(30)
    winner = shelf.aliases("flights")["champion"]
    moved = [change["version"] for change in shelf.changes("flights")]
    assert moved[1:] == [winner] and answers.count("promoted") in (1, 2)


def test_status_shows_where_it_stands(shelf: Shelf, three, judged) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    shelf.set_alias("flights", "shadow", 3, why="<script>alert(1)</script>")
    found = status("flights", shelf.ledger)
    assert found.aliases == {"champion": 1, "shadow": 3} and len(found.versions) == 3
    assert str(found) == "flights: 3 versions, champion 1, shadow 3"
    assert "<script>" not in found._repr_html_()
    with pytest.raises(NotFound, match="weather") as caught:
        status("weather", shelf.ledger)
    assert "flights" in caught.value.hint


def test_measured_judged_promoted_with_real_parts(shelf: Shelf, feed, fresh) -> None:
    weak, strong = (shelf.add("delays", **toy.linear_parts(slope=slope)) for slope in (0.01, 3.0))
    gates = default_gates(latency_p99_ms=1000, auc=0.5, worst_slice_auc=0.5)
    first = measure(weak, feed, calls=20, ledger=shelf.ledger)
    verdict = judge(first, baseline=first, champion=None, gates=gates)
    promote(weak, verdict=verdict, ledger=shelf.ledger)
    second = measure(strong, feed, calls=20, ledger=shelf.ledger)
    better = judge(second, baseline=first, champion=first, gates=gates)
    done = promote(strong, verdict=better, ledger=shelf.ledger)
    assert (done.version, done.previous) == (2, 1) and champion("delays", shelf.ledger).version == 2


def test_a_version_is_promoted_again_on_its_kept_verdict(shelf: Shelf, three, judged) -> None:
    first, second = three[0], three[1]
    with pytest.raises(GateRefused, match="never judged"):
        last_verdict(first, shelf.ledger)
    promote(first, verdict=judged(first), ledger=shelf.ledger)
    promote(second, verdict=judged(second, first), ledger=shelf.ledger)
    rollback("flights", ledger=shelf.ledger)
    kept = last_verdict(second, shelf.ledger)
    assert kept.to_json() == judged(second, first).to_json()
    assert promote(second, verdict=kept, ledger=shelf.ledger).version == 2


def test_an_edited_verdict_is_corrupt(shelf: Shelf, three, judged) -> None:
    with pytest.raises(GateRefused):
        promote(three[0], verdict=judged(three[0], latency_p99_ms=99.0), ledger=shelf.ledger)
    digest = runs(shelf.ledger, kind="promote")[0].params["verdict"]
    path = shelf.ledger.store.path("cache", digest[:2], digest)
    path.write_text(path.read_text().replace("false", "true"))
    with pytest.raises(Corrupt):
        last_verdict(three[0], shelf.ledger)


def test_judging_again_measures_all_three_on_the_same_rows(shelf: Shelf, three, judged, feed) -> None:
    promote(three[0], verdict=judged(three[0]), ledger=shelf.ledger)
    verdict = judge_again(three[1], feed, three[2], ledger=shelf.ledger)
    assert (verdict.digest, verdict.champion) == (three[1].digest, three[0].digest)
    assert len(runs(shelf.ledger, kind="measure")) == 3


def test_a_profile_may_ask_for_audited_labels(
    shelf: Shelf, three, evidence, judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_AUDITED_LABELS", "true")
    proof = evidence().proof
    audited = proof | {"labels": {"run": "a1", "label_errors": 0.01}}
    unlisted = judge(
        evidence(three[0].ref, 0.72, digest=three[0].digest, proof=audited),
        baseline=evidence("flights/1", 0.69),
        champion=None,
        gates=[gate for gate in default_gates() if gate.name != "label_gates"],
    )
    for verdict in (judged(three[0]), unlisted):  # nobody audited them; nobody asked
        assert verdict.passed
        with pytest.raises(GateRefused, match="labels that nobody audited"):
            promote(three[0], verdict=verdict, ledger=shelf.ledger)
    answered = [Waiver("label_gates", "bob", "two people labelled each row")]
    for number, more in enumerate(({"proof": audited}, {"waivers": answered})):
        verdict = judge(
            evidence(
                three[number].ref,
                0.72 + number / 10,
                digest=three[number].digest,
                proof=more.pop("proof", proof),
            ),
            baseline=evidence("flights/1", 0.69),
            champion=evidence(three[0].ref, 0.72, digest=three[0].digest) if number else None,
            **more,
        )
        assert promote(three[number], verdict=verdict, ledger=shelf.ledger).version == number + 1


def test_judging_again_asks_for_the_audit_that_the_profile_asks_for(
    shelf: Shelf, three, feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [row["gate"] for row in judge_again(three[1], feed, three[1], ledger=shelf.ledger).unasked][
        -1:
    ] == ["label_gates"]
    monkeypatch.setenv("WORKBENCH_AUDITED_LABELS", "true")
    failed = judge_again(three[1], feed, three[1], ledger=shelf.ledger).failed
    assert {"gate": "label_gates", "value": None, "passed": False}.items() <= failed[-1].items()
