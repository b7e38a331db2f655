"""What multiprocessors that communicate take from matrix products: arXiv 2505.09343, section 4.4.

Training keeps 20 of an H800's 132 multiprocessors for sending and receiving. In proportion that is
15.2 % of its speed; matrix products lose more or less, as their tiles fill whole waves or do not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from harness.config.base import Spec, validate
from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError
from harness.records.record import Record, record
from harness.systems.layer_products import layer_products
from harness.systems.wave_quantization import Product, Tile, efficiency, product_time

WHERE = "communication_budget"
LAYER, BEST = "layer", "best"
TileSize = tuple[PositiveInt, PositiveInt]


class Budget(Spec):
    """Multiprocessors of a device and those that communicate."""

    units: PositiveInt
    largest: NonNegativeInt = Field(description="number that communicates; recorded from 0 on")
    used: NonNegativeInt = Field(description="number that a published training run uses")
    tiles: dict[str, TileSize] = Field(min_length=1, description="rows and columns, by name")

    @model_validator(mode="after")
    def _some_compute(self) -> "Budget":
        if self.largest >= self.units:
            raise ValueError(f"largest: found {self.largest}, expected less than the {self.units} "
                             "units")  # fmt: skip
        return self

    @property
    def communicating(self) -> range:
        """Numbers of multiprocessors that only communicate."""
        return range(self.largest + 1)


class Micro(Spec):
    """The tokens that a layer works on."""

    layer: NonNegativeInt = Field(description="counted from 0")
    tokens: PositiveInt = Field(description="on a device")
    devices: PositiveInt = Field(description="that share the routed experts")


def communication_budget(
    models: Mapping[str, Any], layers: Mapping[str, Any], budget: Mapping[str, Any]
) -> list[Record]:
    """Return the speed of a layer's matrix products beside multiprocessors that communicate.

    Args:
        models: Entries of ``config/models.yaml``.
        layers: By name, a ``Micro`` for every model.
        budget: A ``Budget``.

    Returns:
        ``budget/speed``, over that with all multiprocessors, by ``communicating``: with ``method``
        ``waves`` of every ``product`` with the ``tile`` that is ``best`` for it and the number of
        multiprocessors, and of the whole ``layer``, one product after the other, with every tile;
        ``proportional``, as for any work that is cut ever finer. ``budget/efficiency`` of products
        on all multiprocessors; ``budget/used``.

    Raises:
        UserError: If an argument is not as described.
    """
    given: Budget = validate(Budget, budget, f"{WHERE}: budget")
    runs = validate(dict[str, Micro], layers, f"{WHERE}: layers")
    return [
        *_proportional(given),
        *(
            row
            for name, data in models.items()
            for case, run in runs.items()
            for row in _products(_layer(name, data, case, run), given, model=name, case=case)
        ),
    ]


def _layer(name: str, data: Any, case: str, run: Micro) -> dict[str, Product]:
    spec: DecoderSpec = validate(DecoderSpec, data, f"{WHERE}: models: {name}")
    if run.layer >= spec.num_hidden_layers:
        raise UserError(f"{WHERE}: layers.{case}.layer: found {run.layer}, expected at most "
                        f"{spec.num_hidden_layers - 1}, the last of {name}")  # fmt: skip
    try:
        return layer_products(spec, run.layer, run.tokens, run.devices)
    except ValueError as error:
        raise UserError(f"{WHERE}: layers.{case}.{error} of {name}") from None


def proportional_speed(units: int, communicating: int) -> float:
    """Return the share of the multiprocessors that is left for work of any size."""
    return 1 - communicating / units


def wave_speed(products: list[Product], tiles: list[Tile], units: int, communicating: int) -> float:
    """Return the speed of products one after the other over that on all multiprocessors.

    Args:
        products: The products.
        tiles: Sizes to choose from, for each product and number of multiprocessors.
        units: Multiprocessors of the device.
        communicating: Those of them that compute nothing.
    """
    whole = sum(product_time(product, tiles, units) for product in products)
    left = sum(product_time(product, tiles, units - communicating) for product in products)
    return whole / left


def _proportional(budget: Budget) -> Iterator[Record]:
    yield record("budget/used", budget.used, "multiprocessors", units=budget.units)
    for number in budget.communicating:
        speed = proportional_speed(budget.units, number)
        yield record("budget/speed", speed, "1", communicating=number, method="proportional",
                     product="any", tile="any")  # fmt: skip


def _products(products: dict[str, Product], budget: Budget, **labels: str) -> Iterator[Record]:
    choices = {name: [Tile(*size)] for name, size in budget.tiles.items()}
    every = [tile for tiles in choices.values() for tile in tiles]
    for tile, tiles in (choices | {BEST: every}).items():
        for name, product in products.items():
            share = efficiency(product, tiles, budget.units)
            yield record("budget/efficiency", share, "1", product=name, tile=tile, **labels)
        layer = list(products.values())
        yield from _speeds(layer, tiles, budget, product=LAYER, tile=tile, **labels)
    for name, product in products.items():
        yield from _speeds([product], every, budget, product=name, tile=BEST, **labels)


def _speeds(
    products: list[Product], tiles: list[Tile], budget: Budget, **labels: str
) -> Iterator[Record]:
    for number in budget.communicating:
        speed = wave_speed(products, tiles, budget.units, number)
        yield record("budget/speed", speed, "1", communicating=number, method="waves", **labels)
