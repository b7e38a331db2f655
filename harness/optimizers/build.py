"""Any optimizer from its entry in ``config/optimizers.yaml``."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from harness.config.imports import check_keywords, import_parent
from harness.errors import UserError, closest
from harness.optimizers.matrices import is_batch
from harness.optimizers.routing import route_parameters

Coefficients = Mapping[tuple[int, int], tuple[float, float, float]]


@runtime_checkable
class Orthogonalizing(Protocol):
    """An optimizer that can say what it orthogonalises."""

    def direction(self, parameter: Tensor) -> Tensor:
        """Return what the last step orthogonalised, before anything else.

        A matrix (rows x columns), or for a parameter of three dimensions a batch of them (count x
        rows x columns).
        """


class CompositeOptimizer:
    """Several optimizers that step as one, each on its own share of the parameters.

    Every parameter group carries ``base_lr``, its learning rate before any schedule.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]) -> None:
        self.parts = dict(parts)
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All parameter groups of all parts."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self) -> None:
        """Take one step with every part."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def build_optimizer(
    spec: Mapping[str, Any],
    model: nn.Module,
    lr: float,
    coefficients: Coefficients | None = None,
) -> CompositeOptimizer:
    """Return the optimizer of a resolved entry for the parameters of ``model``.

    Args:
        spec: ``class``, ``parameters``, ``arguments``, ``companion`` and ``calibration``.
        model: With ``parameters: matrices``, one that ``route_parameters`` understands.
        lr: Peak learning rate; also the companion's unless it has one of its own.
        coefficients: Calibrated polynomial coefficients by matrix shape, if the entry has a
            ``calibration``.

    Raises:
        UserError: If the model has batches of matrices, such as experts, and the class refuses
            them.
    """
    arguments = dict(spec["arguments"])
    if spec["calibration"] is not None:
        arguments["coefficients"] = coefficients
    if spec["parameters"] == "all":
        parameters = [p for p in model.parameters() if p.requires_grad]
        return CompositeOptimizer({"all": _make(spec["class"], parameters, arguments, lr)})
    named = dict(model.named_parameters())
    routes = route_parameters(model)
    shares = {
        route: [named[name] for name, its_route in routes.items() if its_route == route]
        for route in ("matrix", "companion")
    }
    companion = spec["companion"]
    parts = {"matrices": _make(spec["class"], shares["matrix"], arguments, lr)}
    if shares["companion"]:
        its_lr = lr if companion["lr"] is None else companion["lr"]
        parts["companion"] = _make(
            companion["class"], shares["companion"], companion["arguments"], its_lr
        )
    return CompositeOptimizer(parts)


def check_arguments(class_path: str, arguments: Mapping[str, Any], where: str) -> None:
    """Check that a class exists, is an optimizer and takes these arguments.

    Args:
        class_path: Import path, e.g. ``torch.optim.AdamW``.
        arguments: Keyword arguments besides parameters and ``lr``.
        where: File and key of the arguments, for the message.

    Raises:
        UserError: With the closest valid class or argument name.
    """
    optimizer = _load(class_path, where.removesuffix(".arguments"))
    # Whatever the class calls its first argument, the parameters come first.
    first = next(iter(inspect.signature(optimizer).parameters), "params")
    check_keywords(optimizer, class_path, arguments, where, given=(first, "params", "lr"))


def orthogonalizes(class_path: str) -> bool:
    """Return whether the optimizers of a class can say what they orthogonalise."""
    return issubclass(_load(class_path, "optimizer"), Orthogonalizing)


def _make(
    class_path: str, parameters: Sequence[nn.Parameter], arguments: Mapping[str, Any], lr: float
) -> torch.optim.Optimizer:
    constructor: Callable[..., torch.optim.Optimizer] = _load(class_path, "optimizer")
    try:
        return constructor(parameters, lr=lr, **arguments)
    except ValueError as error:
        batch = next((parameter for parameter in parameters if is_batch(parameter)), None)
        if batch is None:
            raise
        # Raises by itself whatever is wrong beside the dimensions.
        constructor([nn.Parameter(batch.detach()[0])], lr=lr, **arguments)
        raise UserError(
            f"optimizer.class: found '{class_path}', which refuses a parameter of shape "
            f"{tuple(batch.shape)}; expected an optimizer that takes batches of matrices, such as "
            "harness.optimizers.OrthogonalizedMomentum"
        ) from error


def _load(class_path: str, where: str) -> type[torch.optim.Optimizer]:
    module, name = import_parent(class_path, f"{where}.class", "torch.optim.AdamW")
    found = getattr(module, name, None)
    if found is None:
        valid = [n for n, value in vars(module).items() if _is_optimizer(value)]
        raise UserError(f"{where}.class: {module.__name__} has no '{name}'{closest(name, valid)}")
    if not _is_optimizer(found):
        raise UserError(f"{where}.class: '{class_path}' is not a torch.optim.Optimizer")
    return found


def _is_optimizer(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
