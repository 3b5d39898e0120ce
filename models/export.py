"""Export the architectures of this folder, or torchvision's and timm's, to ONNX.

    python models/export.py all -o FOLDER --exporter both --check   # or some names instead of all
    python models/export.py --torchvision resnet50 -o FOLDER        # where torchvision is installed
    python models/export.py --timm convnext_tiny -o FOLDER          # where timm is installed

All weights are random.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models.architectures import ARCHITECTURES, example_inputs
from models.architectures.common import settle
from models.detection_ops import register_torchscript, translations
from models.torchvision_ops import import_torchvision

EXPORTERS = {"torchscript": 17, "dynamo": 18}  # and the opset that each writes by default


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's warnings, prints and log lines off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def export_module(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    exporter: str = "torchscript",
    dynamic_batch: bool = False,
    opset: int | None = None,
    fold: bool = True,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
) -> Path:
    """Export one module in eval mode; without `fold`, BatchNorms and constant expressions stay."""
    if exporter not in EXPORTERS:
        raise ValueError(f"exporter {exporter!r} is not one of {', '.join(EXPORTERS)}")
    with torch.no_grad():
        outputs = model.eval()(*inputs)
    input_names = input_names or (["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))])
    count = 1 if isinstance(outputs, Tensor) else len(outputs)
    output_names = output_names or (["output"] if count == 1 else [f"output{i}" for i in range(count)])
    options: dict[str, Any]
    if exporter == "dynamo":
        options = {"dynamo": True, "optimize": fold, "external_data": False}
        options["custom_translation_table"] = translations()
        if dynamic_batch:
            options["dynamic_shapes"] = tuple({0: torch.export.Dim("N")} for _ in inputs)
    else:
        register_torchscript()
        mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
        options = {"dynamo": False, "do_constant_folding": fold, "training": mode}
        if dynamic_batch:
            options["dynamic_axes"] = {name: {0: "N"} for name in (*input_names, *output_names)}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            model,
            inputs,
            str(path),
            input_names=input_names,
            output_names=output_names,
            opset_version=opset or EXPORTERS[exporter],
            **options,
        )
    return Path(path)


def export(
    name: str,
    path: str | os.PathLike[str],
    exporter: str = "torchscript",
    dynamic_batch: bool = False,
    opset: int | None = None,
    fold: bool = True,
    width: float = 1.0,
) -> Path:
    """Export one of the architectures; a dynamic batch is called N."""
    inputs = example_inputs(name, batch=2 if dynamic_batch else 1)
    return export_module(ARCHITECTURES[name](width), inputs, path, exporter, dynamic_batch, opset, fold)


def own_model(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One of the architectures of this folder, and its inputs."""
    return ARCHITECTURES[name](), example_inputs(name)


def torchvision_model(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A torchvision model with random weights and settled norms, and its input."""
    import_torchvision()
    from torchvision.models import get_model

    torch.manual_seed(0)
    with quiet():
        model: nn.Module = get_model(name, weights=None)
    size = 299 if name == "inception_v3" else 224
    settle(model, [torch.randn(4, 3, size, size)], weights=False)
    return model.eval(), (torch.randn(1, 3, size, size),)


def timm_model(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A timm model with random weights and settled norms, and its input."""
    import_torchvision()
    import timm
    from timm.data.config import resolve_data_config

    torch.manual_seed(0)
    with quiet():
        model: nn.Module = timm.create_model(name, pretrained=False, exportable=True)
        shape = resolve_data_config({}, model=model)["input_size"]
    settle(model, [torch.randn(4, *shape)], weights=False)
    return model.eval(), (torch.randn(1, *shape),)


def difference(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> float:
    """The largest absolute difference between torch and ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    got = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        outputs = model(*inputs)
    wanted = (outputs,) if isinstance(outputs, Tensor) else outputs
    return max(float((w - torch.from_numpy(g)).abs().max()) for w, g in zip(wanted, got, strict=True))


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export models to ONNX.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="an architecture of this folder, or 'all'")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, made if missing")
    parser.add_argument("--torchvision", action="append", default=[], metavar="NAME", help="from torchvision")
    parser.add_argument("--timm", action="append", default=[], metavar="NAME", help="from timm")
    parser.add_argument("--exporter", choices=(*EXPORTERS, "both"), default="torchscript")
    parser.add_argument("--opset", type=int, help="default: 17 for torchscript, 18 for dynamo")
    parser.add_argument("--dynamic-batch", action="store_true", help="name the batch axis N")
    parser.add_argument("--no-fold", action="store_true", help="keep BatchNorms and constant expressions")
    parser.add_argument("--check", action="store_true", help="compare with torch in ONNX Runtime")
    args = parser.parse_args(argv)
    names = [*ARCHITECTURES] if "all" in args.names else args.names
    if unknown := sorted(set(names) - set(ARCHITECTURES)):
        parser.error(f"unknown architecture {unknown[0]!r}; known: {', '.join(ARCHITECTURES)}")
    if not (names or args.torchvision or args.timm):
        parser.error("name an architecture, 'all', --torchvision or --timm")

    batch = 2 if args.dynamic_batch else 1
    jobs = [(name, own_model) for name in names]
    jobs += [(name, torchvision_model) for name in args.torchvision]
    jobs += [(name, timm_model) for name in args.timm]
    exporters = list(EXPORTERS) if args.exporter == "both" else [args.exporter]
    args.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, make in jobs:
        model, inputs = make(name)
        inputs = tuple(x.expand(batch, *x.shape[1:]).clone() for x in inputs)
        for exporter in exporters:
            path = args.output / (f"{name}.{exporter}.onnx" if len(exporters) > 1 else f"{name}.onnx")
            try:
                export_module(model, inputs, path, exporter, args.dynamic_batch, args.opset, not args.no_fold)
                note = f"  difference {difference(model, inputs, path):.1e}" if args.check else ""
            except Exception as error:
                failed += 1
                print(f"{path}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB{note}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
