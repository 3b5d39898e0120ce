"""Directories of images as data."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxprune.data import Data, Preprocess, pixels, read
from onnxprune.errors import DataError
from onnxprune.feeds import Feed

F32, U8 = np.dtype(np.float32), np.dtype(np.uint8)
NCHW: Any = {"x": (F32, ("N", 3, 8, 8))}
OPEN: Any = {"x": (F32, ("N", 3, "H", "W"))}
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, color: tuple[int, ...] = RED, size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def gradient(path: Path, width: int = 40, height: int = 30) -> np.ndarray[Any, Any]:
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(array).save(path)
    return array


def first(source: Any, inputs: Any, text: str) -> np.ndarray[Any, Any]:
    feed = next(iter(read(source, inputs, preprocess=text)))
    return feed[next(iter(inputs))]


# Files


def test_all_kinds_of_files_in_natural_order_with_sub_folders(tmp_path: Path) -> None:
    for value, name in enumerate(["a/1.jpg", "a/2.JPEG", "a/10.png", "b/c/x.bmp", "y.webp", "z.ppm"]):
        save(tmp_path / name, (value * 10,) * 3)
    (tmp_path / "._z.png").write_bytes(b"left by a Mac")
    (tmp_path / "labels.txt").write_text("no image")
    feeds = read(tmp_path, NCHW, preprocess="scale=1")
    values = [[round(float(f["x"].mean())) for f in turn] for turn in (feeds, feeds)]
    assert values[0] == values[1] == [0, 10, 20, 30, 40, 50]
    assert all(f["x"].shape == (1, 3, 8, 8) and f["x"].dtype == F32 for f in feeds)
    assert feeds.kind == "images"


def test_one_image_and_a_source_with_its_options(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert len(list(read(path, NCHW, preprocess=Preprocess()))) == 1
    feeds = read(Data(str(tmp_path), "imagenet"), NCHW)
    assert feeds.kind == "images"
    assert len(list(read(Data(path), NCHW, preprocess="imagenet"))) == 1


def test_images_are_decoded_when_their_turn_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        save(tmp_path / f"{index}.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    seen: list[str] = []
    decode = pixels._decoded

    def spy(path: Path) -> Image.Image:
        seen.append(path.name)
        return decode(path)

    monkeypatch.setattr(pixels, "_decoded", spy)
    feeds = read(tmp_path, NCHW, preprocess="imagenet")
    assert seen == ["0.png"]
    turn = iter(feeds)
    next(turn), next(turn)
    assert seen[1:] == ["0.png", "1.png"]
    with pytest.raises(DataError, match=r"4\.png: not a readable image \(.*\); replace or remove it"):
        list(turn)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_broken_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable image") as caught:
        read(tmp_path, NCHW, preprocess="imagenet")
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).count(str(path)) == 1


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"a\.png: images are read with Pillow, which is missing; pip install pillow"):
        read(tmp_path, NCHW, preprocess="imagenet")


def test_palettes_alpha_sixteen_bits_and_turned_cameras(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8), RED).quantize(4).save(tmp_path / "1.png")
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "2.png")
    sides = np.zeros((8, 8, 3), np.uint8)
    sides[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(sides).save(tmp_path / "3.png", exif=exif)
    alpha, palette, deep, turned = (f["x"][0] for f in read(tmp_path, NCHW, preprocess="scale=1"))
    assert alpha[:, 0, 0].tolist() == palette[:, 0, 0].tolist() == [255, 0, 0]
    assert np.unique(deep).tolist() == [128]
    assert turned[0, 0].tolist() == [255] * 8 and turned[0, 7].tolist() == [0] * 8


# Pixels


def test_imagenet_is_what_training_did(tmp_path: Path) -> None:
    """Resize(256), CenterCrop(224), ToTensor and Normalize of torchvision, by hand."""
    gradient(tmp_path / "a.png", 333, 270)
    image = Image.open(tmp_path / "a.png").resize((int(256 * 333 / 270), 256), Image.Resampling.BILINEAR)
    left = round((315 - 224) / 2)
    x = np.asarray(image)[16:240, left : left + 224] / 255
    expected = ((x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(first(tmp_path, OPEN, "imagenet"), expected, atol=1e-5)


def test_pixels_are_scaled_and_their_channels_ordered(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (10, 20, 30))
    x = first(tmp_path, NCHW, "scale=10,mean=0:1:2,std=1:2:4")
    np.testing.assert_allclose(x[0, :, 0, 0], [1, 0.5, 0.25])
    x = first(tmp_path, NCHW, "scale=1,mean=30:20:0,order=bgr")
    np.testing.assert_allclose(x[0, :, 0, 0], [0, 0, 10])
    np.testing.assert_allclose(first(tmp_path, NCHW, "gray,scale=1")[0, :, 0, 0], [18, 18, 18])


@pytest.mark.parametrize(
    ("shape", "text", "expected"),
    [
        ((1, 3, 12, 16), "imagenet", (1, 3, 12, 16)),
        ((1, 12, 16, 3), "imagenet", (1, 12, 16, 3)),
        (("N", 3, "H", "W"), "imagenet", (1, 3, 224, 224)),
        (("N", 3, "H", "W"), "crop=10x20", (1, 3, 10, 20)),
        (("N", 3, "H", "W"), "resize=15", (1, 3, 15, 20)),
        (("N", 3, "H", "W"), "scale=1", (1, 3, 30, 40)),
        (("N", 3, "H", "W"), "letterbox=32", (1, 3, 32, 32)),
        (("N", 3, "H", "W"), "resize=16,fit=stretch", (1, 3, 16, 16)),
        (("N", 3, 10, "W"), "scale=1", (1, 3, 10, 10)),
        (("N", "H", "W", 3), "crop=10", (1, 10, 10, 3)),
        (("N", 1, 8, 8), "scale=1", (1, 1, 8, 8)),
        (("N", 8, 8, 1), "scale=1", (1, 8, 8, 1)),
        (("N", None, 8, 8), "gray", (1, 1, 8, 8)),
        (("N", None, None, None), "crop=8,layout=nhwc", (1, 8, 8, 3)),
        ((-1, 3, -1, -1), "crop=8", (1, 3, 8, 8)),
        (None, "crop=8", (1, 3, 8, 8)),
    ],
)
def test_sizes_and_layouts(tmp_path: Path, shape: Any, text: str, expected: tuple[int, ...]) -> None:
    gradient(tmp_path / "a.png")
    x = first(tmp_path, {"x": (F32, shape)}, text)
    assert x.shape == expected and x.flags.c_contiguous


def test_fits(tmp_path: Path) -> None:
    wide = np.zeros((10, 20, 3), np.uint8)
    wide[:, 5:15] = 255  # the centre
    Image.fromarray(wide).save(tmp_path / "a.png")
    inputs = {"x": (F32, (1, 3, 10, 10))}
    crop, stretch = (first(tmp_path, inputs, f"scale=1,fit={fit}")[0, 0, 5] for fit in ("crop", "stretch"))
    assert crop.tolist() == [255] * 10
    assert stretch[0] == stretch[9] == 0 and stretch[4] == stretch[5] == 255
    pad = first(tmp_path, inputs, "scale=1,letterbox=10")[0, 0, :, 5]
    assert pad.tolist() == [114, 114, 255, 255, 255, 255, 255, 114, 114, 114]


def test_types_of_inputs(tmp_path: Path) -> None:
    array = gradient(tmp_path / "a.png", 8, 8)
    assert np.array_equal(first(tmp_path, {"x": (U8, (1, 8, 8, 3))}, "imagenet,crop_pct=1")[0], array)
    half = first(tmp_path, {"x": (np.dtype(np.float16), (1, 3, 8, 8))}, "imagenet")
    assert half.dtype == np.float16


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (1000, 3)])
def test_images_of_odd_proportions(tmp_path: Path, size: tuple[int, int]) -> None:
    save(tmp_path / "a.png", size=size)
    for text in ("imagenet", "letterbox=8", "fit=stretch"):
        assert np.isfinite(first(tmp_path, NCHW, text)).all()


# Batches


def shapes(feeds: Any) -> list[tuple[int, ...]]:
    def shape(feed: Feed) -> tuple[int, ...]:
        return feed["x"].shape

    return [shape(feed) for feed in feeds]


def test_batches(tmp_path: Path) -> None:
    for index in range(5):
        save(tmp_path / f"{index}.png", size=(8, 8 if index < 3 else 9))
    assert [s[0] for s in shapes(read(tmp_path, NCHW, batch=2, preprocess="imagenet"))] == [2, 2, 1]
    assert [s[0] for s in shapes(read(tmp_path, NCHW, batch=2, limit=3, preprocess="imagenet"))] == [2, 2]
    assert [s[0] for s in shapes(read(tmp_path, NCHW, batch=2, preprocess="imagenet").samples())] == [1] * 5
    assert [s[0] for s in shapes(read(tmp_path, OPEN, batch=4, preprocess="scale=1"))] == [3, 2]
    fixed = {"x": (F32, (2, 3, 8, 8))}
    assert shapes(read(tmp_path, fixed, preprocess="imagenet")) == [(2, 3, 8, 8)] * 2
    with pytest.raises(DataError, match="wants 6 images at a time, here are 5"):
        read(tmp_path, {"x": (F32, (6, 3, 8, 8))}, preprocess="imagenet")
    with pytest.raises(DataError, match="differ in size; add crop=224"):
        read(tmp_path, {"x": (F32, (5, 3, "H", "W"))}, preprocess="scale=1")


# What does not fit


@pytest.mark.parametrize(
    ("inputs", "text", "message"),
    [
        (NCHW, None, "say how they become an input, with --preprocess imagenet"),
        ({"x": (F32, ("N", 3))}, "imagenet", "feed the only 4-D input, and the model has 'x' float32 [N, 3]"),
        ({"x": NCHW["x"], "y": NCHW["x"]}, "imagenet", "feed the only 4-D input"),
        ({"x": NCHW["x"], "size": (F32, (2,))}, "imagenet", "feed input 'x', and size stay unfed"),
        ({"x": (np.dtype(np.int32), (1, 3, 8, 8))}, "imagenet", "images become floats or uint8"),
        ({"x": (F32, (1, 64, 8, 8))}, "imagenet", "no axis has the 1 or 3 channels"),
        ({"x": (F32, (1, 4, 8, 8))}, "layout=nchw", "images have 1 or 3 channels"),
        ({"x": (F32, (1, 1, 8, 8))}, "imagenet", "has 1 channel and mean 3 numbers"),
        (NCHW, "crop=9", "wants 8x8 pixels and preprocess makes 9x9"),
        (NCHW, "letterbox=640", "wants 8x8 pixels and preprocess makes 640x640"),
        (NCHW, "resize=7", "takes 8x8 pixels, more than resize=7"),
        ({"x": (F32, ("N", 3, 8, "W"))}, "crop=9x8", "wants 8x? pixels"),
        (OPEN, "fit=pad", "leaves its size open"),
        (NCHW, "imagnet", "preprocess: 'imagnet' is not known"),
    ],
)
def test_images_that_do_not_fit(tmp_path: Path, inputs: Any, text: str | None, message: str) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        read(tmp_path, inputs, preprocess=text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(("preprocess", str(tmp_path)))


def test_preprocessing_of_what_are_no_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 8), np.float32))
    for source in (tmp_path, tmp_path / "a.npy", "synthetic", np.zeros((1, 3, 8, 8), np.float32)):
        with pytest.raises(DataError, match="holds no images to preprocess; leave --preprocess out"):
            read(source, NCHW, preprocess="imagenet")
