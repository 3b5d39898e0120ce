"""Whatever is wrong: one line that says what to do, the right exit code, and nothing changed on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.testing import Builder, close
from tests.trained import pictures, trained

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run

TO_SMALL = ("-o", "small.onnx")
FAST = ("--bench-seconds", "0", "--align", "1")


# Models


def test_a_missing_model(fails: Fails) -> None:
    for verb in (("prune", "none.onnx", *TO_SMALL), ("inspect", "none.onnx"), ("bench", "none.onnx")):
        assert "none.onnx: no such file" in fails(*verb)


def test_a_folder_is_no_model(fails: Fails, folder: Path) -> None:
    (folder / "sub").mkdir()
    for verb in (("prune", "sub", *TO_SMALL), ("inspect", "sub"), ("bench", "sub")):
        fails(*verb)


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x00" * 100, b"\x89PNG\r\n\x1a\n", b'{"version": 1}'])
@pytest.mark.parametrize("name", ["bad.onnx", "bad.json", "bad.txt"])
def test_what_is_no_model(fails: Fails, content: bytes, name: str) -> None:
    Path(name).write_bytes(content)
    assert f"{name}: not an ONNX model" in fails("prune", name, *TO_SMALL)
    assert f"{name}: not an ONNX model" in fails("inspect", name)
    fails("bench", name, "--seconds", 1)


def test_a_model_cut_off_anywhere(fails: Fails) -> None:
    whole = Path("net.onnx").read_bytes()
    for size in [*range(0, 120), *range(120, len(whole) - 40, 997), *range(len(whole) - 40, len(whole))]:
        Path("cut.onnx").write_bytes(whole[:size])
        assert "cut.onnx" in fails("inspect", "cut.onnx")


def test_a_model_without_nodes(fails: Fails) -> None:
    model = onnx.load("net.onnx")
    del model.graph.node[:]
    onnx.save(model, "empty.onnx")
    assert "without nodes" in fails("inspect", "empty.onnx")


def external(where: str = "big.bin") -> onnx.ModelProto:
    """Save `big.onnx` with its weights in `big.bin`; give it back with another location written in it."""
    Path("big.bin").unlink(missing_ok=True)
    onnx.save(onnx.load("net.onnx"), "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    model = onnx.load("big.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = where
    Path("big.onnx").write_bytes(model.SerializeToString())
    return model


def test_external_data_that_is_missing_or_cut_off(fails: Fails) -> None:
    external()
    whole = Path("big.bin").read_bytes()
    Path("big.bin").write_bytes(whole[:-8])
    assert "'big.bin' is cut off" in fails("prune", "big.onnx", *TO_SMALL)
    Path("big.bin").unlink()
    assert "'big.bin' of tensor 'stem' is missing" in fails("prune", "big.onnx", *TO_SMALL)


@pytest.mark.parametrize("verb", [("prune", *TO_SMALL), ("inspect",)])
def test_external_data_outside_the_models_folder(fails: Fails, folder: Path, verb: tuple[str, ...]) -> None:
    (folder / "sub").mkdir()
    for where in ("../big.bin", "sub/../../big.bin", str(folder / "big.bin"), ""):
        external(where)
        os.replace("big.onnx", "sub/big.onnx")
        assert "outside the model's folder" in fails(verb[0], "sub/big.onnx", *verb[1:])


def test_a_link_out_of_the_models_folder_is_no_way_around(fails: Fails, folder: Path) -> None:
    external()
    (folder / "sub").mkdir()
    os.replace("big.onnx", "sub/big.onnx")
    (folder / "sub" / "big.bin").symlink_to(folder / "big.bin")
    assert "outside the model's folder" in fails("prune", "sub/big.onnx", *TO_SMALL)


def test_an_output_whose_data_file_is_the_models(fails: Fails) -> None:
    external()
    model = onnx.load("big.onnx")
    onnx.save(model, "a.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    assert "would replace 'b.onnx.data'" in fails("prune", "a.onnx", "-o", "b.onnx", *FAST)


# Models that are unusual, but fine


def custom(op: str = "Odd", domain: str = "acme") -> onnx.ModelProto:
    b = Builder(acme=1)
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 8, name="w1"))
    y = b.conv(y, 8, name="w2")
    y = b.declare(b.op(f"{domain}::{op}", y), 1, 8, 8, 8)
    return b.model(close(b, y, name="w3"))


@pytest.mark.parametrize(("op", "domain"), [("Odd", "acme"), ("Conv", "acme"), ("NoSuchOperator", "")])
def test_an_unknown_operator_locks_what_it_touches_and_nothing_else(run: Run, op: str, domain: str) -> None:
    onnx.save(custom(op, domain), "odd.onnx")
    result = run("prune", "odd.onnx", *TO_SMALL, *FAST, "--target", "channels=0.5", "--json", "record.json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "not run, so nothing is proved or measured" in " ".join(result.stdout.split())
    kept = {t.name: list(t.dims) for t in onnx.load("small.onnx").graph.initializer}
    assert kept["w1"][0] == 4 and kept["w2"][:2] == [8, 4] and kept["w3"][1] == 8
    name = f"{domain}::{op}".removeprefix("::")
    locks = json.loads(Path("record.json").read_text())["locked"]
    assert f"there is no rule for {name}" in {lock["reason"] for lock in locks}


def test_a_gate_that_cannot_be_measured_does_not_pass(fails: Fails) -> None:
    onnx.save(custom(), "odd.onnx")
    fails("prune", "odd.onnx", *TO_SMALL, *FAST, "--max-drop", 1)
    fails("prune", "odd.onnx", *TO_SMALL, *FAST, "--min-speedup", 0.1)


def test_a_model_without_shapes(run: Run) -> None:
    model = onnx.load("net.onnx")
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, "bare.onnx")
    assert run("inspect", "bare.onnx").exit_code == 0
    result = run("prune", "bare.onnx", *TO_SMALL, *FAST, "--shape", "x=1x3x8x8", "--json", "-")
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads(result.stdout)
    assert record["parity"]["exact"] and record["macs"]["after"] <= 0.5 * record["macs"]["before"]


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)])
def test_weights_of_other_widths(run: Run, dtype: np.dtype[np.generic]) -> None:
    onnx.save(converted(onnx.load("net.onnx"), dtype), "half.onnx")
    result = run("prune", "half.onnx", *TO_SMALL, *FAST, "--json", "-")
    assert result.exit_code == 0, (result.stderr, result.exception)
    small = onnx.load("small.onnx")
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    assert {t.data_type for t in small.graph.initializer} == {kind}
    record = json.loads(result.stdout)
    if kind in (TensorProto.BFLOAT16, TensorProto.DOUBLE):  # ONNX Runtime's CPU provider has no such convolution
        assert "not run" in record["warnings"][0]
    else:
        assert record["parity"]["exact"]
    assert record["params"]["after"] < record["params"]["before"]


def converted(model: onnx.ModelProto, dtype: np.dtype[np.generic]) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    return model


def test_random_inputs_that_a_model_cannot_take_are_a_note(run: Run) -> None:
    b = Builder()
    table = b.const(np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32))
    index = b.op("Add", b.input("index", 1, dtype=np.int64), b.const(np.array([5])))
    y = b.op("Add", b.conv(b.input("x", 1, 3, 4, 4), 8, name="w1"), b.op("Gather", table, index))
    onnx.save(b.model(close(b, b.op("Relu", y))), "picky.onnx")
    result = run("prune", "picky.onnx", *TO_SMALL, *FAST)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "not run, so nothing is proved" in " ".join(result.stdout.split())


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "macs=0.001"), "--target macs=0.001 cannot be met; the least that can remain is macs=0."),
        (("--target", "params=0.5", "--keep", "."), "cannot be met"),
        (("--target", "fewer"), "--target fewer: write"),
        (("--target", "macs=2"), "--target macs=2"),
        (("--target", "macs=nan"), "--target macs=nan"),
        (("--target", "macs=0"), "--target macs=0"),
        (("--target", ""), "--target"),
        (("--criterion", "l22"), "unknown criterion 'l22': did you mean 'l2'?"),
        (("--criterion", "bn"), "no BatchNormalization left"),
        (("--align", "0"), "--align 0"),
        (("--align", "wide"), "--align wide"),
        (("--keep", "("), "not a regular expression"),
        (("--keep", "nothing"), "matches no tensor"),
        (("--ratio", "wide=1.5"), "the share kept must be"),
        (("--shape", "z=1x3x8x8"), "z"),
        (("--shape", "x=1x4x8x8"), "x"),
        (("--provider", "gpu"), "unknown provider 'gpu'; choose one of cpu"),
        (("--threads", "1", "--data", "none.npz"), "none.npz: no such file"),
    ],
)
def test_options_that_make_no_sense(fails: Fails, options: tuple[str, ...], words: str) -> None:
    assert words in fails("prune", "net.onnx", *TO_SMALL, *FAST, *options)


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "net.onnx"),
        ("prune", *TO_SMALL),
        ("prune", "net.onnx", *TO_SMALL, "--recover", "all"),
        ("prune", "net.onnx", *TO_SMALL, "--scope", "all"),
        ("prune", "net.onnx", *TO_SMALL, "--threads", "0"),
        ("prune", "net.onnx", *TO_SMALL, "--shape", "1x3x8x8"),
        ("prune", "net.onnx", *TO_SMALL, "--shape", "x=1,3,8,8"),
        ("prune", "net.onnx", *TO_SMALL, "--ratio", "wide"),
        ("prune", "net.onnx", *TO_SMALL, "--no-validate", "--min-speedup", "1.1"),
        ("prune", "net.onnx", *TO_SMALL, "--no-such-option"),
        ("prune", "net.onnx", *TO_SMALL, "--target", "lossless", "--criterion", "l2"),
        ("prune", "net.onnx", *TO_SMALL, "--target", "lossless", "--ratio", "wide=0.5"),
        ("prune", "net.onnx", *TO_SMALL, "--target", "lossless", "--scope", "local"),
        ("prune", "net.onnx", *TO_SMALL, "--criterion", "random", "--seed", "-1"),
        ("prune", "net.onnx", *TO_SMALL, "--min-speedup", "nan"),
        ("prune", "net.onnx", *TO_SMALL, "--min-speedup", "0"),
        ("prune", "net.onnx", *TO_SMALL, "--max-drop", "nan"),
        ("prune", "net.onnx", *TO_SMALL, "--max-drop", "1.5"),
        ("prune", "net.onnx", *TO_SMALL, "--bench-seconds", "nan"),
        ("list",),
        ("list", "models"),
        ("shrink", "net.onnx"),
    ],
)
def test_usage(run: Run, folder: Path, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == "" and "Usage: onnxprune" in result.stderr and "Error: " in result.stderr
    assert not (folder / "small.onnx").exists()


def test_recovery_and_damage_need_data(fails: Fails) -> None:
    for method in ("channel", "full"):
        assert f"--recover {method} fits weights to inputs: give --data (or --data synthetic), or" in fails(
            "prune", "net.onnx", *TO_SMALL, *FAST, "--recover", method
        )
    assert "--scope damage measures on inputs: give --data" in fails(
        "prune", "net.onnx", *TO_SMALL, *FAST, "--scope", "damage"
    )
    assert "--criterion obs looks at activations: give --data" in fails(
        "prune", "net.onnx", *TO_SMALL, *FAST, "--criterion", "obs"
    )


def absent() -> str:
    """A provider that this build of ONNX Runtime does not have."""
    have = onnxruntime.get_available_providers()
    return "coreml" if "CoreMLExecutionProvider" not in have else "cuda"


def test_a_provider_that_is_absent(fails: Fails) -> None:
    by_clock = ("--target", "latency=0.5")
    for verb in (
        ("prune", "net.onnx", *TO_SMALL, *FAST),
        ("prune", "net.onnx", *TO_SMALL, *by_clock),
        ("prune", "net.onnx", *TO_SMALL, *by_clock, "--data", "images.npz"),
        ("bench", "net.onnx"),
        ("latency", "net.onnx"),
    ):
        assert f"provider '{absent()}': not in this ONNX Runtime" in fails(*verb, "--provider", absent())


def test_a_batch_that_cannot_be(fails: Fails) -> None:
    model = onnx.load("net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, "one.onnx")
    fixed = "--batch 8: input 'x' float32 [1, 3, 8, 8]: the model gives it a batch of 1; leave --batch out"
    for verb in (("prune", "one.onnx", *TO_SMALL), ("bench", "one.onnx"), ("latency", "one.onnx")):
        assert fails(*verb, "--batch", 8) == fixed
    much = "the inputs x [4398046511104, 3, 8, 8] do not fit in memory; give a smaller batch or smaller sizes"
    assert fails("bench", "net.onnx", "--batch", 1 << 42) == much
    assert "4398046511104 samples do not fit" in fails("bench", "net.onnx", "--batch", 1 << 42, "--data", "images.npz")


def test_a_batch_that_is_not_measured(run: Run) -> None:
    for off in ("--no-validate",), ("--bench-seconds", "0"):
        result = run("prune", "net.onnx", *TO_SMALL, "--batch", 8, *off)
        assert result.exit_code == 2
        assert f"{off[0]}" in result.stderr and "--batch without a measurement" in result.stderr


def save(name: str, **arrays: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    np.savez(name, allow_pickle=True, **arrays)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: save("d.npz", a=np.zeros((2, 3, 8, 8), np.float32), b=np.zeros(2)), "no array for input x"),
        (lambda: save("d.npz", x=np.zeros((2, 3, 9, 9), np.float32)), "input 'x' wants float32 [N, 3, 8, 8]"),
        (lambda: save("d.npz", x=np.zeros((2, 8, 8, 3), np.float32)), "channels-last"),
        (lambda: save("d.npz", x=np.zeros((2, 3, 8, 8), np.uint8)), "wants float32 and the data are uint8"),
        (lambda: save("d.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32)), "NaN"),
        (lambda: save("d.npz", x=np.full((2, 3, 8, 8), np.inf, np.float32)), "infinite"),
        (
            lambda: save("d.npz", x=np.ones((1, 3, 8, 8), np.float32)),
            "1 sample in --data, which is too few to calibrate with; give 16",
        ),
        (
            lambda: save("d.npz", x=np.ones((9, 3, 8, 8), np.float32)),
            "all samples in --data are the same; give inputs such as",
        ),
        (lambda: save("d.npz", x=np.zeros((0, 3, 8, 8), np.float32)), "d.npz"),
        (lambda: Path("d.npz").write_bytes(b"no archive"), "d.npz"),
        (lambda: Path("d.npz").mkdir(), "d.npz: no .npz, .npy"),
    ],
    ids=["name", "shape", "layout", "dtype", "nan", "inf", "one", "same", "empty", "broken", "folder"],
)
def test_data_that_do_not_fit(fails: Fails, make: Callable[[], object], words: str) -> None:
    make()
    assert words in fails("prune", "net.onnx", *TO_SMALL, *FAST, "--data", "d.npz")
    if "samples in --data are" not in words and "1 sample" not in words:  # enough to take the time
        fails("bench", "net.onnx", "--data", "d.npz")


def test_data_that_are_strange_are_noticed(run: Run) -> None:
    plain = ("--criterion", "l2", "--recover", "none", "--data", "d.npz")
    save("d.npz", x=np.ones((9, 3, 8, 8), np.float32))
    result = run("prune", "net.onnx", *TO_SMALL, *FAST, *plain, "--json", "record.json")
    assert result.exit_code == 0, result.stderr
    assert "all layers read the same, whatever the input" in " ".join(result.stdout.split())
    assert "all layers read the same" in json.loads(Path("record.json").read_text())["warnings"][0]
    onnx.save(trained(), "normal.onnx")
    save("d.npz", x=127.5 * pictures()["x"] + 127.5)
    result = run("prune", "normal.onnx", *TO_SMALL, *FAST, *plain, "--target", "macs=0.8")
    assert "look like what the model was trained on: as 0 to 255 brought to -1" in " ".join(result.stdout.split())


@pytest.mark.parametrize(("op", "attrs"), [("ArgMax", {"axis": 1}), ("Cast", {"to": TensorProto.INT64}), ("Shape", {})])
def test_a_model_whose_outputs_are_integers(run: Run, op: str, attrs: dict[str, Any]) -> None:
    b = Builder()
    y = b.op("Relu", b.conv(b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 16)), 16))
    y = b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), 5)
    onnx.save(b.model(b.op(op, y, **attrs)), "int.onnx")
    for data in ((), ("--data", "images.npz")):
        result = run("prune", "int.onnx", *TO_SMALL, *FAST, "--target", "macs=0.7", *data, "--json", "-")
        assert result.exit_code == 0, (result.stderr, result.exception)
        assert json.loads(result.stdout)["parity"]["exact"]


def test_two_models_with_other_inputs_cannot_be_compared(fails: Fails) -> None:
    b = Builder()
    onnx.save(b.model(b.conv(b.input("image", 1, 3, 8, 8), 4)), "other.onnx")
    assert "other.onnx: its inputs are not those of net.onnx" in fails("bench", "net.onnx", "other.onnx")


# Outputs


@pytest.mark.parametrize("where", ["none/small.onnx", "sub", "net.onnx/small.onnx", "images.npz"])
@pytest.mark.parametrize("option", ["-o", "--plan", "--json", "--report"])
def test_an_output_that_cannot_be_written(fails: Fails, folder: Path, option: str, where: str) -> None:
    (folder / "sub").mkdir()
    outputs = {"-o": "small.onnx"} | {option: where}
    given = [word for pair in outputs.items() for word in pair]
    assert where in fails("prune", "net.onnx", *given, *FAST, "--data", "images.npz")


def test_a_folder_that_is_read_only(fails: Fails, folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user writes everywhere")
    for option in ("-o", "--json"):
        assert "cannot be written" in fails("prune", "net.onnx", "-o", "small.onnx", option, "locked/x", *FAST)


@pytest.mark.parametrize("same", ["net.onnx", "./net.onnx", "sub/../net.onnx", "link.onnx"])
@pytest.mark.parametrize("option", ["-o", "--plan", "--json", "--report"])
def test_the_model_is_never_an_output(fails: Fails, folder: Path, option: str, same: str) -> None:
    (folder / "sub").mkdir()
    (folder / "link.onnx").symlink_to(folder / "net.onnx")
    outputs = {"-o": "small.onnx"} | {option: same}
    given = [word for pair in outputs.items() for word in pair]
    assert "is both MODEL and" in fails("prune", "net.onnx", *given, *FAST)


def test_two_outputs_in_one_place(fails: Fails) -> None:
    assert "is both --plan and --json" in fails("prune", "net.onnx", *TO_SMALL, *FAST, "--plan", "-", "--json", "-")
    assert "is both -o and --json" in fails("prune", "net.onnx", *TO_SMALL, *FAST, "--json", "small.onnx")
    assert "is both A and --json" in fails("bench", "net.onnx", "--json", "net.onnx")
    assert "is both MODEL and --json" in fails("inspect", "net.onnx", "--json", "net.onnx")


def test_the_python_call_takes_one_pattern_and_refuses_other_types(folder: Path) -> None:
    result = onnxprune.prune("net.onnx", "macs=0.6", keep="^stem$", align=1, validate=False)
    assert next(t.dims[0] for t in result.model.graph.initializer if t.name == "stem") == 16
    with pytest.raises(onnxprune.OnnxPruneError, match=r"--target 0\.5: write"):
        onnxprune.prune("net.onnx", 0.5)  # type: ignore[arg-type]
    with pytest.raises(onnxprune.OnnxPruneError, match="unknown criterion 'l22'"):
        onnxprune.prune("net.onnx", "lossless", "l22")


def test_a_model_is_not_written_to_standard_output(fails: Fails) -> None:
    assert "-o -: a model is not written to standard output" in fails("prune", "net.onnx", "-o", "-", *FAST)


def test_a_model_of_which_nothing_can_be_cut(fails: Fails, run: Run) -> None:
    b = Builder()
    onnx.save(b.model(b.conv(b.input("x", 1, 3, 8, 8), 4)), "fixed.onnx")
    for target in ("channels=0.5", "params=0.5", "macs=0.5"):
        assert "nothing can be cut; see `onnxprune inspect`" in fails(
            "prune", "fixed.onnx", *TO_SMALL, *FAST, "--target", target
        )
    assert "nothing can be cut" in fails("prune", "net.onnx", *TO_SMALL, "--align", 1000)
    result = run("prune", "fixed.onnx", *TO_SMALL, "--target", "lossless")
    assert result.exit_code == 0 and "nothing to remove" in result.stdout and "latency" not in result.stdout


def test_a_pipe_is_written_and_a_device_never_replaced(run: Run, fails: Fails) -> None:
    assert run("prune", "net.onnx", *TO_SMALL, *FAST, "--json", os.devnull).exit_code == 0
    assert "device" in fails("prune", "net.onnx", "-o", os.devnull, *FAST)
    assert not Path(os.devnull).is_file()


# Gates


def test_a_gate_that_fails_is_exit_code_3_and_leaves_only_the_figures(run: Run) -> None:
    files = ("--plan", "plan.json", "--json", "record.json", "--report", "report.html")
    slow = ("--min-speedup", 1000, "--bench-seconds", 0, "--align", 1)
    drop = ("--max-drop", 0, "--data", "images.npz", "--target", "macs=0.05", "--recover", "none", *FAST)
    for gate, says in ((slow, "less than --min-speedup 1000"), (drop, "more than --max-drop 0")):
        result = run("prune", "net.onnx", *TO_SMALL, *gate, *files)
        assert result.exit_code == 3 and says in result.stderr and result.stderr.count("\n") == 1
        assert not Path("small.onnx").exists() and not Path("plan.json").exists()
        assert json.loads(Path("record.json").read_text())["params"]["after"] > 0
        assert Path("report.html").exists()


def test_gates_that_hold(run: Run) -> None:
    gates = ("--min-speedup", 0.001, "--max-drop", 1)
    assert run("prune", "net.onnx", *TO_SMALL, *FAST, *gates).exit_code == 0
    assert run("prune", "net.onnx", "-o", "whole.onnx", *FAST, "--target", "macs=1", "--max-drop", 0).exit_code == 0


# Plans


@pytest.fixture
def plan(run: Run) -> dict[str, object]:
    """A good plan, also in `plan.json`."""
    assert run("prune", "net.onnx", "-o", "first.onnx", *FAST, "--plan", "plan.json").exit_code == 0
    made: dict[str, object] = json.loads(Path("plan.json").read_text())
    return made


def test_a_plan_of_another_model(fails: Fails, plan: dict[str, object]) -> None:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 12, name="stem"))
    onnx.save(b.model(b.conv(y, 4, name="other")), "other.onnx")
    assert "other.onnx" in fails("apply", "other.onnx", "plan.json", *TO_SMALL)
    assert "first.onnx" in fails("apply", "first.onnx", "plan.json", *TO_SMALL)  # already cut


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"plan"',
        "{}",
        '{"version": 1}',
        '{"version": 99, "model_sha256": "", "kept": {}}',
        '{"version": 1, "model_sha256": "", "kept": []}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": []}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"a": [0]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": []}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [1, 0]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [0.5]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [-1, 0]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [[0], [1]]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [[0], [1, 2]]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [99999999999999999999]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": "all"}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"0": [0, 1]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"-1": [0, 1]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"stem": {"7": [0, 1]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"head": {"0": [0, 1]}}}',
        '{"version": 1, "model_sha256": "", "kept": {"nobody": {"0": [0, 1]}}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "splits": {"a": "nobody"}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "splits": {"a": "stem"}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "splits": 3}',
        '{"version": 1, "model_sha256": "", "kept": {}, "options": {"align": "wide"}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "options": {"align": 0}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "options": {"inexact": "yes"}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "options": {"speed": 11}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "folds": {"stem": 3}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "folds": {"add": 3}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "folds": {"add": [["stem", 0, [0], [99], [1.0]]]}}',
        '{"version": 1, "model_sha256": "", "kept": {}, "folds": {"bias": [["nobody", [0], [1.0]]]}}',
    ],
)
def test_a_plan_file_that_is_none(fails: Fails, text: str) -> None:
    Path("bad.json").write_text(text)
    fails("apply", "net.onnx", "bad.json", *TO_SMALL)


def test_a_plan_file_that_is_missing_or_binary(fails: Fails) -> None:
    assert "none.json: cannot be read" in fails("apply", "net.onnx", "none.json", *TO_SMALL)
    fails("apply", "net.onnx", "net.onnx", *TO_SMALL)
    assert "is both PLAN and -o" in fails("apply", "net.onnx", "images.npz", "-o", "images.npz")


@pytest.mark.parametrize("tensor", ["stem", "wide", "wide.bias", "back"])
def test_a_plan_that_cuts_half_a_unit(
    fails: Fails, plan: dict[str, dict[str, dict[str, list[int]]]], tensor: str
) -> None:
    axis, kept = next(iter(plan["kept"][tensor].items()))
    plan["kept"][tensor][axis] = kept[:-1] if len(kept) > 1 else [kept[0] + 1]
    Path("plan.json").write_text(json.dumps(plan))
    fails("apply", "net.onnx", "plan.json", *TO_SMALL)
