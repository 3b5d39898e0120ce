"""The graph-surgeon bridge: an unedited round trip changes nothing, an edit changes only what it touches."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.surgeon import from_graphsurgeon, to_graphsurgeon


@pytest.fixture
def model() -> ModelProto:
    """A model with everything that graph-surgeon has no field for."""
    inner = helper.make_function(
        "local", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([0, -1]), "inner")),
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", doc_string="the first"),
        helper.make_node("Twice", ["c"], ["d"], domain="local"),
        helper.make_node("Reshape", ["d", "shape"], ["y"], name="flat"),
    ]
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8], doc_string="images"),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 144])],
        [
            numpy_helper.from_array(rng.standard_normal(7).astype(np.float32), "unread"),
            numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.standard_normal(4).astype(np.float32), "b"),
        ],
        doc_string="a graph",
        value_info=[helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 4, 6, 6])],
    )
    imports = [helper.make_opsetid("local", 1), helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=imports, functions=[inner], producer_name="me", doc_string="a model")
    made.metadata_props.add(key="author", value="somebody")
    made.graph.metadata_props.add(key="stage", value="export")
    made.graph.node[1].metadata_props.add(key="source", value="line 3")
    made.graph.quantization_annotation.add(tensor_name="w")
    onnx.checker.check_model(made)
    return made


def test_an_unedited_round_trip_is_the_same_model(model: ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    again = from_graphsurgeon(to_graphsurgeon(model), model)
    assert again == model
    assert model.SerializeToString(deterministic=True) == before


def test_an_edit_changes_what_it_touches(model: ModelProto) -> None:
    graph = to_graphsurgeon(model)
    conv = next(n for n in graph.nodes if n.op == "Conv")
    conv.attrs["pads"] = [1, 1, 1, 1]
    relu = gs.Variable("r", dtype=np.float32)
    twice = next(n for n in graph.nodes if n.op == "Twice")
    graph.nodes.append(gs.Node("Relu", "new", inputs=[conv.outputs[0]], outputs=[relu]))
    twice.inputs[0] = relu
    graph.toposort()
    edited = from_graphsurgeon(graph, model)
    node = next(n for n in edited.graph.node if n.name == "conv")
    assert helper.get_node_attr_value(node, "pads") == [1, 1, 1, 1]
    assert node.doc_string == "the first" and node.metadata_props[0].key == "source"
    assert [n.op_type for n in edited.graph.node] == ["Constant", "Conv", "Relu", "Twice", "Reshape"]
    assert edited.graph.initializer == model.graph.initializer
    assert edited.metadata_props == model.metadata_props and edited.opset_import == model.opset_import
