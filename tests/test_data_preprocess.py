"""The text of `--preprocess`."""

import pytest

from onnxprune.data import Preprocess
from onnxprune.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_a_preset_and_changes_to_it() -> None:
    assert Preprocess.parse("imagenet") == Preprocess(usual=224, crop_pct=0.875, mean=MEAN, std=STD)
    changed = Preprocess.parse(" std=1:1:2 , imagenet, crop=192x256,order=bgr ")
    assert changed == Preprocess(
        crop=(192, 256), usual=224, crop_pct=0.875, mean=MEAN, std=(1.0, 1.0, 2.0), order="bgr"
    )


def test_every_key() -> None:
    text = "resize=256,crop=224,scale=1,mean=0.5,std=1:2:3,order=bgr,layout=nhwc,fit=stretch,gray,crop_pct=0.9"
    assert Preprocess.parse(text) == Preprocess(
        256, (224, 224), "stretch", 0.9, 1.0, (0.5,), (1.0, 2.0, 3.0), "bgr", "nhwc", True
    )
    assert Preprocess.parse("letterbox=640") == Preprocess(crop=(640, 640), fit="pad")
    assert Preprocess.parse("letterbox=384x640,scale=1") == Preprocess(crop=(384, 640), fit="pad", scale=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known; use imagenet, resize, crop"),
        ("imagnet", "'imagnet' is not known"),
        ("zoom=2", "'zoom=2' is not known"),
        ("gray=1", "'gray=1' is not known"),
        ("imagenet,", "'' is not known"),
        ("crop", "'crop' is not known"),
        ("crop=big", "crop=big is no size"),
        ("crop=-3", "crop=-3 is no size"),
        ("crop=1x2x3", "crop=1x2x3 is no size"),
        ("crop=", "crop= is no size"),
        ("crop=²", "crop=² is no size"),
        ("resize=25.5", "resize=25.5 is no size"),
        ("resize=0", "less than 1 pixel"),
        ("scale=x", "scale=x is no number"),
        ("scale=0", "scale is 0"),
        ("scale=nan", "scale is nan"),
        ("mean=1:2", "mean has 2 numbers; give 1 or 3"),
        ("std=1:2:3:4", "std has 4 numbers; give 1 or 3"),
        ("mean=1::2", "mean= is no number"),
        ("mean=inf", "mean must be finite"),
        ("std=0", "std more than 0"),
        ("crop_pct=1.5", "crop_pct is 1.5"),
        ("order=rbg", "order is 'rbg'; give rgb or bgr"),
        ("layout=chw", "layout is 'chw'"),
        ("fit=cover", "fit is 'cover'; give crop or pad or stretch"),
        ("crop=8,crop=9", "crop is given twice"),
        ("letterbox=640,crop=640", "leave fit, crop and resize out"),
        ("resize=200,crop=224", "resize=200 is smaller than the crop"),
        ("resize=256,crop=224,fit=pad", "leave resize out"),
    ],
)
def test_a_text_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Preprocess.parse(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("preprocess: ")
