"""The labels' verbs: what cannot be meant is refused, with the value and what to give."""

from pathlib import Path

import pytest
from typed import typed


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("row,ann\n1,a\n2,b\n", [], "has 1 column of labels: ann"),
        ("row,ann,bob\n1,a,a\n", ["--labeller", "bob"], "has 1 column of labels: bob"),
        ("row\n1\n", [], "has no labels"),
        ("row,ann,bob\n", [], "has no row under its names"),
    ],
)
def test_agreement_needs_two_labellers_and_a_row(
    project: Path, text: str, more: list[str], said: str
) -> None:
    (project / "people.csv").write_text(text)
    found = typed("labels", "agreement", "people.csv", *more)
    assert found.returncode == 2 and said in found.stderr, found.stderr


@pytest.mark.parametrize("given", [("--max-errors", "7"), ("--max-errors", "-0.1"), ("--top", "-3")])
def test_a_share_above_one_is_no_gate(project: Path, given: tuple[str, str]) -> None:
    found = typed("labels", "audit", "rows.parquet", "--model", "flights", *given)
    assert found.returncode == 2 and given[0] in found.stderr, found.stderr
