"""The base class of settings."""

import math

import pytest
from pydantic import ValidationError

from peftly.errors import ConfigError
from peftly.settings import Seed, Settings, check_seed


class Sample(Settings):
    count: int = 1
    share: float | None = None
    flag: bool | None = None
    names: str | tuple[str, ...] = ()
    seed: Seed = 0


def test_lists_of_json_are_tuples_in_strict_mode():
    assert Sample.model_validate_json('{"names": ["a", "b"]}', strict=True).names == ("a", "b")
    with pytest.raises(ValidationError):
        Sample.model_validate_json('{"count": "8"}', strict=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            ("count", True),
            ("count", 2**63),
            ("count", 1.5),
            ("share", False),
            ("share", math.nan),
            ("share", math.inf),
        ),
        *(("names", "a\0"), ("names", "\ud800"), ("seed", 2**32), ("seed", -1), ("seed", True), ("other", 1)),
    ],
)
def test_values_that_are_refused(setting, value):
    with pytest.raises(ValidationError, match=setting):
        Sample.model_validate({setting: value})


def test_values_that_are_taken():
    sample = Sample(count="7", share="1e-4", flag=True, seed=2**32 - 1)
    assert (sample.count, sample.share, sample.flag, sample.seed) == (7, 1e-4, True, 2**32 - 1)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None, -1, 2**32])
def test_a_seed_that_is_none(seed):
    with pytest.raises(ConfigError, match="seed must be a whole number from 0 to 4294967295; got "):
        check_seed(seed)
