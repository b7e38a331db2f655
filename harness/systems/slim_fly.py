"""Slim Fly: the graphs of McKay, Miller and Siran, the largest known of diameter two.

The construction is Hafner's (J. Algebraic Combinatorics 2004), as Besta and Hoefler use it for
networks (SC 2014): switches ``(0, x, y)`` and ``(1, m, c)`` over the field of ``q``
elements, ``q = 4 w + delta`` a prime power and delta -1, 0 or 1, linked where

    (0, x, y) - (0, x, y')   if y - y' is in X,
    (1, m, c) - (1, m, c')   if c - c' is in X',
    (0, x, y) - (1, m, c)    if y = m x + c,

with X and X' powers of a primitive element. Elements are written as integers, whose digits in base
``p`` are the coefficients of a polynomial over the field of ``p`` elements.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from harness.config.base import Spec
from harness.errors import UserError
from harness.systems.topologies import Counts, Integers, Topology


@dataclass(frozen=True)
class GaloisField:
    """A finite field of ``q`` elements.

    Attributes:
        sums: Table of addition, shape (q, q).
        products: Table of multiplication, shape (q, q).
        powers: Of a primitive element, from the 0th to the (q-2)th, shape (q-1,).
    """

    sums: Integers
    products: Integers
    powers: Integers


def prime_of(q: int) -> int | None:
    """Return the prime that ``q`` is a power of; None if it is no prime power."""
    prime = next((n for n in range(2, q + 1) if q % n == 0), None)
    while prime and q % prime == 0:
        q //= prime
    return prime if q == 1 else None


def galois_field(q: int) -> GaloisField:
    """Return the field of ``q`` elements.

    Raises:
        UserError: If ``q`` is no prime power.
    """
    p = prime_of(q)
    if p is None:
        below = next((n for n in range(q - 1, 1, -1) if prime_of(n)), None)
        above = next(n for n in count(q + 1) if prime_of(n))
        nearest = above if below is None else f"{below} or {above}"
        raise UserError(f"q: found {q}, which is no prime power, expected for example {nearest}")
    degree = round(np.log(q) / np.log(p))
    digits = np.arange(q)[:, None] // p ** np.arange(degree) % p
    sums = (digits[:, None] + digits) % p @ p ** np.arange(degree)
    powers = next(powers for powers in _candidates(p, degree) if len(set(powers)) == q - 1)
    exponents = np.zeros(q, dtype=int)
    exponents[powers] = np.arange(q - 1)
    products = np.asarray(powers)[(exponents[:, None] + exponents) % (q - 1)]
    products[0] = products[:, 0] = 0
    return GaloisField(sums, products, np.asarray(powers))


def _candidates(p: int, degree: int) -> Iterator[list[int]]:
    """Yield the powers of ``x`` modulo each monic polynomial of ``degree`` without root 0.

    There are ``p^degree - 1`` different ones exactly if the polynomial is primitive.
    """
    for lower in product(range(1, p), *[range(p)] * (degree - 1)):
        element, powers = [1] + [0] * (degree - 1), []
        for _ in range(p**degree - 1):
            powers.append(sum(digit * p**place for place, digit in enumerate(element)))
            # Times x, the leading coefficient replaced by what the polynomial makes of it.
            shifted = [0, *element[:-1]]
            element = [(s - element[-1] * c) % p for s, c in zip(shifted, lower, strict=True)]
        yield powers


def generators(q: int, powers: Integers) -> tuple[Integers, Integers]:
    """Return X and X' (Hafner 2004), given the powers of a primitive element.

    Both are their own negatives. For delta 0 and 1 they are the even and the odd powers; for delta
    -1 the even powers below the middle and their negatives, and the same one power further.
    """
    w = (q + 1) // 4
    if q % 4 == 3:
        exponents = np.concatenate([np.arange(0, 2 * w - 1, 2), np.arange(2 * w - 1, 4 * w - 2, 2)])
        return powers[exponents], powers[(exponents + 1) % (q - 1)]
    # In characteristic 2 every element is its own negative, and X' gets the last, even power too.
    even = np.arange(0, q - 1, 2)
    return powers[even], powers[(even + 1) % (q - 1)]


class SlimFly(Spec):
    """A Slim Fly of ``2 q^2`` switches with ``(3 q - delta)/2`` links each."""

    kind: Literal["slim_fly"] = "slim_fly"
    radix: PositiveInt = Field(description="ports of a switch")
    q: int = Field(ge=3, description="a prime power; the counts need no more than q != 2 modulo 4")
    endpoints_per_switch: PositiveInt

    @model_validator(mode="after")
    def _possible(self) -> "SlimFly":
        if self.q % 4 == 2:
            raise ValueError(f"q: found {self.q}, expected 4 w + delta with delta -1, 0 or 1, such "
                             f"as {self.q - 1} or {self.q + 1}")  # fmt: skip
        if self.degree + self.endpoints_per_switch > self.radix:
            raise ValueError(f"radix: found {self.radix}, expected at least "
                             f"{self.degree + self.endpoints_per_switch}: {self.degree} ports to "
                             f"switches and {self.endpoints_per_switch} to endpoints")  # fmt: skip
        return self

    @property
    def degree(self) -> int:
        """Links of a switch, ``(3 q - delta)/2``."""
        delta = (self.q + 1) % 4 - 1
        return (3 * self.q - delta) // 2

    @property
    def counts(self) -> Counts:
        """The closed form, for any ``q``, whether there is such a graph or not."""
        switches = 2 * self.q**2
        return Counts(switches * self.endpoints_per_switch, switches, self.q**2 * self.degree)

    def sizes(self) -> Iterator[Counts]:
        """Yield the counts of smaller ones that use half of the same switches, then of this one.

        They are graphs that exist, with half as many endpoints as links at each switch, about as
        many as get full bandwidth (Besta and Hoefler, SC 2014).
        """
        for q in filter(prime_of, range(3, self.q)):
            some = self.model_copy(update={"q": q})
            attached = min(-(-some.degree // 2), self.radix - some.degree)
            if self.radix <= 2 * (some.degree + attached):
                yield some.model_copy(update={"endpoints_per_switch": attached}).counts
        yield self.counts

    def build(self) -> Topology:
        """Return the graph; switches are numbered ``x q + y``, then ``q^2 + m q + c``.

        Those of equal ``x`` are a group, and so are those of equal ``m``.

        Raises:
            UserError: If ``q`` is no prime power.
        """
        q, field = self.q, galois_field(self.q)
        first, second = (
            _within(q * q * half, field.sums, members)
            for half, members in enumerate(generators(q, field.powers))
        )
        x, m, c = (axis.ravel() for axis in np.indices((q, q, q)))
        y = field.sums[field.products[m, x], c]
        across = np.stack([x * q + y, q * q + m * q + c], axis=1)
        return Topology(
            switches=2 * q * q,
            endpoint_switches=np.repeat(np.arange(2 * q * q), self.endpoints_per_switch),
            links=np.concatenate([first, second, across]),
            local_links=0,
            # Adding one element to all y and c maps every link to a link.
            representatives=np.arange(0, 2 * q * q, q),
            layers=np.zeros(2 * q * q, dtype=np.int64),
            groups=np.repeat(np.arange(2 * q), q),
        )


def _within(start: int, sums: Integers, members: Integers) -> NDArray[np.int64]:
    """Return the links among the ``q`` switches of each of ``q`` blocks from ``start`` on."""
    q = len(sums)
    ends = np.stack([np.repeat(np.arange(q), len(members)), sums[:, members].ravel()], axis=1)
    once = ends[ends[:, 0] < ends[:, 1]]
    return (start + q * np.arange(q)[:, None, None] + once).reshape(-1, 2)
