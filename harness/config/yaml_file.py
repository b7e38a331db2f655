"""Reading YAML the way users expect: ``1e-3`` is a number and a key may appear only once."""

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, in which ``1e-3`` is a string and a repeated key wins silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem=f"found {key!r} as a key (line {line})")
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' appears twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            # What looks like a number or a date and is none, such as 2020-13-45.
            line, sort = node.start_mark.line + 1, node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"'{node.value}' is no valid {sort}, text needs quotes (line {line})"
            ) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in ``path``.

    Raises:
        UserError: If the file is missing, is not valid YAML, repeats a key, holds no mapping, or
            holds what JSON cannot say.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        if not isinstance(data, dict):
            raise UserError(f"{path}: found {type(data).__name__}, expected a mapping of names")
        _check_plain(data, f"{path}: ")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML: {error.problem}{place}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{path}: an entry holds itself, or is nested too deeply") from None
    return data


def _check_plain(value: Any, where: str) -> None:
    """Check that a value is what identities are made of: text, finite numbers, lists, mappings."""
    if isinstance(value, dict):
        _check_keys(list(value), where.rstrip(": ."))
        for key, item in value.items():
            _check_plain(item, f"{where}{key}.")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_plain(item, f"{where}{place}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where.rstrip('.')}: found {value}, expected a finite number")
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{where.rstrip('.')}: found the {type(value).__name__} {value}, expected "
                        "text, a number, a list or a mapping: put text in quotes")  # fmt: skip


def _check_keys(keys: list[Any], where: str) -> None:
    kinds = {type(key): key for key in keys}
    for kind, key in kinds.items():
        if kind not in (str, int):
            raise UserError(f"{where}: found the key {key!r}, expected text: put it in quotes")
    if len(kinds) > 1:
        raise UserError(f"{where}: found the keys {kinds[str]!r} and {kinds[int]!r}, expected all "
                        "of them as text, or all as whole numbers: put text in quotes")  # fmt: skip


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overlay`` laid over it; mappings merge, anything else replaces.

    So does a mapping of another ``kind``, whose keys mean something else.
    """
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and _same_kind(below, value):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _same_kind(base: dict[str, Any], overlay: dict[str, Any]) -> bool:
    return overlay.get("kind", base.get("kind")) == base.get("kind")
