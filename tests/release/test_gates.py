"""Verdicts follow from evidence alone."""

import json
import math
import pickle
from dataclasses import replace

import pytest

from workbench.base.errors import BadInput
from workbench.release.gates import (
    Gate,
    Verdict,
    Waiver,
    default_gates,
    judge,
    measures,
    right_size,
    shadow_gates,
)

UNASKED = "not asked: load_p99_ms, load_failed, label_gates"


def failed(verdict) -> list[str]:
    return [row["gate"] for row in verdict.failed]


def test_what_is_better_passes(evidence) -> None:
    verdict = judge(evidence(auc=0.72), baseline=evidence("flights/1", 0.69), champion=None)
    assert (
        verdict.passed
        and failed(verdict) == []
        and verdict.why == f"20 gates passed; baseline: better; {UNASKED}"
    )
    of_others = {
        name for name in measures() if name.startswith(("label_", "shadow_")) and name != "label_gates"
    }
    of_others |= {"cosine", "nearest"}  # an audit's, a shadow's, an encoder's
    assert {row["gate"] for row in verdict.rows} == set(measures()) - of_others and len(of_others) == 9


def test_a_shadow_is_asked_for_by_gates_of_its_own(evidence) -> None:
    new, base = evidence(auc=0.72), evidence("flights/1", 0.69)
    watched = {"rows": 2_000, "agreement_low": 0.95, "broken": 0, "champion": "flights/1"}
    about = {"baseline": base, "champion": None, "gates": shadow_gates()}
    assert failed(judge(new, **about)) == ["shadow_rows", "shadow_agreement", "shadow_broken"]
    assert judge(replace(new, shadow=watched), **about).passed
    assert failed(judge(replace(new, shadow=watched | {"broken": 1}), **about)) == ["shadow_broken"]
    assert failed(judge(replace(new, shadow=watched | {"rows": 9}), **about)) == ["shadow_rows"]


@pytest.mark.parametrize(
    ("figures", "gate"),
    [
        ({"auc": 0.59}, "auc"),
        ({"auc": 0.699}, "auc_over_baseline"),
        ({"auc": 0.706}, "auc_over_champion"),
        ({"brier": 0.156}, "brier_over_baseline"),
        ({"brier": 0.156}, "brier_over_champion"),
        ({"pr_auc": 0.3}, "pr_auc_over_baseline"),
        ({"pr_auc": 0.3}, "pr_auc_over_champion"),
        ({"by": {"UA": (0.71, 900), "HA": (0.54, 900)}}, "worst_slice_auc"),
        ({"latency_p99_ms": 20.01}, "latency_p99_ms"),
        ({"latency_p99_ms": math.nan}, "latency_p99_ms"),
        ({"size_mb": 201.0}, "size_mb"),
        ({"serving_skew": 1e-9}, "serving_skew"),
        ({"auc": math.nan}, "auc"),
        ({"by": {"UA": (0.6, 900), "HA": (0.69, 900)}}, "worst_slice"),
    ],
)
def test_each_gate_holds(evidence, figures: dict, gate: str) -> None:
    before = {"UA": (0.70, 900), "HA": (0.70, 900)}
    baseline, champion = evidence("flights/1", 0.70, by=before), evidence("flights/2", 0.71, by=before)
    verdict = judge(evidence("flights/3", **figures), baseline=baseline, champion=champion)
    assert not verdict.passed and gate in failed(verdict) and gate in verdict.why


@pytest.mark.parametrize(("direction", "limit"), [(">=", 0.71), ("<=", 0.71)])
def test_a_limit_that_is_met_exactly_passes(evidence, direction, limit: float) -> None:
    gate = Gate("auc", limit, direction, "because")
    assert judge(evidence(auc=0.71), baseline=evidence(), champion=None, gates=[gate]).passed


