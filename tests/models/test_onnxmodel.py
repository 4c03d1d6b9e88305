"""A graph is a bundle's model like any other, in as few bits as it bears."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import toy
from onnx import TensorProto, helper, numpy_helper

from workbench.base.errors import BadInput, NotFound
from workbench.models import bundle as bundles
from workbench.models.onnxmodel import GRAPH, OnnxScorer, from_onnx, graph_weights, quantised

MODEL = "workbench.models.onnxmodel:OnnxScorer"
WIDTH = toy.recipe().width


def proto(seed: int = 0) -> onnx.ModelProto:
    "Two layers over encoded rows."
    rng = np.random.default_rng(seed)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])]
    ends += [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows"])]
    weights = {"a": rng.normal(0, 0.5, (WIDTH, 64)), "b": rng.normal(0, 0.3, (64, 1))}
    fixed = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["z"], "second"),
        helper.make_node("Squeeze", ["z", "axis"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    fixed.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], fixed)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(folder: Path, made: onnx.ModelProto, by_row: bool = False) -> bundles.Bundle:
    parts = {
        "model": MODEL,
        "config": {"by_row": by_row},
        "framework": "numpy",
        "weights": graph_weights(made),
    }
    return bundles.save(folder, **parts, contract=toy.CONTRACT, recipe=toy.recipe())


def test_a_bundle_carries_a_graph(tmp_path: Path) -> None:
    bundle, columns = saved(tmp_path / "whole", proto()), toy.columns(100)
    x = bundle.recipe.encode(columns)
    assert np.array_equal(bundle.predictor()(columns), OnnxScorer().load_weights(graph_weights(proto()))(x))
    assert (
        bundle.predictor()(columns)[7:8].tobytes()
        == bundle.predictor()({k: v[7:8] for k, v in columns.items()}).tobytes()
    )


@pytest.mark.parametrize("how", ["int8 static", "int4 weights", "bf16 weights"])
def test_fewer_bits_are_nearly_the_same_and_never_depend_on_neighbours(tmp_path: Path, how: str) -> None:
    columns = toy.columns(500)
    x = toy.recipe().encode(columns)
    small = saved(tmp_path / "small", quantised(proto(), how, x)).predictor()
    moved = np.abs(small(columns) - saved(tmp_path / "whole", proto()).predictor()(columns))
    assert 0 < moved.mean() < 0.05
    assert small.rows_per_tile == 32


def test_dynamic_scales_mix_rows_and_are_refused_unless_asked_row_by_row(tmp_path: Path) -> None:
    made = quantised(proto(), "int8 dynamic", toy.recipe().encode(toy.columns(100)))
    with pytest.raises(BadInput, match="mixes rows"):
        saved(tmp_path / "mixed", made)
    honest = saved(tmp_path / "honest", made, by_row=True).predictor()
    columns = toy.columns(50)
    assert honest(columns)[3:4].tobytes() == honest({k: v[3:4] for k, v in columns.items()}).tobytes()


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(BadInput, match="are no graph"):
        OnnxScorer().load_weights({"w": np.zeros(3)})
    with pytest.raises(BadInput, match="cannot read the graph"):
        OnnxScorer().load_weights({GRAPH: np.frombuffer(b"no graph", dtype=np.uint8)})
    with pytest.raises(BadInput, match="no graph yet"):
        OnnxScorer()(np.zeros((1, 2), np.float32))
    with pytest.raises(NotFound, match="there is no file nowhere.onnx"):
        from_onnx(Path("nowhere.onnx"))


def test_a_graph_without_a_product_is_not_called_smaller() -> None:
    plain = proto()
    del plain.graph.node[:]
    plain.graph.node.extend([helper.make_node("ReduceSum", ["x", "axis"], ["probability"], keepdims=0)])
    with pytest.raises(BadInput, match="nothing of the graph is int4 weights"):
        quantised(plain, "int4 weights", np.zeros((1, WIDTH), np.float32))
