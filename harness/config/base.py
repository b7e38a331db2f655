"""What all configuration objects share: frozen, no unknown keys, errors that name the key."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from harness.errors import UserError, closest


class Spec(BaseModel):
    """A frozen configuration object that answers an unknown key with the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

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
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise UserError(_one_line(error, data, where)) from None


def _one_line(error: ValidationError, data: Any, where: str) -> str:
    details = error.errors()
    keys = [_keys(detail, data) for detail in details]
    # All members of a union complain about one key; the one that came deepest is what was meant.
    related = [place for place, key in enumerate(keys) if key[: len(keys[0])] == keys[0]]
    key = max((keys[place] for place in related), key=len)
    same = [details[place] for place in related if keys[place] == key]
    message = same[0]["msg"].removeprefix("Value error, ")
    if same[0]["type"] == "missing":
        message = "required key is missing"
    elif same[0]["type"] != "value_error":
        expected = dict.fromkeys(_expectation(detail["msg"]) for detail in same)
        message = f"found {same[0]['input']!r}, expected {' or '.join(expected)}"
    separator = "." if ": " in where else ": "
    more = f" (and {len(details) - len(related)} more)" if len(details) > len(related) else ""
    return f"{where}{separator + '.'.join(key) if key else ''}: {message}{more}"


def _keys(detail: ErrorDetails, data: Any) -> list[str]:
    """Return the keys in the user's file; pydantic's location also has the tags of unions."""
    location = detail["loc"]
    keys = []
    for place, part in enumerate(location, start=1):
        try:
            data = data[part]
        except (TypeError, LookupError):
            if detail["type"] != "missing" or place < len(location):
                continue
        keys.append(str(part))
    return keys


def _expectation(message: str) -> str:
    message = re.sub(r"^(Input should be|(List|Tuple) should have) ", "", message)
    message = re.sub(r" after validation(, not \d+)?$|, unable to parse .*$", "", message)
    return f"{message[0].lower()}{message[1:]}"
