"""The second worked example: its text, its model against the paper, its jobs, and its training cut over two workers."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from house import ROOT

from workbench.base.errors import BadRow
from workbench.base.records import Ledger, runs
from workbench.compute.roofline import Layout, step_flops, training_bytes
from workbench.jobs.runner import run
from workbench.words.gpt import Gpt, bits_per_byte, foretold, sample
from workbench.words.text import DocContract, block_contract, blocks, compressed, docstrings, is_held

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SMALL = {"width": 32, "layers": 1, "heads": 2, "context": 16}


def test_the_same_library_gives_the_same_text_and_copies_are_named() -> None:
    found = list(docstrings(LIBRARY, files=40))
    assert found == list(docstrings(LIBRARY, files=40)) and len(found) > 300
    texts = [row["text"] for row in found if not row["copy_of"]]
    assert len(set(texts)) == len(texts), "a text that is not marked as a copy is there once"
    for row in (row for row in found if row["copy_of"]):
        assert row["text"] in texts


def test_nothing_is_imported_to_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"Of a."\nraise SystemExit\nclass B:\n    "Of B."\n    def c(self):\n        "Of c."\n'
    )
    (tmp_path / "b.py").write_text('"Of a."\n')
    (tmp_path / "broken.py").write_text("def (")
    found = [(row["name"], row["line"], row["copy_of"]) for row in docstrings(tmp_path)]
    assert found == [("a", 1, None), ("a.B", 4, None), ("a.B.c", 6, None), ("b", 1, "a")]


def test_each_byte_is_foretold_once_and_packages_stay_together() -> None:
    made = blocks(["abcdefgh", "ijk"], 4)
    assert [bytes(row) for row in made] == [b"abcde", b"efgh\n", b"\n\nijk"]
    assert len(blocks(["abc"], 4)) == 0
    assert is_held("logging") and is_held("logging.handlers") and not is_held("json.decoder")
    contract = block_contract(4)
    contract.parse_rows([{"block": 0, "tokens": b"abcde"}])
    with pytest.raises(BadRow, match="tokens"):
        contract.parse_rows([{"block": 0, "tokens": b"abc"}])
    with pytest.raises(BadRow):
        DocContract.parse_rows([{"text": "x" * 20_001}])


def test_a_compressor_that_has_seen_it_needs_less() -> None:
    text = " ".join(str(n * n) for n in range(2_000)).encode()
    assert compressed(text, text)["lzma"] < 0.1 * compressed(text)["lzma"]


def test_size_bytes_and_operations_are_those_on_paper() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, rows = Gpt(64, 2, 4, 32), torch.randint(0, 256, (4, 33))
    optimiser = torch.optim.AdamW(model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        foretold(model, rows).backward()
    optimiser.step()
    paper = training_bytes(model.shape, Layout(), "fp32")
    moments = [v for state in optimiser.state.values() for k, v in state.items() if k != "step"]
    assert sum(p.numel() for p in model.parameters()) == model.shape.parameters
    assert (paper.parameters, paper.gradients) == (sum(p.nbytes for p in model.parameters()),) * 2
    assert paper.optimiser == sum(v.nbytes for v in moments)
    assert step_flops(model.shape, 4 * 32) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_it_sees_only_what_came_before_and_learns() -> None:
    torch.manual_seed(0)
    model = Gpt(**SMALL)
    rows = torch.randint(0, 256, (2, 17))
    changed = rows.clone()
    changed[:, 9:] = 7
    assert bits_per_byte(model, rows) == pytest.approx(8, abs=0.3), "at first it knows nothing"
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        foretold(model, rows).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert bits_per_byte(model, rows) < 4
    one, two = model(rows[:, :16])[:, :9], model(changed[:, :16])[:, :9]
    torch.testing.assert_close(one, two)
    assert sample(model, "Return", 20, seed=1) == sample(model, "Return", 20, seed=1)


@pytest.fixture
def texts(project: Path, ledger: Ledger) -> Path:
    "The project with the notebooks, and blocks of a part of the text."
    shutil.copytree(ROOT / "notebooks/words", project / "notebooks/words")
    made = run(project / "notebooks/words/1_text.ipynb", {"files": 120, "context": 32}, ledger=ledger)
    assert (
        made.status == "succeeded" and made.metrics["train_blocks"] > 1_000 < 20 * made.metrics["held_blocks"]
    )
    return project


@pytest.mark.long
def test_its_notebooks_are_jobs(texts: Path, ledger: Ledger) -> None:
    told = run(
        texts / "notebooks/words/2_gpt.ipynb", {"width": 32, "layers": 1, "context": 32}, ledger=ledger
    )
    assert told.metrics["bytes_exact"] and told.metrics["flops_ratio"] == pytest.approx(1, abs=0.05)
    asked = {"steps": 24, "width": 32, "layers": 1, "rate": 0.01}
    done = run(texts / "notebooks/words/3_train.ipynb", asked, ledger=ledger)
    said = done.metrics
    assert said["kept_by_a_worker"] == said["parameters"]
    assert said["steps"] == 24 and said["bits_per_byte"] < said["untrained"] - 1
    assert said["sample"].startswith("Return a list of") and set(said["compressors"]) == {
        "zlib",
        "bz2",
        "lzma",
    }
    trained = next(one for one in runs(ledger, kind="scale") if one.params["steps"] == 24)
    assert trained.cost["usd"] > 0 and said["cost_usd"] == trained.cost["usd"] and done.id in trained.parents


@pytest.mark.ray
@pytest.mark.slow
def test_its_model_is_cut_over_two_workers(texts: Path, ledger: Ledger) -> None:
    asked = {"steps": 12, "width": 32, "layers": 2, "workers": 2, "rate": 0.01}
    done = run(texts / "notebooks/words/3_train.ipynb", asked, ledger=ledger)
    assert done.metrics["workers"] == 2 and done.metrics["steps"] == 12
    assert done.metrics["kept_by_a_worker"] == pytest.approx(done.metrics["parameters"] / 2, rel=0.05)
    assert done.metrics["bits_per_byte"] < done.metrics["untrained"] - 0.5
