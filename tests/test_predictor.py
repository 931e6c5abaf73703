"""`Predictor.predict`: clips given as dicts are checked before anything is read."""

import pytest

from lmm_ecr import LmmRegressor, Predictor
from lmm_ecr.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def predictor(tiny_qwen, tiny_processor):
    return Predictor(LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=16), tiny_processor)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"video": "a.mp4", "Title": "x"}, "clip 2 has the key 'Title'; known are 'video', 'title' and 'description'"),
        ({"title": "x"}, "clip 2: 'video' must be the path of a file, got None"),
        ({"video": ""}, "clip 2: 'video' must be the path of a file, got ''"),
        ({"video": "a.mp4", "title": 7}, "clip 2: 'title' must be a string or None, got 7"),
        ({"video": "a.mp4", "description": float("nan")}, "clip 2: 'description' must be a string or None, got nan"),
        ("a.mp4", "clip 2 must be a dict with 'video', 'title' and 'description', got 'a.mp4'"),
    ],
)
def test_what_is_no_clip_is_refused(predictor, tiny_manifest, clip, message):
    """Bug: a title under another name was left out without a word."""
    with pytest.raises(DataError) as caught:
        predictor.predict([{"video": tiny_manifest[0].video}, clip])
    assert str(caught.value) == message


def test_unknown_choices_are_refused_before_anything_is_read(predictor):
    with pytest.raises(ConfigError, match="must be fail or skip, got 'zzz'"):
        predictor.predict([], on_error="zzz")
    with pytest.raises(ConfigError, match="decoder must be one of pyav, decord; got 'opencv'"):
        predictor.predict([], decoder="opencv")
