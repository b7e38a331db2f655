"""What all configuration objects share: frozen, no unknown keys, errors that name the key."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from harness.errors import UserError, closest

# The keys by which the schemas tell the members of a union apart.
TAGS = ("kind", "family", "type")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _each_once(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"found {value!r} twice, expected distinct values")
    return values


# Says of a list in an annotation that it repeats nothing.
Distinct = AfterValidator(_each_once)


class Spec(BaseModel):
    """A frozen configuration object that answers an unknown key with the nearest valid one."""

    # JSON, and with it the identity of a run, has no infinity.
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = {field.alias or name for name, field in cls.model_fields.items()}
            for key in data:
                if key not in valid and key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'{closest(str(key), valid)}")
        return data


def validate(kind: Any, data: Any, where: str) -> Any:
    """Return ``data`` as an object of type ``kind``.

    Args:
        kind: A pydantic model or any annotation that pydantic understands.
        data: The plain value read from YAML.
        where: File and key of ``data``, the start of the error message.

    Raises:
        UserError: One line: the first offending key, what was found and what was expected.
    """
    try:
        value = TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise UserError(_one_line(error, data, where)) from None
    for keys, found, expected in _recast(data, value):
        raise UserError(f"{_at(where, keys)}: found {found!r}, expected {expected}")
    return value


def check_name(name: Any, where: str) -> None:
    """Check a name that becomes part of paths, of job names and of Snakemake's wildcards.

    Args:
        name: As it was read.
        where: File of the name, the start of the error message.

    Raises:
        UserError: If it has other characters than those of ``NAME``.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where}: found the name {name!r}, expected letters, digits, '_', '-' and "
                        "'.', of which '-' and '.' are not first")  # fmt: skip


def _recast(data: Any, value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield keys, input and expectation where a number, text or truth value was made of another.

    Pydantic takes ``true`` for 1 and ``"64"`` for 64, while its strict mode refuses 1e3 for 1000.
    """
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(value, BaseModel) and isinstance(data, dict):
        for name, field in type(value).model_fields.items():
            key = name if name in data else field.alias
            if key in data:
                pairs.append((key, data[key], getattr(value, name)))
    elif isinstance(value, dict) and isinstance(data, dict):
        pairs = [(key, data[key], item) for key, item in value.items() if key in data]
    elif isinstance(value, list | tuple) and isinstance(data, list | tuple):
        pairs = [(place, *pair) for place, pair in enumerate(zip(data, value, strict=False))]
    elif None not in (sorts := (_sort(data), _sort(value))) and sorts[0] != sorts[1]:
        yield keys, data, sorts[1]
    for key, below, item in pairs:
        yield from _recast(below, item, (*keys, str(key)))


def _sort(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else None


def _at(where: str, keys: Sequence[str]) -> str:
    separator = "." if ": " in where else ": "
    return f"{where}{separator}{'.'.join(keys)}" if keys else where


def _one_line(error: ValidationError, data: Any, where: str) -> str:
    details = error.errors()
    keys = [_keys(detail, data) for detail in details]
    # All members of a union complain about one key; the one that came deepest is what was meant.
    related = [place for place, key in enumerate(keys) if key[: len(keys[0])] == keys[0]]
    key = max((keys[place] for place in related), key=len)
    same = [details[place] for place in related if keys[place] == key]
    more = f" (and {len(details) - len(related)} more)" if len(details) > len(related) else ""
    return f"{_at(where, key)}: {_message(same)}{more}"


def _message(same: list[ErrorDetails]) -> str:
    """Return what is wrong with one key, of which every member of a union may complain."""
    first = same[0]
    match first["type"]:
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
        case "missing" | "union_tag_not_found":
            return "required key is missing"
        case "union_tag_invalid":
            tag, valid = first["ctx"]["tag"], re.findall(r"'(.*?)'", first["ctx"]["expected_tags"])
            return f"found '{tag}'{closest(tag, valid)}"
    expected = dict.fromkeys(_expectation(detail["msg"]) for detail in same)
    return f"found {first['input']!r}, expected {' or '.join(expected)}"


def _keys(detail: ErrorDetails, data: Any) -> list[str]:
    """Return the keys in the user's file; pydantic's location also has the tags of unions."""
    location = detail["loc"]
    keys: list[str] = []
    tagged = None
    for place, part in enumerate(location, start=1):
        # A tag may have the name of a key: the first of both is the tag.
        if data is not tagged and isinstance(data, dict) and part in map(data.get, TAGS):
            tagged = data
            continue
        try:
            data = data[part]
        except (TypeError, LookupError):
            if detail["type"] != "missing" or place < len(location):
                continue
        keys.append(str(part))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        keys.append(detail["ctx"]["discriminator"].strip("'"))
    return keys


def _expectation(message: str) -> str:
    message = re.sub(r"^(Input should be|(List|Tuple) should have) ", "", message)
    message = re.sub(r" after validation(, not \d+)?$|, unable to parse .*$", "", message)
    message = re.sub(r"^a valid dictionary\b.*$", "a mapping", message)
    return f"{message[0].lower()}{message[1:]}"
