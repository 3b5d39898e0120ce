"""`--data` with images and without any files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.e2e.conftest import classifier

if TYPE_CHECKING:
    from tests.e2e.conftest import Fails, Run

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
PRUNE = ("prune", "net.onnx", "-o", "small.onnx", "--bench-seconds", 0, "--align", 1)


@pytest.fixture
def photos(folder: Path) -> Path:
    for index in range(4):
        path = folder / "photos" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (12, 9, 3), np.uint8)).save(path)
    return folder / "photos"


def test_a_folder_of_images(run: Run, photos: Path) -> None:
    result = run(*PRUNE, "--data", "photos", "--preprocess", "imagenet", "--criterion", "l2", "--recover", "none")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "4 samples" in " ".join(result.stdout.split())


def test_bench_on_a_folder_of_images(run: Run, photos: Path) -> None:
    result = run("bench", "net.onnx", "--data", "photos", "--preprocess", "imagenet", "--seconds", 1)
    assert result.exit_code == 0, (result.stderr, result.exception)


def test_images_without_a_word_on_how_they_are_fed(fails: Fails, photos: Path) -> None:
    assert "photos: images; say how they become an input, with --preprocess imagenet" in fails(
        *PRUNE, "--data", "photos"
    )


def test_a_broken_image(fails: Fails, photos: Path) -> None:
    (photos / "zebra.jpg").write_bytes(b"no image")
    message = fails(*PRUNE, "--data", "photos", "--preprocess", "imagenet")
    assert message.startswith("photos/zebra.jpg: not a readable image")


def test_preprocessing_that_makes_no_sense(fails: Fails, run: Run, photos: Path) -> None:
    assert "preprocess: 'imagnet' is not known" in fails(*PRUNE, "--data", "photos", "--preprocess", "imagnet")
    assert "images.npz: holds no images" in fails(*PRUNE, "--data", "images.npz", "--preprocess", "imagenet")
    result = run(*PRUNE, "--preprocess", "imagenet")
    assert result.exit_code == 2 and "name their folder with --data" in result.stderr


def test_synthetic_data(run: Run) -> None:
    result = run(*PRUNE, "--data", "synthetic", "--shape", "x=2x3x8x8")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert Path("small.onnx").exists()


def test_the_page_runs_and_names_every_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnxprune.data.preprocess import PRESETS, READERS

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}" in text for key in (*PRESETS, *READERS, "gray"))
    onnx.save(classifier(side=32), "model.onnx")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "synthetic [(8, 3, 32, 32), (8, 3, 32, 32)]\n"