def test_small_slices_do_not_count_and_new_ones_have_nothing_to_lose(evidence) -> None:
    before = evidence("flights/1", 0.70, by={"UA": (0.70, 900), "HA": (0.70, 499)})
    after = evidence(auc=0.71, by={"UA": (0.71, 900), "HA": (0.10, 499), "YV": (0.56, 900)})
    assert judge(after, baseline=before, champion=None).passed
    bigger = evidence(auc=0.71, by={"HA": (0.60, 500)})
    verdict = judge(bigger, baseline=before, champion=None)
    assert failed(verdict) == ["worst_slice"] and "carrier HA" in verdict.why


def test_without_a_champion_slices_are_compared_with_the_baseline(evidence) -> None:
    baseline = evidence("flights/1", 0.70, by={"UA": (0.75, 900)})
    champion = evidence("flights/2", 0.70, by={"UA": (0.66, 900)})
    new = evidence("flights/3", 0.71, by={"UA": (0.66, 900)})
    assert failed(judge(new, baseline=baseline, champion=None)) == ["worst_slice"]
    assert judge(new, baseline=baseline, champion=champion).passed


def test_evidence_of_other_rows_is_refused(evidence) -> None:
    august = evidence("flights/1", fingerprint="august")
    with pytest.raises(BadInput, match="different rows"):
        judge(evidence(), baseline=august, champion=None)
    with pytest.raises(BadInput, match="different rows"):
        judge(evidence(), baseline=evidence("flights/1"), champion=august)
    with pytest.raises(BadInput, match="different rows"):
        right_size(evidence(), august)


def test_evidence_on_the_training_rows_is_refused(evidence) -> None:
    baseline = evidence("flights/1", 0.69, trained_on="september")
    with pytest.raises(BadInput, match="flights/2 was measured on the rows it was trained on"):
        judge(evidence(trained_on="september"), baseline=baseline, champion=None)
    assert judge(evidence(auc=0.72, trained_on="august"), baseline=baseline, champion=None).passed


@pytest.mark.parametrize("wrong", ["flights/1", None, 0.7])
def test_only_evidence_is_judged(evidence, wrong) -> None:
    with pytest.raises(BadInput, match="challenger is .*, expected Evidence"):
        judge(wrong, baseline=evidence(), champion=None)
    with pytest.raises(BadInput, match="baseline is .*, expected Evidence"):
        judge(evidence(), baseline=wrong, champion=None)


def test_a_verdict_is_repeatable_plain_and_picklable(evidence) -> None:
    given = {"baseline": evidence("flights/1", 0.69), "champion": evidence("flights/2", 0.70)}
    verdict = judge(evidence("flights/3"), **given)
    assert verdict == judge(evidence("flights/3"), **given) == pickle.loads(pickle.dumps(verdict))
    assert json.loads(json.dumps(verdict.to_json()))["champion"] == "digest of flights/2"
    assert pickle.loads(pickle.dumps(default_gates())) == default_gates()


def test_gates_that_are_none(evidence) -> None:
    with pytest.raises(BadInput, match="no gate"):
        judge(evidence(), baseline=evidence(), champion=None, gates=[])
    with pytest.raises(BadInput, match="acu") as caught:
        Gate("acu", 0.6, ">=", "typo")
    assert "auc" in caught.value.hint
    about = {"baseline": evidence(), "champion": None}
    with pytest.raises(BadInput, match="gate is 'auc', expected Gate"):
        judge(evidence(), **about, gates=["auc"])
    with pytest.raises(BadInput, match="waiver is 'auc', expected Waiver"):
        judge(evidence(), **about, waivers=["auc"])
    for direction, limit in ((">", 0.5), (">=", math.nan)):
        with pytest.raises(BadInput):
            Gate("auc", limit, direction, "because")
    with pytest.raises(BadInput, match="p99"):
        default_gates(p99=3)


def test_limits_change_by_name() -> None:
    limits = {gate.name: gate.limit for gate in default_gates(latency_p99_ms=5, auc=0.7)}
    assert (limits["latency_p99_ms"], limits["auc"], limits["size_mb"]) == (5, 0.7, 200.0)


