"""An open encoder goes through the same one call: each form a file, judged by its vectors, kept as a child."""

import sys
from pathlib import Path

import numpy as np
import pytest

from workbench.base.errors import BadInput, NotFound
from workbench.models import bundle as bundles
from workbench.models.forms import FORMS
from workbench.models.shelf import Shelf
from workbench.release.encoders import FormTrial, SlimmedEncoder, slim_encoder
from workbench.release.slim import slim

sys.path.append(str(Path(__file__).parents[1] / "models"))
from test_encoder import WORDS, write_folder

TEXTS = [" ".join(WORDS[4 + (i * k) % (len(WORDS) - 4)] for k in range(1, 5)) for i in range(1, 61)]
EASY = {"latency_p99_ms": 10_000, "usd_per_1000": 1, "nearest": 0.3, "licence": 0}


@pytest.fixture
def whole(shelf: Shelf, tmp_path: Path, fresh) -> bundles.Bundle:
    return shelf.add("emb", source=write_folder(tmp_path / "model"), lineage={"licence": "mit"})


@pytest.mark.slow  # a fresh process for each form
def test_every_form_is_a_file_that_is_judged_and_kept(whole: bundles.Bundle, shelf: Shelf) -> None:
    found = slim_encoder(whole, TEXTS, budget=EASY, only=FORMS[1:], rounds=1, ledger=shelf.ledger)
    named = {one.name: one for one in found.trials}
    assert list(named) == ["float32", "bf16", "bf16 products", "onnx float32", "onnx int8"]
    assert all(one.passed for one in found.trials), found
    assert named["float32"].cosine == pytest.approx(1) and named["onnx float32"].lowest > 0.99999
    assert 0.99 < named["bf16"].cosine < named["bf16 products"].cosine < 1 and named["onnx int8"].cosine < 1
    assert [named[name].ref for name in list(named)[1:]] == ["emb/2", "emb/3", "emb/4", "emb/5"]
    wanted = whole.encoder().encode(TEXTS)
    for version in (2, 3, 4, 5):
        child = shelf.load("emb", version)
        about = {"parent": "emb/1", "parent_digest": whole.digest, "way": child.form, "licence": "mit"}
        assert about.items() <= child.lineage.items() and child.lineage["slimmed_by"]
        assert (child.encoder().encode(TEXTS) * wanted).sum(1).mean() > 0.99
        with pytest.raises(BadInput, match=f"is {child.form} already"):
            slim(child, TEXTS, ledger=shelf.ledger)
    shown = str(found)
    assert "onnx int8" in shown and f"{named['bf16'].cosine:.5f}" in found._repr_html_()


@pytest.mark.long
def test_what_a_gate_holds_is_told_and_not_kept(whole: bundles.Bundle, shelf: Shelf) -> None:
    asked = {"budget": EASY | {"cosine": 0.9999999}, "only": ["bf16", "onnx float32"], "rounds": 1}
    found = slim_encoder(whole, TEXTS, **asked, ledger=shelf.ledger)
    named = {one.name: one for one in found.trials}
    assert named["onnx float32"].passed and not named["bf16"].passed and "cosine" in named["bf16"].why
    assert shelf.versions("emb") == [1, 2] and shelf.load("emb", 2).form == "onnx float32"
    assert "bf16: cosine" in str(found) and "REFUSED" in str(found)


def test_it_needs_texts_and_a_gate_that_there_is(whole: bundles.Bundle, shelf: Shelf) -> None:
    with pytest.raises(BadInput, match="3 texts say too little"):
        slim(whole, TEXTS[:3], ledger=shelf.ledger)
    with pytest.raises(BadInput, match="gate 'auc' is not asked of an encoder"):
        slim(whole, TEXTS, budget={"auc": 0.7}, ledger=shelf.ledger)
    assert shelf.versions("emb") == [1]


def test_a_place_takes_the_fastest_or_the_smallest_that_passed() -> None:
    def one(name: str, passed: bool, rate: float, size: float) -> FormTrial:
        return FormTrial(name, passed, "", rate, 1.0, (1, 1), 1.0, 1.0, 1.0, 1.0, size)

    found = SlimmedEncoder("e/1", 60, [one("a", True, 9, 9), one("b", True, 5, 2), one("c", False, 99, 1)])
    assert (found.best("server").name, found.best("edge").name) == ("a", "b")
    with pytest.raises(NotFound, match="no form of e/1"):
        SlimmedEncoder("e/1", 60, [one("c", False, 9, 1)]).best("server")
    with pytest.raises(BadInput, match="place 'moon'"):
        found.best("moon")


def test_a_form_that_this_release_does_not_read_is_refused(whole: bundles.Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="form 'int2'"):
        bundles.save_encoder(tmp_path / "odd", whole.path, form="int2")
    assert not (tmp_path / "odd").exists()
    with pytest.raises(BadInput, match="holds no graph"):
        bundles.save_encoder(tmp_path / "odd", whole.path, form="onnx int8")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch
def test_a_compiled_net_is_measured_and_never_kept(whole: bundles.Bundle, shelf: Shelf) -> None:
    found = slim(whole, TEXTS, budget=EASY, ledger=shelf.ledger)
    last = found.trials[-1]
    assert last.name == "bf16 products compiled" and not last.passed and not last.ref
    assert (last.measured and last.ratio > 0 and last.cosine > 0.99) or "cannot be compiled" in last.why
    assert np.isfinite(found.trials[1].p99_ms)
