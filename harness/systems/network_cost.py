"""Which prices of switches and links give the printed costs of networks.

arXiv 2505.09343, table 3, takes its costs from the method of the Slim Fly paper and prints no
price. This is a fit to those costs: linear constraints on the prices, and the least and largest
price that satisfies all of them. It is not the source's price list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
from pydantic import PositiveInt
from scipy.optimize import linprog

from harness.config.base import Spec
from harness.errors import UserError
from harness.systems.topologies import Counts

Item = Literal["switch", "link", "local_link", "endpoint"]
# By item: dollars of a switch, of a link between switches, of one inside a group of a dragonfly,
# and of the cable of an endpoint. An item that is missing costs nothing.
Prices = dict[Item, float]
# Which items have a price of their own; without one of theirs, local links cost what links cost.
Model = tuple[Item, ...]


class Printed(Spec):
    """A column of table 3, with as many digits as are printed."""

    endpoints: PositiveInt
    switches: PositiveInt
    links: PositiveInt
    cost: Decimal
    cost_per_endpoint: Decimal


@dataclass(frozen=True)
class Observation:
    """A network whose cost is known up to rounding.

    Attributes:
        counts: What it consists of.
        low: Least total cost that rounds to what is printed, in dollars.
        high: Largest one.
    """

    counts: Counts
    low: float
    high: float


def observation(counts: Counts, printed: Printed) -> Observation:
    """Return the costs that round to both printed ones, in M$ and in k$ per endpoint."""
    total, each = _rounded(printed.cost), _rounded(printed.cost_per_endpoint)
    scale = 1e3 * counts.endpoints
    return Observation(
        counts, max(1e6 * total[0], scale * each[0]), min(1e6 * total[1], scale * each[1])
    )


def _rounded(value: Decimal) -> tuple[float, float]:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    half = Decimal(5).scaleb(exponent - 1)
    return float(value - half), float(value + half)


def amounts(counts: Counts, model: Model) -> list[int]:
    """Return how many of each item of ``model`` a network has."""
    of: dict[Item, int] = {
        "switch": counts.switches,
        "link": counts.links,
        "local_link": counts.local_links,
        "endpoint": counts.endpoints,
    }
    if "local_link" in model:
        of["link"] -= counts.local_links
    return [of[item] for item in model]


def cost(counts: Counts, prices: Prices) -> float:
    """Return the dollars of a network, the sum of its items times their prices."""
    model = tuple(prices)
    return float(np.dot(amounts(counts, model), [prices[item] for item in model]))


def price_range(
    observations: Iterable[Observation], model: Model
) -> dict[Item, tuple[Prices, Prices]] | None:
    """Return, by item, prices with the least and with the largest price of that item.

    Args:
        observations: Networks that the same prices must explain.
        model: The items with a price.

    Returns:
        Vertices of the region of possible prices; None if no prices explain all observations.

    Raises:
        UserError: If some price has no upper limit.
    """
    constraints = _constraints(list(observations), model)
    found: dict[Item, tuple[Prices, Prices]] = {}
    for item in model:
        direction = np.array([float(other == item) for other in model])
        ends = [_optimum(sign * direction, constraints, model) for sign in (1, -1)]
        if ends[0] is None or ends[1] is None:
            return None
        found[item] = ends[0], ends[1]
    return found


def cost_range(
    counts: Counts, observations: Iterable[Observation], model: Model
) -> tuple[float, float] | None:
    """Return the least and largest cost of a network by prices that explain other networks.

    Args:
        counts: Of the network.
        observations: The other networks.
        model: The items with a price.
    """
    constraints = _constraints(list(observations), model)
    direction = np.array(amounts(counts, model), dtype=float)
    ends = [_optimum(sign * direction, constraints, model) for sign in (1, -1)]
    if ends[0] is None or ends[1] is None:
        return None
    return cost(counts, ends[0]), cost(counts, ends[1])


def centre(vertices: dict[Item, tuple[Prices, Prices]]) -> Prices:
    """Return the mean of the vertices of ``price_range``, a point inside the region."""
    points = [point for pair in vertices.values() for point in pair]
    return {item: sum(point[item] for point in points) / len(points) for item in points[0]}


def _constraints(
    observations: Sequence[Observation], model: Model
) -> tuple[np.ndarray, np.ndarray]:
    """Return A and b of ``A prices <= b``, scaled to the observed costs."""
    rows, limits = [], []
    for seen in observations:
        row = np.array(amounts(seen.counts, model)) / seen.high
        rows += [row, -row]
        limits += [1.0, -seen.low / seen.high]
    if {"link", "local_link"} <= set(model):
        rows.append(np.array([{"local_link": 1.0, "link": -1.0}.get(item, 0.0) for item in model]))
        limits.append(0.0)
    return np.array(rows), np.array(limits)


def _optimum(
    direction: np.ndarray, constraints: tuple[np.ndarray, np.ndarray], model: Model
) -> Prices | None:
    """Return the prices that are least in a direction; None if there are none at all."""
    matrix, limits = constraints
    result = linprog(direction, A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs")
    if result.status == 2:
        return None
    if result.status == 3:
        raise UserError(f"prices of {', '.join(model)}: found too few printed costs, expected "
                        "enough to limit every price")  # fmt: skip
    assert result.success, result.message
    return dict(zip(model, result.x.tolist(), strict=True))
