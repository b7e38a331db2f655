"""Which parameters are hidden weight matrices, and which go to the companion optimizer."""

import re
from typing import Literal

from torch import nn

from harness.errors import UserError

Route = Literal["matrix", "companion"]


def route_parameters(model: nn.Module) -> dict[str, Route]:
    """Return the route of every trainable parameter by name; tied weights appear once.

    Parameters with fewer than two dimensions (norms, biases) always go to the companion. A model
    names its other exceptions, embeddings and output head, in ``companion_parameters``, a tuple of
    regular expressions over parameter names.

    Raises:
        UserError: If the model does not say, or a pattern matches no parameter.
    """
    patterns = getattr(model, "companion_parameters", None)
    if patterns is None:
        raise UserError(
            f"{type(model).__name__}: attribute 'companion_parameters' is missing; expected "
            "patterns for embeddings and output head, or () if there are none"
        )
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"{type(model).__name__}.companion_parameters: '{pattern}' matches no parameter of "
                f"{sorted(names)}"
            )
    return {
        name: "companion"
        if parameter.ndim < 2 or any(re.search(pattern, name) for pattern in patterns)
        else "matrix"
        for name, parameter in names.items()
    }
