"""Every verb does what it says, and leaves what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import __version__
from onnxprune.runtime import run as infer
from onnxprune.runtime import session
from tests.trained import trained

if TYPE_CHECKING:
    from tests.e2e.conftest import Run

FAST = ("--bench-seconds", "0", "--align", "1")


def shapes(path: Path | str) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in onnx.load(path).graph.initializer}


# prune


def test_prune_writes_a_smaller_model_and_prints_the_table(run: Run, folder: Path) -> None:
    before = (folder / "net.onnx").read_bytes()
    result = run("prune", "net.onnx", "-o", "small.onnx", "--data", "images.npz", "--align", 1, "--bench-seconds", 1)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    for word in (
        "parameters",
        "MACs",
        "file",
        "latency",
        "proof",
        "exact",
        "of the data that were put aside",
        "locked",
    ):
        assert word in result.stdout
    assert all(len(line) <= 80 and line == line.rstrip() for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout
    assert (folder / "net.onnx").read_bytes() == before
    onnx.checker.check_model("small.onnx", full_check=True)
    assert sorted(p.name for p in folder.iterdir()) == ["images.npz", "net.onnx", "small.onnx"]


def test_prune_meets_the_target_and_the_record_says_so(run: Run) -> None:
    result = run("prune", "net.onnx", "-o", "small.onnx", "--target", "macs=0.4", *FAST, "--json", "-")
    record = json.loads(result.stdout)
    assert record["macs"]["after"] <= 0.4 * record["macs"]["before"]
    assert record["params"]["after"] == sum(int(np.prod(s)) for s in shapes("small.onnx").values())
    assert record["file_bytes"]["after"] == Path("small.onnx").stat().st_size
    assert record["parity"]["exact"] is True
    assert record["inputs"]["source"].startswith("random")
    assert record["recover"] == "none"
    assert record["onnxprune"] == __version__
    assert record["options"]["target"] == "macs=0.4"
    assert {"version", "groups", "locked", "seconds", "fidelity", "provider", "cuttable"} <= set(record)
    assert {"value", "axis", "node", "op", "reason", "params"} <= set(record["locked"][0])
    assert "latency_ms" not in record


def test_prune_writes_plan_record_and_report(run: Run) -> None:
    files = ("--plan", "plan.json", "--json", "record.json", "--report", "report.html")
    assert run("prune", "net.onnx", "-o", "small.onnx", *FAST, *files).exit_code == 0
    plan = json.loads(Path("plan.json").read_text())
    assert {"version", "model_sha256", "kept", "splits"} <= set(plan)
    assert Path("plan.json").read_text().count("\n") == 1  # compact
    assert {n: s for n, s in shapes("small.onnx").items() if n in plan["kept"]}.items() <= {
        name: [len(axes.get(str(a), range(size))) for a, size in enumerate(shapes("net.onnx")[name])]
        for name, axes in plan["kept"].items()
    }.items()
    page = Path("report.html").read_text()
    assert page.count("<table>") == page.count("</table>") >= 2
    assert "net.onnx" in page and "<script" not in page and "http" not in page
    assert json.loads(Path("record.json").read_text())["out"] == "small.onnx"


def test_a_dash_puts_one_file_alone_on_standard_output(run: Run) -> None:
    result = run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--plan", "-")
    assert set(json.loads(result.stdout)) >= {"kept"}
    assert run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--report", "-").stdout.startswith("<!doctype html>")


def test_quiet_prints_nothing(run: Run) -> None:
    result = run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert json.loads(run("inspect", "net.onnx", "--quiet", "--json", "-").stdout)


def test_selection_options_reach_the_engine(run: Run) -> None:
    target = ("--target", "channels=0.75", "--scope", "local", "--criterion", "l1")
    assert run("prune", "net.onnx", "-o", "a.onnx", *FAST, *target, "--keep", "^stem$").exit_code == 0
    assert shapes("a.onnx")["stem"][0] == 16
    assert run("prune", "net.onnx", "-o", "b.onnx", *FAST, *target, "--ratio", "^wide$=0.25").exit_code == 0
    assert shapes("b.onnx")["wide"][0] == 8
    assert run("prune", "net.onnx", "-o", "c.onnx", *FAST[:2], *target, "--align", 8).exit_code == 0
    assert shapes("c.onnx")["wide"][0] == 24
    random = ("--criterion", "random", "--combine", "max", "--normalise", "none")
    plans = [
        run("prune", "net.onnx", "-o", "d.onnx", *FAST, *random, "--seed", s, "--plan", "-").stdout for s in (1, 1, 2)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_lossless_takes_zeroed_filters_out_and_keeps_the_function(run: Run) -> None:
    model = onnx.load("net.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in ("wide", "wide.bias"):
            array = np.array(numpy_helper.to_array(tensor))
            array[:20] = (
                0 if tensor.name == "wide" else 0.5
            )  # equal constants: one stays, since zeros are padded around
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, "masked.onnx")
    result = run("prune", "masked.onnx", "-o", "small.onnx", "--target", "lossless", "--bench-seconds", 0)
    assert result.exit_code == 0, result.stderr
    assert "exact: the original to" in result.stdout
    assert shapes("small.onnx")["wide"] == [13, 16, 3, 3]
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    a, b = (infer(session(path), {"x": x}) for path in ("masked.onnx", "small.onnx"))
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, atol=1e-5)


def test_no_validate_says_that_nothing_was_proved(run: Run) -> None:
    result = run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--no-validate")
    assert result.exit_code == 0
    assert "none: the models were not run" in result.stdout


def test_without_data_nothing_is_recovered(run: Run) -> None:
    result = run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--recover", "auto")
    assert "recovery     none: without data, what was cut has no expected value; give --data" in result.stdout
    onnx.save(trained(), "normal.onnx")
    for words in ((), ("--recover", "bias")):
        result = run("prune", "normal.onnx", "-o", "small.onnx", *FAST, "--target", "macs=0.8", *words)
        assert "recovery     expected values, without data: " in result.stdout


def test_weights_in_another_file_stay_there(run: Run, folder: Path) -> None:
    onnx.save(onnx.load("net.onnx"), "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    result = run("prune", "big.onnx", "-o", "small.onnx", *FAST, "--target", "params=0.5", "--json", "-")
    record = json.loads(result.stdout)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert record["file_bytes"]["before"] == sizes["big.onnx"] + sizes["big.bin"]
    assert record["file_bytes"]["after"] == sizes["small.onnx"] + sizes["small.onnx.data"]
    assert record["parity"]["exact"]
    onnx.checker.check_model("small.onnx")


def test_files_may_be_replaced_and_folders_differ(run: Run, folder: Path) -> None:
    (folder / "sub").mkdir()
    Path("sub/small.onnx").write_text("old")
    Path("plan.json").write_text("old")
    assert run("prune", "net.onnx", "-o", "sub/small.onnx", *FAST, "--plan", "plan.json").exit_code == 0
    onnx.checker.check_model("sub/small.onnx")
    assert json.loads(Path("plan.json").read_text())["version"] == 1


# apply


def test_apply_replays_a_plan_bit_for_bit(run: Run) -> None:
    run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--plan", "plan.json")
    result = run("apply", "net.onnx", "plan.json", "-o", "again.onnx", "--bench-seconds", 0)
    assert result.exit_code == 0, result.stderr
    assert "exact" in result.stdout
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()


def test_apply_takes_a_reexport_with_other_weights(run: Run) -> None:
    run("prune", "net.onnx", "-o", "small.onnx", *FAST, "--plan", "plan.json")
    model = onnx.load("net.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    onnx.save(model, "retrained.onnx")
    assert run("apply", "retrained.onnx", "plan.json", "-o", "again.onnx", "--bench-seconds", 0).exit_code == 0
    assert shapes("again.onnx") == shapes("small.onnx")


# bench and list


def test_bench_of_one_and_of_two(run: Run) -> None:
    run("prune", "net.onnx", "-o", "small.onnx", *FAST)
    one = run("bench", "net.onnx", "--threads", 1, "--seconds", 1)
    assert one.exit_code == 0 and "median" in one.stdout and "faster" not in one.stdout
    two = run("bench", "net.onnx", "small.onnx", "--threads", 1, "--seconds", 1, "--shape", "x=2x3x8x8")
    assert "faster" in two.stdout and "x 2x3x8x8" in two.stdout and "1 thread" in two.stdout
    found = json.loads(
        run("bench", "net.onnx", "small.onnx", "--seconds", 1, "--data", "images.npz", "--json", "-").stdout
    )
    assert found["speedup"]["low"] <= found["speedup"]["value"] <= found["speedup"]["high"]
    assert found["inputs"] == {"x": [1, 3, 8, 8]}


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("rules", "Conv", ""),
        ("criteria", "l2", "Euclidean norm"),
        ("passes", "prune_channels", "Remove the least important channels"),
        ("providers", "cpu", "available  CPUExecutionProvider"),
    ],
)
def test_list(run: Run, what: str, name: str, text: str) -> None:
    result = run("list", what)
    assert result.exit_code == 0
    lines = {line.split()[0]: line.removeprefix(line.split()[0]).strip() for line in result.stdout.splitlines()}
    assert text in lines[name]
    assert all(lines.values())


def test_choices_on_the_command_line_are_the_engines() -> None:
    from onnxprune.answers import KINDS
    from onnxprune.cli import cli
    from onnxprune.criteria.base import COMBINE
    from onnxprune.passes.prune_channels import SCOPES
    from onnxprune.recovery import AUTO, METHODS

    choices = {p.name: getattr(p.type, "choices", None) for p in cli.commands["prune"].params}
    assert choices["scope"] == SCOPES
    assert choices["combine"] == COMBINE
    assert choices["recover"] == (*METHODS, AUTO)
    assert choices["distance"] == KINDS


def test_latency_in_batches(run: Run) -> None:
    prune = ("prune", "net.onnx", "-o", "small.onnx", "--align", 1, "--bench-seconds", 1, "--json", "r.json")
    for data in (), ("--data", "images.npz", "--scope", "global", "--recover", "none"):
        result = run(*prune, "--batch", 4, *data)
        assert result.exit_code == 0, result.stderr
        assert "batches of 4" in " ".join(result.stdout.split())
        record = json.loads(Path("r.json").read_text())
        assert record["latency_ms"]["inputs"] == {"x": [4, 3, 8, 8]}
    result = run("bench", "net.onnx", "small.onnx", "--threads", 1, "--seconds", 1, "--batch", 2)
    said = " ".join(result.stdout.split())
    assert "batches of 2" in said and "x 2x3x8x8" in said
