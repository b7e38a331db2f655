"""Time of tiled matrix products on a number of multiprocessors, by whole waves.

NVIDIA, Matrix Multiplication Background User's Guide, section 3: the output is cut into tiles, each
multiprocessor works on one tile at a time, and a last wave takes as long as a full one.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Tile(NamedTuple):
    """Size of the part of the output that one multiprocessor computes at a time."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Product:
    """A matrix product, or a group of equal ones in one launch.

    Attributes:
        rows: Of the first factor, the tokens.
        inner: Columns of the first factor, rows of the second.
        columns: Of the second factor.
        group: How many of them.
    """

    rows: int
    inner: int
    columns: int
    group: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiplications that are asked for."""
        return self.group * self.rows * self.inner * self.columns

    def tiles(self, tile: Tile) -> int:
        """Return the number of tiles that cover the output, whole ones."""
        return self.group * _ceil(self.rows, tile.rows) * _ceil(self.columns, tile.columns)


def waves(product: Product, tile: Tile, units: int) -> int:
    """Return how often ``units`` multiprocessors take a tile each."""
    return _ceil(product.tiles(tile), units)


def product_time(product: Product, tiles: list[Tile], units: int) -> int:
    """Return the time of a product with the best of ``tiles``.

    Args:
        product: The product.
        tiles: Sizes to choose from.
        units: Multiprocessors.

    Returns:
        The time in multiply-adds of one multiprocessor, which is as fast with every tile.
    """
    return min(
        waves(product, tile, units) * tile.rows * tile.columns * product.inner for tile in tiles
    )


def efficiency(product: Product, tiles: list[Tile], units: int) -> float:
    """Return the share of ``units`` multiprocessors' time in which they do what is asked for."""
    return product.multiply_adds / (units * product_time(product, tiles, units))


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
