"""An open encoder is judged on what can be measured of it, and promoted like any model."""

import json
import sys
from pathlib import Path

import pytest
import toy
from safetensors.torch import load_file, save_file

from workbench.base.errors import BadInput, GateRefused
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.release.card import card
from workbench.release.gates import Waiver, judge
from workbench.release.registry import has_passed, judge_again, promote
from workbench.release.texts import agreement, encoder_gates, measure_texts

sys.path.append(str(Path(__file__).parents[1] / "models"))
from test_encoder import WORDS, write_folder

TEXTS = [" ".join(WORDS[4 + (i * k) % (len(WORDS) - 4)] for k in range(1, 5)) for i in range(1, 61)]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: Apache-2.0\n---\n# Model\n")
    return folder


def reduced(folder: Path, to: Path, spoil: float = 0.0) -> Path:
    "The same with weights in bfloat16, or spoilt as well."
    import shutil

    import torch

    shutil.copytree(folder, to)
    torch.manual_seed(1)
    whole = load_file(folder / "model.safetensors")
    (to / "model.safetensors").unlink()
    rough = {name: (t + spoil * torch.randn_like(t)).to(torch.bfloat16) for name, t in whole.items()}
    save_file(rough, to / "model.safetensors")
    return to


def verdict_of(found):
    return judge(
        found, baseline=found, champion=None, gates=encoder_gates(latency_p99_ms=10_000, usd_per_1000=1)
    )


def test_a_published_encoder_passes_and_is_promoted(shelf: Shelf, published: Path, fresh) -> None:
    bundle = shelf.add("emb", source=published)
    assert bundle.lineage["licence"] == "apache-2.0" and not has_passed(bundle, shelf.ledger)
    found = measure_texts(bundle, calls=5, ledger=shelf.ledger)
    rows = {row["gate"]: row for row in verdict_of(found).rows}
    assert all(row["passed"] for row in rows.values()), rows
    assert "fresh process" in rows["reproducibility"]["how"] and "apache-2.0" in rows["licence"]["how"]
    promote(bundle, verdict=verdict_of(found), ledger=shelf.ledger)
    assert shelf.aliases("emb") == {"champion": 1} and has_passed(bundle, shelf.ledger)
    told = card("emb@champion", ledger=shelf.ledger)
    assert told.to_json()["facts"]["licence"] == "apache-2.0" and "cosine" in told.page()


def test_weights_of_half_precision_are_held_against_their_parent(
    shelf: Shelf, published: Path, tmp_path: Path
) -> None:
    shelf.add("emb", source=published)
    half = reduced(published, tmp_path / "half")
    orphan = shelf.add("emb", source=half)
    child = shelf.add("emb", source=half, lineage={"parent": "emb/1"})
    spoilt = shelf.add("emb", source=reduced(published, tmp_path / "bad", 0.5), lineage={"parent": "emb/1"})
    assert child.lineage == {"licence": "apache-2.0", "parent": "emb/1"}
    found = {
        bundle.version: measure_texts(bundle, TEXTS, calls=2, ledger=shelf.ledger)
        for bundle in (orphan, child, spoilt)
    }
    assert found[2].metrics == {} and "parent=" in found[2].proof["parent"]
    assert found[3].metrics["cosine"] > 0.99 and "emb/1" in found[3].proof["parent"]
    assert found[4].metrics["cosine"] < 0.99
    named = {version: {row["gate"] for row in verdict_of(one).failed} for version, one in found.items()}
    assert {"cosine", "nearest"} <= named[2] and "cosine" not in named[3] and "cosine" in named[4]
    few = measure_texts(child, TEXTS[:9], calls=2, ledger=shelf.ledger)
    assert few.metrics == {} and "too little" in few.proof["parent"]
    told = measure_texts(orphan, TEXTS, parent=published, calls=2, ledger=shelf.ledger)
    assert told.metrics["cosine"] == found[3].metrics["cosine"]


def test_a_licence_that_is_not_known_holds_it_back_until_somebody_answers(
    shelf: Shelf, published: Path
) -> None:
    (published / "README.md").unlink()
    bundle = shelf.add("emb", source=published)
    waivers = [Waiver("licence", "ann", "bought"), Waiver("reproducibility", "ann", "not asked in this test")]
    waivers += [Waiver("latency_p99_ms", "ann", "a busy machine"), Waiver("usd_per_1000", "ann", "same")]
    refused = judge_again(bundle, None, None, ledger=shelf.ledger)
    assert "licence" in {row["gate"] for row in refused.failed}
    with pytest.raises(GateRefused, match="licence"):
        promote(bundle, verdict=refused, ledger=shelf.ledger)
    assert (
        promote(
            bundle,
            verdict=judge_again(bundle, None, None, waivers=waivers, ledger=shelf.ledger),
            ledger=shelf.ledger,
        ).version
        == 1
    )
    second = shelf.add("emb", source=published, lineage={"licence": "mit"})
    again = judge_again(second, None, None, waivers=waivers, ledger=shelf.ledger)
    assert again.champion == bundle.digest and again.passed


def test_only_encoders_and_texts(shelf: Shelf, published: Path) -> None:
    with pytest.raises(BadInput, match="no encoder"):
        measure_texts(shelf.add("delays", **toy.linear_parts()), ledger=shelf.ledger)
    bundle: Bundle = shelf.add("emb", source=published)
    for wrong in ([], [1]):
        with pytest.raises(BadInput, match="texts"):
            measure_texts(bundle, wrong, ledger=shelf.ledger)
    with pytest.raises(BadInput, match="judged on rows"):
        judge_again("delays/1", None, None, ledger=shelf.ledger)
    json.dumps([gate.name for gate in encoder_gates()])


def test_agreement_counts_neighbours() -> None:
    import numpy as np

    units = np.random.default_rng(0).normal(size=(80, 8))
    assert agreement(units, units) == (pytest.approx(1.0), pytest.approx(1.0), 1.0)
    mean, low, nearest = agreement(np.roll(units, 1, axis=0), units)
    assert mean < 0.5 and low < mean and nearest < 0.2
