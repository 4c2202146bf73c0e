"""The input geometry that a model's preprocessing asks for."""

import pytest

from producer.errors import ConfigurationError
from worker.images.resize import Geometry
from worker.model.fingerprint import geometry_of

CONFIG = {"size": 224, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}


def test_every_preprocessing_of_open_clip_is_known():
    """Three resize modes, two interpolations, sizes that are not square."""
    assert geometry_of(CONFIG) == Geometry(224, 224)
    assert geometry_of(CONFIG | {"resize_mode": "squash", "size": (256, 192)}) == Geometry(256, 192, "squash")
    found = geometry_of(CONFIG | {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 127})
    assert found == Geometry(224, 224, "longest", "bilinear", 127)
    assert geometry_of(CONFIG | {"interpolation": "random"}).interpolation == "bicubic"


@pytest.mark.parametrize(("key", "value"), [("resize_mode", "stretch"), ("interpolation", "nearest")])
def test_another_one_is_refused_by_name(key, value):
    """Instead of vectors that are not the model's."""
    with pytest.raises(ConfigurationError, match=f"{key} '{value}', which is none of"):
        geometry_of(CONFIG | {key: value})
