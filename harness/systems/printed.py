"""What was printed of a quantity, as arguments."""

from pydantic import Field, PositiveFloat

from harness.config.base import Spec


class Table(Spec):
    """Printed numbers of some models, and the pairs of models that are compared."""

    printed: dict[str, PositiveFloat] = Field(default_factory=dict, description="by model")
    ratios: list[tuple[str, str]] = Field(
        default_factory=list, description="pairs of models, the first over the second"
    )


def ratios(
    table: Table, values: dict[str, float], over: dict[str, float]
) -> list[tuple[str, str, float]]:
    """Return first, second and ratio of every pair of which both numbers are known."""
    return [
        (first, second, values[first] / over[second])
        for first, second in table.ratios
        if first in values and second in over
    ]
