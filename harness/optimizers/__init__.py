"""One orthogonalised-momentum optimizer, calibration, and any optimizer from its config entry."""

from harness.optimizers.build import CompositeOptimizer, build_optimizer, check_arguments
from harness.optimizers.orthogonalized_momentum import OrthogonalizedMomentum
from harness.optimizers.routing import route_parameters

__all__ = [
    "CompositeOptimizer",
    "OrthogonalizedMomentum",
    "build_optimizer",
    "check_arguments",
    "route_parameters",
]
