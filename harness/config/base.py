"""What all configuration objects share: frozen, no unknown keys, errors that name the key."""

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
        raise UserError(_one_line(error, where)) from None


def _one_line(error: ValidationError, where: str) -> str:
    details = error.errors()
    first = details[0]
    # The tag of a discriminated union is part of pydantic's location but not of the user's file.
    path = [str(part) for part in first["loc"] if not _is_union_tag(part, first["input"])]
    key = ".".join(path)
    separator = "." if ": " in where else ": "
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "required key is missing"
    elif first["type"] != "value_error":
        message = f"found {first['input']!r}, expected: {message[0].lower()}{message[1:]}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}{separator + key if key else ''}: {message}{more}"


def _is_union_tag(part: int | str, value: Any) -> bool:
    return isinstance(part, str) and isinstance(value, dict) and part in value.values()
