"""The sweep of accuracy over MACs kept, with commands in place of a suite, and the page that is made of it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.testing import sandwich
from tools.accuracy_page import page, plot, read, sweeps
from tools.bench_accuracy import Failed, filled, models, number, thin

TOOL = Path(__file__).parents[1] / "tools" / "bench_accuracy.py"
CALIBRATE = """
import sys, numpy
x = numpy.random.default_rng(int(sys.argv[2])).standard_normal((20, 3, 6, 6)).astype("f")
numpy.savez(sys.argv[1], x=x)
"""


def row(**more: Any) -> dict[str, Any]:
    """A row as the sweep writes it."""
    about = {"model": "net", "variant": "default", "seed": 0, "share": 0.5, "measure": "top-1", "options": []}
    figures = {"dense": 0.95, "kept": 0.48, "value": 0.9, "seconds": 12.0, "megabytes": 345.6, "processors": 2}
    return {**about, **figures, **more}


def test_values_are_read_from_the_last_line() -> None:
    assert number("0.5") == 0.5
    assert number('{"value": 1, "note": "all"}') == 1.0
    for text in ("", "fine", "NaN", "null", '{"score": 1}', '{"value": null}'):
        with pytest.raises(Failed, match="no number"):
            number(text)


def test_words_of_a_command_may_contain_spaces_and_braces() -> None:
    made = filled("python 'my eval.py' {model} --to={out} {other}", model="a {out}.onnx", out="b c")
    assert made == ["python", "my eval.py", "a {out}.onnx", "--to=b c", "{other}"]


def test_samples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    source, out = str(tmp_path / "all.npz"), tmp_path / "some.npz"
    np.savez(source, x=np.arange(30), y=np.arange(30.0)[:, None])
    chosen = []
    for seed in ("0", "0", "1"):
        thin(source, str(out), "16", seed)
        with np.load(out) as file:
            assert len(file["x"]) == 16 and (file["x"] == file["y"][:, 0]).all()
            chosen.append(file["x"].tolist())
    assert chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(SystemExit, match="64 samples are wanted, and there are 30"):
        thin(source, str(out), "64", "0")


def test_a_model_has_one_source_of_inputs(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"model": [{"name": "net", "path": "net.onnx", "evaluate": "true"}]}))
    with pytest.raises(SystemExit, match="net: give either"):
        models(path)


def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    onnx.save(sandwich(lambda b, y: b.op("Relu", y), channels=32), tmp_path / "net.onnx")
    (tmp_path / "calibrate.py").write_text(CALIBRATE)
    (tmp_path / "evaluate.py").write_text("import sys, os\nprint('a remark')\nprint(os.path.getsize(sys.argv[1]))\n")
    python = shlex.quote(sys.executable)
    (tmp_path / "models.toml").write_text(
        f'[[model]]\nname = "net"\npath = "net.onnx"\nevaluate = "{python} evaluate.py {{model}}"\n'
        f'calibrate = "{python} calibrate.py {{out}} {{seed}}"\n'
        f'[[model]]\nname = "broken"\npath = "net.onnx"\nevaluate = "{python} nothing.py"\ndata = "no.npz"\n'
    )
    out = tmp_path / "rows.jsonl"
    options = [str(tmp_path / "models.toml"), "--shares", "0.5", "--seeds", "0", "--out", str(out)]

    def sweep(*more: str) -> int:
        return subprocess.run([sys.executable, str(TOOL), *options, *more], check=False).returncode

    assert sweep("--models", "net", "--variants", "magnitude") == 0
    (first,) = read([out])
    assert 0 < first["kept"] <= 0.5 and first["value"] < first["dense"]
    assert first["recover"] == "none" and first["distance"] is None
    assert first["seconds"] > 0 and first["megabytes"] > 10
    assert sweep("--variants", "magnitude,samples-64") == 1
    rows = {(r["model"], r["variant"]): r for r in read([out])}
    assert rows["net", "magnitude"] == first
    assert rows["net", "samples-64"]["error"] == "samples: 64 samples are wanted, and there are 20"
    assert "nothing.py" in rows["broken", "magnitude"]["error"]
    assert len(out.read_text().splitlines()) == 4


def test_the_page_has_means_spreads_and_blanks() -> None:
    rows = [row(), row(seed=1, value=0.92), row(share=0.9, kept=0.88), row(variant="none", share=0.9, value=0.7)]
    rows += [row(variant="gone", error="prune: /home/me/a net.onnx: /tmp/x/out.onnx | no")]
    text = page(rows, "accuracy")
    assert "| variant | 0.9 | 0.5 |" in text
    assert "| default | 0.900 (n=1) | 0.910 ± 0.014 |" in text
    assert "| none | 0.700 (n=1) |  |" in text
    assert "| default | 12.0 | 346 | 0.880 | 0.480 |" in text
    assert "top-1. Dense: 0.950." in text
    assert "--shares 0.9,0.5 --seeds 0,1" in text
    assert "/home" not in text and "/tmp" not in text and "| prune: a net.onnx: out.onnx \\| no |" in text
    assert text.endswith("|\n")


def test_plots_are_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (sweep,) = sweeps([row(), row(seed=1, value=0.92), row(share=0.9, kept=0.88), row(variant="none")])
    for name in ("a.svg", "b.svg"):
        plot(sweep, tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "dc:date" not in text and ">dense<" in text
