"""What a wrong value in a configuration file is answered with."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from harness.config.base import Distinct, Spec, check_name, validate
from harness.errors import UserError

Names = Literal["all"] | list[str]


class Sizes(Spec):
    width: int
    names: Names = "all"


class Square(Spec):
    kind: Literal["square"]
    side: float
    filled: bool = False


class Sized(Spec):
    kind: Literal["sizes"]
    # Has the name of a tag.
    sizes: Sizes
    scale: float


Shape = Annotated[Square | Sized, Field(discriminator="kind")]


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
        (Sizes, [1], "x.yaml: found [1], expected a mapping"),
        (Shape, {"kind": "squre"}, "x.yaml: kind: found 'squre' (did you mean 'square'?)"),
        (Shape, {"side": 1}, "x.yaml: kind: required key is missing"),
        (dict[str, Shape], {"a": {}}, "x.yaml: a.kind: required key is missing"),
        (
            Shape,
            {"kind": "sizes", "sizes": {"width": 1}, "scale": []},
            "x.yaml: scale: found [], expected a valid number",
        ),
        (
            Shape,
            {"kind": "sizes", "sizes": {"width": "a"}, "scale": 1},
            "x.yaml: sizes.width: found 'a', expected a valid integer",
        ),
        (
            Shape,
            {"kind": "square", "side": float("inf")},
            "x.yaml: side: found inf, expected a finite number",
        ),
        (Sizes, {"width": "64"}, "x.yaml: width: found '64', expected a number"),
        (Sizes, {"width": True}, "x.yaml: width: found True, expected a number"),
        (list[float], [0.1, True], "x.yaml: 1: found True, expected a number"),
        (
            Shape,
            {"kind": "square", "side": 1, "filled": "yes"},
            "x.yaml: filled: found 'yes', expected true or false",
        ),
        (
            Annotated[list[float], Distinct],
            [0.1, 1, 1.0],
            "x.yaml: found 1.0 twice, expected distinct values",
        ),
        (dict[str, Sizes], {"a": {"names": "all"}}, "x.yaml: a.width: required key is missing"),
    ],
)
def test_one_line_names_key_value_and_expectation(kind, found, message):
    with pytest.raises(UserError) as refused:
        validate(kind, found, "x.yaml")
    assert str(refused.value) == message


def test_a_whole_number_may_be_written_as_any_number():
    assert validate(Sizes, {"width": 1e3}, "x.yaml").width == 1000
    assert validate(Shape, {"kind": "square", "side": 3}, "x.yaml").side == 3.0


@pytest.mark.parametrize(
    "name", ["..", ".a", "-a", "a/b", "", "a\nb", "a\n", "{x}", "a b", "é", 5, None, True]
)
def test_names_that_paths_and_wildcards_cannot_have_are_refused(name):
    with pytest.raises(UserError) as refused:
        check_name(name, "x.yaml")
    assert str(refused.value).startswith(f"x.yaml: found the name {name!r}, expected letters")
    assert "\n" not in str(refused.value)


def test_other_names_are_not():
    for name in ("a", "A.b-c_1", "_a", "1b_moe"):
        check_name(name, "x.yaml")
