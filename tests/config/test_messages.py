"""What a wrong value in a configuration file is answered with."""

from typing import Literal

import pytest

from harness.config.base import Spec, validate
from harness.errors import UserError

Names = Literal["all"] | list[str]


class Sizes(Spec):
    width: int
    names: Names = "all"


@pytest.mark.parametrize(
    ("kind", "found", "message"),
    [
        (Names, {"a": 1}, "x.yaml: found {'a': 1}, expected 'all' or a valid list"),
        (Names, ["a", 1], "x.yaml: 1: found 1, expected a valid string"),
        (
            dict[str, Names],
            {"models": "some"},
            "x.yaml: models: found 'some', expected 'all' or a valid list",
        ),
        (list[int], ["a", "b"], "x.yaml: 0: found 'a', expected a valid integer (and 1 more)"),
        (Sizes, {}, "x.yaml: width: required key is missing"),
        (Sizes, {"widht": 1}, "x.yaml: unknown key 'widht' (did you mean 'width'?)"),
        (dict[str, Sizes], {"a": {"names": "all"}}, "x.yaml: a.width: required key is missing"),
    ],
)
def test_one_line_names_key_value_and_expectation(kind, found, message):
    with pytest.raises(UserError) as refused:
        validate(kind, found, "x.yaml")
    assert str(refused.value) == message
