"""A model of pictures is kept, asked, logged, shadowed and scored in batches as one of numbers is."""

import base64
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from conftest import TOKEN
from starlette.testclient import TestClient

from workbench.base.errors import BadInput, BadRow
from workbench.base.ledger import Ledger
from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed
from workbench.data.recipe import Recipe
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.serve.app import create_app
from workbench.serve.batch import predict
from workbench.serve.engine import Engine
from workbench.serve.requestlog import RequestLog, read
from workbench.serve.shadow import Shadow

MODULE = """
def features(columns):
    seen = columns["image"].astype("float64").mean(axis=2)
    return {f"row{i}": seen[:, i] for i in range(seen.shape[1])}

def odd(columns):
    return columns["odd"].astype("float32")
"""
CONTRACT = Contract(
    "pictures",
    {
        "id": Column("int", role="key"),
        "image": Column("image", shape=(4, 6)),
        "odd": Column("bool", role="outcome"),
    },
)
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 4, 6), dtype=np.uint8)
ROWS = [{"id": i, "image": base64.b64encode(one.tobytes()).decode()} for i, one in enumerate(PIXELS)]


@pytest.fixture(scope="module", autouse=True)
def pictures(module: Path) -> Path:
    (module / "tiny_pictures.py").write_text(MODULE)
    return module


def add(ledger: Ledger, seed: int = 1) -> Bundle:
    recipe = Recipe("tiny_pictures:features", "tiny_pictures:odd", tuple(f"row{i}" for i in range(4)))
    weights = np.random.default_rng(seed).normal(size=4)
    return Shelf(ledger).add(
        "pictures", model="workbench.models.linear:LinearScorer", config={"n_dense": 4, "sizes": []},
        weights={"bias": np.zeros(1), "dense": weights}, framework="numpy", contract=CONTRACT,
        recipe=recipe.fit({"image": PIXELS}), lineage={"run": "20260101-120000-abcdef"},
    )  # fmt: skip


@pytest.fixture
def client(ledger: Ledger) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    app = create_app(Engine(add(ledger)), token=TOKEN)
    with TestClient(app, base_url="http://localhost", headers=headers) as made:
        yield made


def as_arrow(**images: Any) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.table({"id": pa.array(range(60)), **images})
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_every_way_of_asking_gives_the_same_bits(client: TestClient, ledger: Ledger, project: Path) -> None:
    where = "/v1/models/pictures:predict"
    answered = client.post(where, json={"rows": ROWS}).json()["predictions"]
    wanted = [one["prediction"] for one in answered]
    assert len(set(wanted)) == 60
    raw = [one.tobytes() for one in PIXELS]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(24)):
        found = client.post(
            where,
            content=as_arrow(image=pa.array(raw, kind)),
            headers={"content-type": "application/vnd.apache.arrow.stream"},
        )
        assert found.status_code == 200, found.text
        assert ipc.open_stream(found.content).read_all()["prediction"].to_pylist() == wanted
    tensor = {"name": "image", "shape": [60], "datatype": "BYTES", "data": [row["image"] for row in ROWS]}
    found = client.post("/v2/models/pictures/infer", json={"inputs": [tensor]}).json()
    assert found["outputs"][0]["data"] == wanted
    pl.DataFrame({"id": range(60), "image": raw, "odd": [True, False] * 30}).write_parquet("pictures.parquet")
    predict("pictures/1", Feed("pictures.parquet", CONTRACT), to="scores", ledger=ledger)
    scored = pl.read_parquet(project / "scores/**/*.parquet").sort("id")
    assert scored["prediction"].to_list() == wanted


def test_what_was_asked_is_logged_as_pixels(ledger: Ledger) -> None:
    log = RequestLog("pictures", CONTRACT, store=ledger.store, flush_s=3600)
    log.add("a", 1, [ROWS[0], {"id": 1, "image": PIXELS[1].tobytes()}, {"image": None}], [0.5] * 3)
    assert log.flush()
    log.close()
    rows = read("pictures", ledger.store)["row"].to_list()
    assert rows == [{"id": i, "image": PIXELS[i].tobytes()} for i in range(2)] + [{"id": None, "image": None}]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("???", "'???' is not base64"),
        ("abcd", "is 3 bytes, an image of 4 x 6 has 24"),
        (None, "null is no image"),
        ([1, 2], "is no image"),
    ],
)
def test_what_is_no_picture_is_told_what_is_one(client: TestClient, image: Any, said: str) -> None:
    found = client.post("/predict", json={"row": {"id": 1, "image": image}})
    assert found.status_code == 422 and found.json()["detail"][0]["loc"][-1] == "image"
    assert said in found.json()["detail"][0]["msg"]
    with pytest.raises(BadRow, match="4 x 6 bytes, in JSON as base64"):
        CONTRACT.parse_rows([{"id": 1, "image": image}])


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_shadow_sees_the_pictures_and_keeps_none_as_an_example(ledger: Ledger, as_bytes: bool) -> None:
    first, second = add(ledger), add(ledger, seed=2)
    rows = [{**row, "image": PIXELS[i].tobytes()} for i, row in enumerate(ROWS)] if as_bytes else ROWS
    scores = Engine(first).scores(rows)
    shadow = Shadow(second, (first.ref, first.digest), share=1.0, store=ledger.store)
    for number, (row, score) in enumerate(zip(rows, scores, strict=True)):
        shadow.offer(f"r{number}", [row], [score], 1e-5)
    assert shadow.drain(60)
    shadow.close()
    report = shadow.report()
    assert (report.rows, report.refused, report.broken) == (60, 0, 0), report
    assert report.worth and all(set(case["row"]) == {"id"} for case in report.worth)


def test_other_features_of_a_picture_are_noticed(ledger: Ledger, pictures: Path) -> None:
    add(ledger)
    source, module = pictures / "tiny_pictures.py", sys.modules["tiny_pictures"]
    source.write_text(MODULE.replace("mean(axis=2)", "max(axis=2)"))
    try:
        importlib.reload(module)
        with pytest.raises(BadInput, match="does not answer as it did"):
            Engine("pictures/1", ledger).scores(ROWS[:1])
    finally:
        source.write_text(MODULE)
        importlib.reload(module)
