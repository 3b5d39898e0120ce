"""How far answers are off."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.answers import Target, targets
from onnxprune.divergence import SIZE, Distance, distance_of, signatures
from onnxprune.errors import DataError, OptionError
from onnxprune.graph import load
from onnxprune.parts import Engine
from onnxprune.testing import Builder

Array = NDArray[Any]


def classifier(*tail: tuple[str, dict[str, Any]], opset: int = 17) -> ModelProto:
    """A classifier whose logits go through further operators."""
    b = Builder(opset)
    y = b.op("Flatten", b.op("GlobalAveragePool", b.conv(b.input("x", "N", 3, 6, 6), 8)))
    y = b.op("Gemm", y, b.weight(5, 8), transB=1, name="logits")
    for op, attrs in tail:
        y = b.op(op, y, **attrs)
    return b.model(y)


def segmenter(**attrs: Any) -> ModelProto:
    b = Builder()
    y = b.conv(b.input("x", "N", 3, 6, 6), 8)
    y = b.op("Conv", b.op("Relu", y), b.weight(4, 8, 1, 1), name="logits")
    return b.model(b.op("ArgMax", y, **attrs))


def values(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    "tail",
    [
        [("Softmax", {"axis": 1})],
        [("Softmax", {})],
        [("LogSoftmax", {"axis": -1})],
        [("ArgMax", {"axis": 1})],
        [("Softmax", {"axis": 1}), ("ArgMax", {"axis": 1})],
        [("Softmax", {"axis": 1}), ("Cast", {"to": TensorProto.FLOAT16}), ("Identity", {})],
    ],
)
def test_logits_are_compared(tail: list[tuple[str, dict[str, Any]]]) -> None:
    assert targets(load(classifier(*tail))) == (Target("logits", "logits", 1),)


def test_a_softmax_of_an_old_operator_set() -> None:
    assert targets(load(classifier(("Softmax", {}), opset=11))) == (Target("logits", "logits", 1),)


def test_an_argmax_over_maps() -> None:
    assert targets(load(segmenter(axis=1))) == (Target("logits", "logits", 1),)
    assert targets(load(segmenter())) == (Target("logits", "logits", 0),)


def test_plain_outputs_are_vectors_or_values() -> None:
    assert targets(load(classifier())) == (Target("logits", "vectors", 1),)
    found = targets(load(classifier(("Sigmoid", {}))))
    assert [(t.kind, t.axis) for t in found] == [("values", 1)] and found[0].value != "logits"


def test_a_kind_can_be_asked_for() -> None:
    graph = load(classifier(("Softmax", {"axis": 1})))
    assert targets(graph, "values")[0].kind == "values"
    assert targets(graph, "logits")[0].kind == "logits"
    with pytest.raises(OptionError, match="--distance other"):
        targets(graph, "other")


def test_outputs_that_nothing_is_learned_for() -> None:
    b = Builder()
    with pytest.raises(DataError, match="no output is made from numbers"):
        targets(load(b.model(b.op("Relu", b.input("x", 2, 3)))))


@pytest.mark.parametrize("kind", ["logits", "vectors", "values"])
def test_equal_is_zero(rng: np.random.Generator, kind: str) -> None:
    outputs = [{"y": values(rng, 4, 5)} for _ in range(3)]
    distance = Distance((Target("y", kind, 1),), outputs)
    assert distance(outputs) == 0.0
    assert distance.kind == kind and distance.values == ["y"]


def test_logits_may_be_shifted(rng: np.random.Generator) -> None:
    """Softmax does not see it; no answer at all is 1."""
    outputs = [{"y": values(rng, 4, 5).astype(np.float64)} for _ in range(3)]
    distance = Distance((Target("y", "logits", 1),), outputs)
    assert distance([{"y": o["y"] + 7.0} for o in outputs]) == pytest.approx(0.0, abs=1e-12)
    assert distance([{"y": 0.0 * o["y"]} for o in outputs]) == pytest.approx(1.0 + SIZE)


@pytest.mark.parametrize("kind", ["logits", "vectors"])
def test_a_direction_counts_more_than_a_size(rng: np.random.Generator, kind: str) -> None:
    outputs = [{"y": values(rng, 4, 5).astype(np.float64)} for _ in range(3)]
    distance = Distance((Target("y", kind, 1),), outputs)
    smaller = distance([{"y": o["y"] * 0.9} for o in outputs])
    assert 0 < smaller < 0.003
    noisy = distance([{"y": o["y"] + rng.standard_normal(o["y"].shape)} for o in outputs])
    assert 0.2 < noisy < 0.8
    assert distance([{"y": -o["y"]} for o in outputs]) == pytest.approx(1.0 + SIZE)


def test_of_values_the_size_counts_as_much(rng: np.random.Generator) -> None:
    outputs = [{"y": values(rng, 400, 5).astype(np.float64)}]
    distance = Distance((Target("y", "values", 1),), outputs)
    assert distance([{"y": 0.9 * o["y"]} for o in outputs]) == pytest.approx(0.01, rel=0.05)


def test_values_are_relative_to_their_variance(rng: np.random.Generator) -> None:
    outputs = [{"y": values(rng, 8, 5) * 3 + 100} for _ in range(3)]
    distance = Distance((Target("y", "values", 1),), outputs)
    mean = np.concatenate([o["y"] for o in outputs]).astype(np.float64).mean(axis=0)
    assert distance([{"y": np.broadcast_to(mean, (8, 5))} for _ in outputs]) == pytest.approx(1.0)


def test_what_cannot_be_compared_is_infinite(rng: np.random.Generator) -> None:
    outputs = [{"y": values(rng, 4, 5)}]
    distance = Distance((Target("y", "values", 1),), outputs)
    assert distance([{"y": outputs[0]["y"][:, :4]}]) == 1.0  # no answer
    assert distance([{"y": outputs[0]["y"] * np.nan}]) == np.inf
    silent = [{"y": np.full((4, 5), np.nan, np.float32)}]
    assert Distance((Target("y", "values", 1),), silent)(silent) == np.inf


def test_masks_of_half_precision(rng: np.random.Generator) -> None:
    mine = np.where(np.arange(5) < 3, values(rng, 8, 5), np.finfo(np.float16).min).astype(np.float16)
    other = np.where(np.arange(5) < 3, values(rng, 8, 5), np.finfo(np.float16).min).astype(np.float16)
    assert Distance((Target("y", "logits", 1),), [{"y": mine}])([{"y": other}]) > 0.1


@pytest.mark.parametrize("kind", ["logits", "vectors", "values"])
@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min])
def test_what_is_masked_says_nothing(rng: np.random.Generator, kind: str, mask: float) -> None:
    """Numbers that are -inf for the original, as those of tokens that may not come next."""
    mine, other = values(rng, 8, 5), values(rng, 8, 5)
    full = Distance((Target("y", kind, 1),), [{"y": mine}])([{"y": other}])
    wide, wider = (np.pad(v, ((0, 0), (0, 2)), constant_values=mask) for v in (mine, other))
    masked = Distance((Target("y", kind, 1),), [{"y": wide}])
    if kind == "logits":
        assert masked([{"y": np.where(wide > mask, wide + 5, mask)}]) < 1e-6  # Softmax ignores it
    assert masked([{"y": wide}]) == 0.0
    assert masked([{"y": wider}]) == pytest.approx(full, rel=0.3)
    wider[0, 0] = -np.inf
    assert masked([{"y": wider}]) == np.inf


def test_answers_that_never_change(rng: np.random.Generator) -> None:
    outputs = [{"y": np.ones((4, 5), np.float32)}]
    distance = Distance((Target("y", "values", 1),), outputs)
    assert distance(outputs) == 0.0
    assert distance([{"y": values(rng, 4, 5)}]) > 0.5
    assert 0 < distance([{"y": outputs[0]["y"] + 0.01 * values(rng, 4, 5)}]) < 1e-3  # and less can be told from more


def test_no_boxes_without_scores(rng: np.random.Generator) -> None:
    outputs = [{"y": values(rng, 2, 200, 7)}]
    assert Distance((Target("y", "values", 2),), outputs).kind == "values"


@pytest.mark.parametrize(
    ("sizes", "axis", "tail", "expected"),
    [
        ([2, 4], -1, "Softmax", Target("logits", "logits", 1)),
        ([2, 1, 4], -1, "Softmax", Target("logits", "logits", 2)),
        ([2, 4], -1, "", Target("logits", "vectors", 1)),
        ([2, 4, 1, 1], -1, "", Target("logits", "values", 1)),
    ],
)
def test_a_rank_that_the_model_does_not_tell(sizes: list[int], axis: int, tail: str, expected: Target) -> None:
    """Exporters write shapes that nobody can infer; the classes are where the answers have them."""
    b = Builder()
    y = b.op("Gemm", b.input("x", 2, 3), b.weight(4, 3), transB=1)
    y = b.op("Reshape", y, b.input("sizes", "rank", dtype=np.int64), name="logits")
    graph = load(b.model(b.op(tail, y, axis=axis) if tail else y))
    feed = {"x": values(np.random.default_rng(0), 2, 3), "sizes": np.array(sizes)}
    assert not graph.shapes.get("logits")
    distance = distance_of(graph, [feed], Engine(threads=1))
    assert distance.compared == (expected,)
    assert signatures(graph, [feed, feed], Engine(threads=1)).shape == (2, 4)


def test_an_answer_without_axes_or_without_numbers() -> None:
    """A mean of all samples; what of a mask may be nothing at all."""
    for arrays in ([np.float32(2), np.float32(3)], [values(np.random.default_rng(0), n) for n in (0, 2, 5)]):
        outputs = [{"y": np.asarray(value)} for value in arrays]
        distance = Distance((Target("y", "values", 0),), outputs)
        assert distance(outputs) == 0.0 and distance([{"y": o["y"] * 2} for o in outputs]) > 0.1


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 5, "T"), 1), (("N", "T", 5), 2), (("N", 4, 5), 2), (("N", 3, "H", "W"), 1), (("N", "H", "W", 3), 3)],
)
def test_features_are_on_an_axis_of_fixed_size(shape: tuple[int | str, ...], axis: int) -> None:
    b = Builder()
    y = b.op("Mul", b.op("Relu", b.input("x", *shape)), b.weight(1))
    assert targets(load(b.model(b.declare(y, *shape)))) == (Target(y, "values", axis),)


def test_signatures_of_masked_scores_are_finite() -> None:
    b = Builder()
    scores = b.op(
        "Where", b.input("mask", "N", 5, dtype=np.bool_), b.gemm(b.input("x", "N", 8), 5), np.float32(-np.inf)
    )
    graph, rng = load(b.model(b.op("Softmax", scores, axis=1))), np.random.default_rng(0)
    feeds = [{"x": values(rng, 1, 8), "mask": np.arange(5)[None] != n} for n in range(3)]
    assert np.isfinite(signatures(graph, feeds, Engine(threads=1))).all()


def test_signatures() -> None:
    graph = load(classifier(("Softmax", {"axis": 1})))
    feeds = [{"x": values(np.random.default_rng(i), 1, 3, 6, 6)} for i in (0, 1, 0)]
    found = signatures(graph, feeds, Engine(threads=1))
    assert found.shape == (3, 5)
    assert np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[1])


def test_one_sample_has_no_mean_of_its_own(rng: np.random.Generator) -> None:
    """Its answer less its own mean would be nothing, whatever the model does."""
    outputs = [{"y": values(rng, 1, 5)}]
    distance = Distance((Target("y", "vectors", 1),), outputs)
    assert distance(outputs) == 0.0
    assert 0 < distance([{"y": outputs[0]["y"] + 0.1 * values(rng, 1, 5)}]) < 0.5
