"""What all configuration objects share: frozen, no unknown keys, errors that name the key."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

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
    first = details[0]
    key = ".".join(_keys(first["loc"], data))
    separator = "." if ": " in where else ": "
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "required key is missing"
    elif first["type"] != "value_error":
        message = f"found {first['input']!r}, expected {_expectation(message)}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}{separator + key if key else ''}: {message}{more}"


def _keys(location: tuple[int | str, ...], data: Any) -> Iterator[str]:
    """Yield the keys of the user's file; pydantic's location also has the tags of unions."""
    for part in location:
        if isinstance(data, dict) and part not in data and part in data.values():
            continue
        data = data.get(part) if isinstance(data, dict) else None
        yield str(part)


def _expectation(message: str) -> str:
    message = re.sub(r"^(Input should be|(List|Tuple) should have) ", "", message)
    message = re.sub(r" after validation(, not \d+)?$", "", message)
    return f"{message[0].lower()}{message[1:]}"
