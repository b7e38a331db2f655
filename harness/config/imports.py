"""What the configuration names by its import path: classes, functions and their arguments."""

import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

from harness.errors import UserError, closest


def import_parent(path: str, where: str, example: str) -> tuple[ModuleType, str]:
    """Return the module of an import path, and the name that is to be found in it.

    Args:
        path: For example ``torch.optim.AdamW``.
        where: File and key of the path, for the message.
        example: A path that would be accepted.

    Raises:
        UserError: If the module cannot be imported, whatever the reason.
    """
    parent, _, name = path.rpartition(".")
    try:
        return import_module(parent), name
    # A module of somebody else may do anything, even leave.
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{where}: found '{path}', but module '{parent}' cannot be imported ({reason}); "
            f"expected an import path such as {example} (is its package installed?)"
        ) from None


def import_function(path: str, where: str) -> Callable[..., Any]:
    """Return the function at an import path.

    Raises:
        UserError: If there is none, with the closest name.
    """
    module, name = import_parent(path, where, "harness.systems.model_costs.model_costs")
    functions = [key for key, value in vars(module).items() if callable(value)]
    if name not in functions:
        raise UserError(f"{where}: {module.__name__} has no function '{name}'"
                        f"{closest(name, functions)}")  # fmt: skip
    return getattr(module, name)


def check_keywords(
    function: Callable[..., Any],
    path: str,
    found: Iterable[str],
    where: str,
    *,
    given: Iterable[str] = (),
) -> None:
    """Check that a function takes some keyword arguments and needs no others.

    Args:
        function: What will be called.
        path: Its import path, for the message.
        found: The names in the configuration.
        where: File and key of the names, for the message.
        given: Names that the caller adds.

    Raises:
        UserError: For an unknown argument, with the closest name, or one that is missing.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        # Some functions in C have no signature.
        return
    names = list(found)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    valid = [parameter.name for parameter in named if parameter.name not in given]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for name in names:
            if name not in valid:
                raise UserError(f"{where}: unknown argument '{name}' of {path}"
                                f"{closest(name, valid)}")  # fmt: skip
    for parameter in named:
        name = parameter.name
        if parameter.default is parameter.empty and name in valid and name not in names:
            raise UserError(f"{where}: required argument '{name}' of {path} is missing")
