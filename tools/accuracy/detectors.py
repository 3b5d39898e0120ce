"""Two detectors: what they take, what they say, and images with things to find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageDraw
from scipy.special import softmax
from tasks.common import DATA, IMAGENET_MEAN, IMAGENET_STD, chw, session
from tasks.natural import crops, photographs
from tasks.rendering import LATIN_FONTS, WORDS, load_font

from tools.accuracy.boxes import Found, mean_average_precision, suppressed

# NudeNet: YOLOv8 over 320 x 320 pixels. Its images are photographs with faces pasted into them.

SIDE = 320
LEAST = 0.25  # of the original's scores: what has to be found again


def scenes(count: int, rng: np.random.Generator, faces: np.ndarray, images: Sequence[Image.Image]) -> Iterator:
    """[3, 320, 320] in 0..1: photographs, three of four with one to three faces."""
    for backdrop in crops(count, SIDE, SIDE, rng, [images[i] for i in rng.permutation(len(images))]):
        pixels = backdrop.copy()
        for _ in range(rng.integers(0, 4)):
            side = int(rng.integers(48, 128))
            face = Image.fromarray((faces[rng.integers(len(faces))] * 255).astype(np.uint8))
            grey = np.asarray(face.resize((side, side), Image.Resampling.BICUBIC), np.float32)
            y, x = rng.integers(0, SIDE - side, 2)
            pixels[y : y + side, x : x + side] = grey[..., None] * np.array([1.05, 0.97, 0.9], np.float32)
        yield chw(np.clip(pixels, 0, 255) / 255)


def faces() -> np.ndarray:
    """Those of the crops that are faces."""
    return np.load(DATA / "lfw_subset.npy")[:100]


def nudenet(runtime: InferenceSession, image: np.ndarray, least: float) -> Found:
    said = runtime.run(None, {"images": image})[0][0].T
    said = said[said[:, 4:].max(axis=1) > least]
    middle, size = said[:, :2], said[:, 2:4]
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    return suppressed(Found(boxes, said[:, 4:].argmax(axis=1), said[:, 4:].max(axis=1)))


def nudenet_calibrate(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 5])
    return {"images": np.concatenate([*scenes(count, rng, faces()[:60], photographs())])}


def nudenet_evaluate(model: str, original: str, count: int = 120) -> float:
    """Other faces, and the photographs of ImageNet."""
    images = [Image.open(path).convert("RGB") for path in sorted((DATA / "imagenet20").iterdir())]
    drawn = [*scenes(count, np.random.default_rng(77), faces()[60:], images)]
    before, after = session(original), session(model)
    truth = [nudenet(before, image, LEAST) for image in drawn]
    return mean_average_precision(truth, [nudenet(after, image, 0.01) for image in drawn])


# PicoDet for layouts: 800 x 608 pixels, four strides, distances to the sides as distributions. Its images are pages.

HIGH, WIDE = 800, 608
STRIDES = (8, 16, 32, 64)
TEXT, TITLE, FIGURE, TABLE = 0, 1, 2, 4
ROW = 18  # of a table, in pixels
FONTS = [font for font in LATIN_FONTS if "Mono" not in font and "Italic" not in font]


def page(rng: np.random.Generator, images: Sequence[Image.Image]) -> tuple[np.ndarray, Found]:
    """A printed page in one column or two, and what is where on it."""
    paper = Image.new("RGB", (WIDE, HIGH), (int(rng.integers(235, 256)),) * 3)
    draw, things = ImageDraw.Draw(paper), []
    columns = int(rng.integers(1, 3))
    margin, gap = int(rng.integers(36, 60)), 22
    width = (WIDE - 2 * margin - gap * (columns - 1)) // columns
    font = str(rng.choice(FONTS))
    for column in range(columns):
        x, y = margin + column * (width + gap), int(rng.integers(36, 70))
        while True:
            kind = int(rng.choice([TEXT, TEXT, TEXT, TITLE, FIGURE, TABLE]))
            rows = int(rng.integers(5, 11))
            high = {TEXT: 13 * rows, TITLE: 20, TABLE: ROW * rows}.get(kind, int(rng.integers(90, 180)))
            if y + high > HIGH - 40:
                break
            right = PRINTERS[kind](draw, paper, rng, (x, y, x + width, y + high), font, images)
            things.append((kind, (x, y, right, y + high)))
            y += high + int(rng.integers(16, 30))
    boxes = np.array([box for _, box in things], np.float64).reshape(-1, 4)
    return np.asarray(paper, np.float32), Found(boxes, np.array([kind for kind, _ in things]), np.ones(len(things)))


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))


def _line(draw: ImageDraw.ImageDraw, rng: np.random.Generator, place: tuple[int, int], width: int, face) -> int:
    """Words up to a width; where they end."""
    text = _words(rng, 30)
    while draw.textlength(text, face) > width:
        text = text.rsplit(" ", 1)[0]
    draw.text(place, text, font=face, fill=(20, 20, 20))
    return place[0] + int(draw.textlength(text, face))


def _text(draw, paper, rng, box, font, images) -> int:
    face, (left, top, right, bottom) = load_font(font, 10), box
    return max(_line(draw, rng, (left, y), right - left, face) for y in range(top, bottom - 6, 13))


def _title(draw, paper, rng, box, font, images) -> int:
    left, top, right, _ = box
    return _line(draw, rng, (left, top), int((right - left) * rng.uniform(0.5, 0.95)), load_font(BOLD, 16))


def _figure(draw, paper, rng, box, font, images) -> int:
    left, top, right, bottom = box
    picture = images[rng.integers(len(images))].resize((right - left, bottom - top))
    paper.paste(picture, (left, top))
    return right


def _table(draw, paper, rng, box, font, images) -> int:
    left, top, right, bottom = box
    face, columns = load_font(font, 9), int(rng.integers(3, 6))
    step = (right - left) // columns
    for y in range(top, bottom, ROW):
        draw.line((left, y, right, y), fill=(60, 60, 60))
        for column in range(columns):
            word = _words(rng, 1) if column == 0 or y == top else f"{rng.uniform(0, 999):.1f}"
            draw.text((left + column * step + 4, y + 3), word, font=face, fill=(20, 20, 20))
    draw.line((left, bottom, right, bottom), fill=(60, 60, 60))
    if rng.random() < 0.5:
        for column in range(columns + 1):
            x = left + column * step
            draw.line((x, top, x, bottom), fill=(60, 60, 60))
    return right


BOLD = "LiberationSans-Bold"
PRINTERS = {TEXT: _text, TITLE: _title, FIGURE: _figure, TABLE: _table}


def picodet(runtime: InferenceSession, image: np.ndarray, least: float) -> Found:
    said, found = runtime.run(None, {"image": image}), []
    for stride, scores, sides in zip(STRIDES, said[:4], said[4:], strict=True):
        rows, columns = -(-HIGH // stride), -(-WIDE // stride)
        y, x = (np.indices((rows, columns)).reshape(2, -1) + 0.5) * stride
        bins = sides.reshape(-1, 4, sides.shape[-1] // 4)
        away = softmax(bins, axis=2) @ np.arange(bins.shape[2]) * stride
        boxes = np.stack([x, y, x, y], axis=1) + away * np.array([-1, -1, 1, 1])
        best = scores[0].max(axis=1)
        found.append((boxes[best > least], scores[0].argmax(axis=1)[best > least], best[best > least]))
    return suppressed(Found(*(np.concatenate(parts) for parts in zip(*found, strict=True))))


def _pages(count: int, rng: np.random.Generator) -> list[tuple[np.ndarray, Found]]:
    images = photographs()
    made = (page(rng, images) for _ in range(count))
    return [(chw((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD), truth) for pixels, truth in made]


def picodet_calibrate(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": np.concatenate([image for image, _ in _pages(count, np.random.default_rng([seed, 6]))])}


def picodet_evaluate(model: str, count: int = 40) -> float:
    runtime, drawn = session(model), _pages(count, np.random.default_rng(78))
    found = [picodet(runtime, image, 0.05) for image, _ in drawn]
    return mean_average_precision([truth for _, truth in drawn], found)
