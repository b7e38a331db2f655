"""Reading YAML the way users expect: ``1e-3`` is a number and a key may appear only once."""

import re
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
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"key '{key}' appears twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in ``path``.

    Raises:
        UserError: If the file is missing, is not valid YAML, repeats a key or holds no mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML: {error.problem}{place}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: found {type(data).__name__}, expected a mapping of names")
    return data


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