@pytest.mark.parametrize(
    ("net", "margin", "winner"),
    [
        (0.72, 0.005, "net"),
        (0.7051, 0.005, "net"),
        (0.704, 0.005, "baseline"),
        (0.70, 0.005, "baseline"),
        (0.60, 0.005, "baseline"),
        (math.nan, 0.005, "baseline"),
        (0.7001, 0.0, "net"),
        (0.70, 0.0, "baseline"),
    ],
)
def test_right_size(evidence, net: float, margin: float, winner: str) -> None:
    small = evidence("flights/1", 0.70)
    choice = right_size(evidence("flights/2", net), small, margin)
    assert choice.winner == winner and choice.evidence.ref == (
        "flights/2" if winner == "net" else "flights/1"
    )
    assert "0.7" in choice.why and pickle.loads(pickle.dumps(choice)).winner == winner


def test_it_shows_itself_escaped(evidence) -> None:
    bad = evidence("<b>x</b>", 0.5)
    verdict = judge(bad, baseline=evidence("flights/1", 0.7), champion=None)
    choice = right_size(bad, replace(bad, ref="<i>"))
    for noun in (verdict, choice):
        shown = noun._repr_html_()
        assert "<b>x</b>" not in shown and "<i>" not in shown
    assert "\n" not in str(choice)
    head, *lines = str(verdict).splitlines()
    assert "refused" in head and len(lines) == 23 and "  NO auc " in lines[0]


def test_a_waiver_lets_pass_what_somebody_answers_for(evidence) -> None:
    slow, old = evidence(latency_p99_ms=45.0), evidence("flights/1", 0.69)
    waived = judge(slow, baseline=old, champion=None, waivers=[Waiver("latency_p99_ms", "bob", "batch only")])
    assert (
        waived.passed and waived.failed == [] and [row["gate"] for row in waived.waived] == ["latency_p99_ms"]
    )
    assert (
        waived.why
        == f"19 gates passed; baseline: better; latency_p99_ms waived by bob: batch only; {UNASKED}"
    )
    assert "waived by bob" in str(waived) and "waived" in waived._repr_html_()
    both = judge(evidence(latency_p99_ms=45.0, size_mb=900.0), baseline=old, champion=None,
                 waivers=[Waiver("latency_p99_ms", "bob", "batch only")])  # fmt: skip
    assert failed(both) == ["size_mb"] and not both.passed


def test_a_waiver_says_who_why_and_a_gate_that_is_asked(evidence) -> None:
    for by, why in (("", "why"), ("bob", " ")):
        with pytest.raises(BadInput, match="waiver of gate 'auc'"):
            Waiver("auc", by, why)
    with pytest.raises(BadInput, match="latency_p9_ms.*not asked"):
        judge(
            evidence(),
            baseline=evidence("flights/1", 0.69),
            champion=None,
            waivers=[Waiver("latency_p9_ms", "b", "c")],
        )


def test_a_gain_says_whether_it_is_a_tie_and_a_tie_goes_to_the_smaller(evidence) -> None:
    same, gains = [0.70 + 0.01 * (k % 7) for k in range(200)], [0.004 * (k % 5 - 1) for k in range(200)]
    old = evidence("flights/1", 0.70, draws={"auc": same})
    shaky = evidence("flights/2", 0.71, draws={"auc": [a + b for a, b in zip(same, gains, strict=True)]})
    sure = evidence("flights/3", 0.71, draws={"auc": [a + 0.01 for a in same]})
    rows = {row["gate"]: row for row in judge(shaky, baseline=old, champion=None).rows}
    assert rows["auc_over_baseline"]["how"].endswith("95 % of draws -0.0040 to +0.0120: a tie")
    assert not rows["beats_baseline"]["passed"] and "flights/1 stays" in rows["beats_baseline"]["how"]
    assert right_size(shaky, old).winner == "baseline" and right_size(sure, old).winner == "net"


def test_the_column_that_is_missed_most_is_named(evidence) -> None:
    lost = evidence(
        missing=[{"column": "wind", "auc": 0.55, "loss": 0.16}, {"column": "rain", "auc": 0.7, "loss": 0.01}]
    )
    verdict = judge(lost, baseline=evidence("flights/1", 0.69), champion=None)
    assert failed(verdict) == ["worst_missing"] and "AUC 0.5500 without wind" in verdict.why


