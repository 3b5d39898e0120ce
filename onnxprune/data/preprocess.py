"""`--preprocess`: how an image becomes an input, as a small text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from onnxprune.errors import DataError

FITS, ORDERS, LAYOUTS = ("crop", "pad", "stretch"), ("rgb", "bgr"), ("auto", "nchw", "nhwc")
PRESETS: dict[str, dict[str, Any]] = {
    # Shorter side 256, the centre 224: the same share for another size.
    "imagenet": {"usual": 224, "crop_pct": 224 / 256, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
EXAMPLE = "--preprocess imagenet, or as in --preprocess resize=256,crop=224,scale=255,mean=0.5,std=0.5"


@dataclass(frozen=True)
class Preprocess:
    """Pixels / scale, minus mean, by std, of an image that was brought to a size.

    A size that the model fixes is the one that counts. Models that take 8-bit integers get the pixels as they are.

    Attributes:
        resize: the shorter side before the crop; with another `fit` than crop: both sides.
        crop: height and width that are fed; None: the model's own, else `usual`, else what `resize` made of it.
        fit: how an image of other proportions gets there: the centre of it, all of it on grey bars, or out of shape.
        crop_pct: the share of the shorter side that the crop keeps, where `resize` does not say.
        scale: what pixels (0 to 255) are divided by.
        mean, std: one number, or one for each channel in the order that the model takes them.
        order: of the colours.
        layout: where the channels are; auto: as the input's shape tells.
        gray: drop the colours.
        usual: size for models that leave it open.
    """

    resize: int | None = None
    crop: tuple[int, int] | None = None
    fit: str = "crop"
    crop_pct: float = 1.0
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str = "rgb"
    layout: str = "auto"
    gray: bool = False
    usual: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("fit", FITS), ("order", ORDERS), ("layout", LAYOUTS)):
            if getattr(self, name) not in known:
                raise _wrong(f"{name} is {getattr(self, name)!r}; give {' or '.join(known)}")
        if any(n is not None and n < 1 for n in (self.resize, self.usual, *(self.crop or ()))):
            raise _wrong("a size is less than 1 pixel; give one as in crop=224")
        if not 0 < self.crop_pct <= 1:
            raise _wrong(f"crop_pct is {self.crop_pct:g}; give a share as in crop_pct=0.875")
        if not (isfinite(self.scale) and self.scale > 0):
            raise _wrong(f"scale is {self.scale:g}; give what pixels are divided by, as in scale=255")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, 3):
                raise _wrong(f"{name} has {len(getattr(self, name))} numbers; give 1 or 3, as in {name}=0.5:0.5:0.5")
        if not all(map(isfinite, self.mean)) or not all(isfinite(n) and n > 0 for n in self.std):
            raise _wrong("mean must be finite, and std more than 0")
        if self.resize and self.crop and self.fit == "pad":
            raise _wrong("with fit=pad, crop is the size; leave resize out")
        if self.resize and self.crop and self.resize < min(self.crop):
            raise _wrong(f"resize={self.resize} is smaller than the crop; make it at least {min(self.crop)}")

    @staticmethod
    def parse(text: str) -> Preprocess:
        """Read `imagenet`, `resize=256,crop=224,mean=0.5`, `letterbox=640`, or a preset with changes after it.

        Raises:
            DataError: a key is unknown, or a number wrong.
        """
        given: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for item in text.split(","):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key in given:
                raise _wrong(f"{key} is given twice; drop one")
            given[key] = value
            if not equals and key in PRESETS:
                values = PRESETS[key] | values
            elif not equals and key == "gray":
                values["gray"] = True
            elif not equals or key not in READERS:
                raise _wrong(f"{item.strip()!r} is not known; use {', '.join([*PRESETS, *READERS, 'gray'])}")
            else:
                values |= READERS[key](key, value)
        if "letterbox" in given and given.keys() & {"fit", "crop", "resize"}:
            raise _wrong("letterbox=N is fit=pad,crop=N; leave fit, crop and resize out")
        return Preprocess(**values)


def _wrong(what: str) -> DataError:
    return DataError(f"preprocess: {what}")


def _whole(key: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise _wrong(f"{key}={value} is no size; give pixels as in {key}=224")
    return int(value)


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _wrong(f"{key}={value} is no number; write one as in {key}=0.5") from None


def _sides(key: str, value: str) -> tuple[int, int]:
    """`224`, or height x width as in `192x256`."""
    sides = [_whole(key, side) for side in value.split("x")]
    if len(sides) > 2:
        raise _wrong(f"{key}={value} is no size; give height and width as in {key}=192x256")
    return sides[0], sides[-1]


READERS: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "resize": lambda key, value: {key: _whole(key, value)},
    "crop": lambda key, value: {key: _sides(key, value)},
    "letterbox": lambda key, value: {"fit": "pad", "crop": _sides(key, value)},
    "fit": lambda key, value: {key: value},
    "crop_pct": lambda key, value: {key: _number(key, value)},
    "scale": lambda key, value: {key: _number(key, value)},
    "mean": lambda key, value: {key: tuple(_number(key, n) for n in value.split(":"))},
    "std": lambda key, value: {key: tuple(_number(key, n) for n in value.split(":"))},
    "order": lambda key, value: {key: value},
    "layout": lambda key, value: {key: value},
}
