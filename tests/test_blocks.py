"""Blocks are found from the graph alone."""

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxprune.blocks import Block, alive, blocks
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.testing import Builder
from tests.stacks import chain, dense, linear, residual, transformer


def found(model: ModelProto, run: int = 1) -> list[Block]:
    return blocks(couple(load(model)), run)


def exits(model: ModelProto, run: int = 1) -> list[str]:
    return [block.exit for block in found(model, run)]


def test_branches_of_a_transformer_with_norms_in_front() -> None:
    assert exits(transformer()) == ["0.attn.sum", "0.mlp.sum", "1.attn.sum", "1.mlp.sum"]
    assert all(block.axis == 2 for block in found(transformer()))


def test_layers_are_runs_of_branches() -> None:
    runs = [block for block in found(transformer(), run=2) if block.parts == 2]
    assert [block.exit for block in runs] == ["0.mlp.sum", "1.attn.sum", "1.mlp.sum"]
    assert runs[-1].entry == "0.mlp.sum"
    single = {block.exit: block for block in found(transformer())}
    assert runs[-1].weighted == single["1.attn.sum"].weighted | single["1.mlp.sum"].weighted
    assert sorted(block.parts for block in found(transformer(), run=4)) == [1, 1, 1, 1, 2, 2, 2, 3, 3, 4]


def test_norms_behind_the_sums() -> None:
    whole = found(transformer(before=False), run=2)
    assert [b.exit for b in whole if b.parts == 1] == ["0.attn.sum", "0.mlp.sum", "1.attn.sum", "1.mlp.sum"]
    layer = next(b for b in whole if b.exit == "0.mlp.sum" and b.parts == 2)
    graph = load(transformer(before=False))
    assert "LayerNormalization" in {graph.nodes[index].op for index in layer.nodes}  # the one between the halves


def test_a_mask_goes_into_a_branch_and_stays() -> None:
    model = transformer(mask=True)
    assert exits(model) == ["0.attn.sum", "0.mlp.sum", "1.attn.sum", "1.mlp.sum"]
    graph, first = load(model), found(model)[0]
    assert "Unsqueeze" not in {graph.nodes[index].op for index in first.nodes}


def test_residual_blocks_without_the_relu_behind() -> None:
    made = found(residual())
    assert [block.exit for block in made] == ["sum0", "sum1", "sum2"]
    graph = load(residual())
    assert [graph.producer[block.entry].op for block in made] == ["Relu"] * 3
    assert all(block.axis == 1 for block in made)


def test_a_branch_that_changes_the_size_is_none() -> None:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 8))
    y = b.op("Add", b.conv(x, 12, 1), b.conv(b.op("Relu", b.conv(x, 12)), 12))
    assert not exits(b.model(b.conv(y, 4, 1)))


def test_growing_concatenations_have_none() -> None:
    assert not exits(dense(), run=2)


def test_stages_of_a_chain() -> None:
    made = found(chain(), run=2)
    ends = [(b.entry, b.exit, b.parts) for b in made]
    assert ends == [
        ("start", "relu0", 1),
        ("relu0", "relu1", 1),
        ("start", "relu1", 2),
        ("relu1", "relu2", 1),
        ("relu0", "relu2", 2),
    ]


def test_what_others_read_stays() -> None:
    """An inner value is an output, too: what makes it is no part of the block."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem"))
    inner = b.op("Relu", b.conv(x, 8, name="a"), name="inner")
    y = b.op("Add", x, b.conv(inner, 8, name="b"), name="sum")
    (block,) = found(b.model(b.conv(y, 4, 1), inner))
    graph = load(b.model(b.conv(y, 4, 1), inner))
    assert block.exit == "sum"
    assert [graph.nodes[i].inputs[1] for i in block.nodes] == ["b"]


def test_parallel_branches_are_two() -> None:
    """x + attention(norm(x)) + mlp(norm(x)), as GPT-J has it."""
    b = Builder()
    x = linear(b, b.input("x", "N", 5, 6), 8, "embed")
    y = b.op("LayerNormalization", x, b.near_one(8), b.weight(8))
    first = b.op("Add", x, linear(b, y, 8, "a"), name="first")
    second = b.op("Add", first, linear(b, b.op("Relu", linear(b, y, 16, "up")), 8, "down"), name="second")
    model = b.model(linear(b, second, 4, "head"))
    assert exits(model) == ["first", "second"]


def test_weights_alone_are_no_branch() -> None:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 8))
    bias = b.op("Add", x, b.weight(1, 8, 8, 8))
    assert not exits(b.model(b.conv(b.op("Add", bias, b.op("Sigmoid", x)), 4, 1)))


def branching(capture: str) -> ModelProto:
    """The last layer reads a value through an If, whose body captures it."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem"))
    inner = b.op("Relu", b.conv(x, 8, name="a"), name="inner")
    b.op("Add", x, b.conv(inner, 8, name="b"), name="sum")
    info = helper.make_tensor_value_info("taken", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Identity", [capture], ["taken"])], "body", [], [info])
    read = b.op("If", b.const(np.array(True)), then_branch=body, else_branch=body)
    b.declare(read, "N", 8, 8, 8)
    return b.model(b.conv(b.op("Add", "sum", read), 4, 1, name="last"))


def test_captures_of_subgraphs_are_read() -> None:
    for capture, layers in (("inner", ["b"]), ("sum", ["a", "b"])):
        block = next(b for b in found(branching(capture)) if b.exit == "sum")
        graph = load(branching(capture))
        assert [graph.nodes[i].inputs[1] for i in sorted(block.weighted)] == layers


def test_what_is_alive() -> None:
    graph = load(chain(2))
    whole, short = alive(graph, {}), alive(graph, {"relu1": "start"})
    assert [graph.nodes[i].op for i in sorted(whole - short)] == ["Conv", "Relu", "Conv"]
