"""One orthogonalised-momentum optimizer, calibration, and any optimizer from its config entry."""

from harness.optimizers.build import (
    CompositeOptimizer,
    Orthogonalizing,
    build_optimizer,
    check_arguments,
    orthogonalizes,
)
from harness.optimizers.orthogonalized_momentum import OrthogonalizedMomentum
from harness.optimizers.routing import route_parameters

__all__ = [
    "CompositeOptimizer",
    "OrthogonalizedMomentum",
    "Orthogonalizing",
    "build_optimizer",
    "check_arguments",
    "orthogonalizes",
    "route_parameters",
]