DRAWS = [0.70 + 0.01 * (k % 7) for k in range(200)]
GAINS = {
    "better": [0.01] * 200,
    "tie": [0.004 * (k % 5 - 2) for k in range(200)],
    "worse": [-0.001] * 200,
    "much worse": [-0.01] * 200,
}


@pytest.mark.parametrize(
    ("said", "size_mb", "usd", "takes"),
    [
        ("better", 9.0, 1e-6, True),
        ("tie", 0.3, 1e-6, False),
        ("tie", 0.29, 1e-6, False),  # no smaller: a file of text is some bytes longer or shorter
        ("tie", 0.2, 1e-6, True),
        ("tie", 0.3, 6e-7, False),  # cheaper than two measurements of one model may differ
        ("tie", 0.3, 5e-7, True),
        ("tie", 0.4, 1e-9, False),
        ("worse", 0.3, 1e-6, False),
        ("worse", 0.2, 1e-6, True),  # by less than 0.002
        ("much worse", 0.2, 1e-6, False),
    ],
)
@pytest.mark.parametrize("who", ["baseline", "champion"])
def test_a_tie_is_decided(evidence, who: str, said: str, size_mb: float, usd: float, takes: bool) -> None:
    gains = GAINS[said]
    draws = {"auc": [a + b for a, b in zip(DRAWS, gains, strict=True)]}
    old = evidence("flights/1", 0.70, draws={"auc": DRAWS})
    new = evidence("flights/2", 0.70 + sum(gains) / 200, draws=draws, size_mb=size_mb, usd_per_1000=usd)
    weak = evidence("flights/0", 0.60, draws={"auc": [a - 0.1 for a in DRAWS]}, size_mb=0.1)
    about = {"baseline": old, "champion": None} if who == "baseline" else {"baseline": weak, "champion": old}
    verdict = judge(new, **about, gates=default_gates(auc_over_baseline=-1))
    assert (verdict.against[who], f"beats_{who}" not in failed(verdict)) == (said.split()[-1], takes)
    row = next(row for row in verdict.rows if row["gate"] == f"beats_{who}")
    assert said == "better" or ("takes the place" in row["how"]) == takes
    assert takes or "flights/1 stays" in row["how"]
    assert takes or verdict.stays == (said != "much worse" or who == "baseline")


def test_the_one_that_stands_is_not_beaten_by_itself(evidence) -> None:
    same = evidence("flights/1", 0.7)
    verdict = judge(same, baseline=same, champion=same)
    assert verdict.passed and not verdict.stays and verdict.against == {"baseline": "tie", "champion": "tie"}


def test_what_nobody_asked_is_no_silent_pass(evidence) -> None:
    new, about = evidence(auc=0.72), {"baseline": evidence("flights/1", 0.69), "champion": None}
    rows = {row["gate"]: row for row in judge(new, **about).unasked}
    assert set(rows) == {"load_p99_ms", "load_failed", "label_gates"}
    assert {row["value"] for row in rows.values()} == {None} and "not asked" in judge(
        new, **about
    )._repr_html_()
    assert "   - load_failed" in str(judge(new, **about)) and "no target rate was asked" in str(
        judge(new, **about)
    )
    strict = {"gates": default_gates(needed=["label_gates"])}
    assert failed(judge(new, **about, **strict)) == ["label_gates"]
    said = judge(new, **about, **strict, waivers=[Waiver("label_gates", "bob", "two people labelled each")])
    assert said.passed and [row["gate"] for row in said.waived] == ["label_gates"]
    with pytest.raises(BadInput, match="labels"):
        default_gates(needed=["labels"])


def test_a_verdict_of_before_is_still_read(evidence) -> None:
    kept = judge(evidence(auc=0.72), baseline=evidence("flights/1", 0.69), champion=None).to_json()
    del kept["against"]
    assert Verdict(**kept).against == {} and Verdict(**kept).passed
