"""How large a singular value may be before equal Newton-Schulz steps lose it.

Notation: f(s) = a s + b s^3 + c s^5 is one step with the triple (a, b, c).
"""

import math

import numpy as np

from harness.numerics.orthogonalization import Triple


def stable_up_to(triple: Triple) -> float:
    """Return the supremum u such that 0 < f(f(...f(s))) stays bounded for every s in (0, u).

    Any number of steps is meant, so the answer does not depend on how many are taken. All of
    (0, u) is good exactly if f maps it into itself: the images of good values are good, and they
    reach from zero to the maximum of f, which hence cannot exceed the supremum. So u is the
    largest v with 0 < f(s) <= v on (0, v). Where that stops to hold f either rises above the
    diagonal, at a fixed point, or crosses zero; no other v needs to be tried. u is zero if f grows
    every small value without any fixed point to hold it, or makes it negative, and infinite if no
    value ever grows (b = c = 0, a <= 1). Values that shrink to zero count as bounded.
    """
    a, b, c = triple
    if next((number for number in triple if number), 0.0) <= 0:
        return 0.0
    if b == c == 0:
        return math.inf if a <= 1 else 0.0
    zero = min(_positive_roots(a, b, c), default=math.inf)
    candidates = [s for s in (zero, *_positive_roots(a - 1, b, c)) if s <= zero and s < math.inf]
    return max((s for s in candidates if _maximum(triple, s) <= s * (1 + 1e-12)), default=0.0)


def stable_triple(point: np.ndarray, margin: float) -> Triple:
    """Return a triple that is stable up to at least 1 + ``margin``, for any ``point``.

    f(s) = s + c s (s^2 - p^2)(s^2 - u^2) has the fixed points p < u, and
    u - f(s) = (u - s)(1 - c q(s)) with q(s) = s (p^2 - s^2)(s + u). It is therefore stable up to u
    if c q(s) <= 1, where the maximum of q solves a cubic, and if f is positive at its lowest
    relative to s, halfway between p^2 and u^2. All c > 0 with two fixed points and no sign change
    below u are of this form. Here they keep ``margin`` from every limit, so that rounding does not
    push an overshooting value over u, or lift f off the diagonal where p and u are close.

    Args:
        point: Three free numbers: they set u, p and c through squares, so a minimiser without
            constraints may look for the best of them.
        margin: Least distance of u and u^2 / p^2 above one, and of c q(s) and f(s) / s from
            their limits.
    """
    upper = 1 + margin + point[0] ** 2
    upper_square = upper**2
    lower_square = upper_square / (1 + margin + point[1] ** 2)
    # q'(s) = 0 has one positive root.
    top = np.roots((4, 3 * upper, -2 * lower_square, -lower_square * upper)).real.max()
    most_overshoot = 1 / (top * (lower_square - top**2) * (top + upper))
    most_undershoot = 4 / (upper_square - lower_square) ** 2
    c = (1 - margin) * min(most_overshoot, most_undershoot) / (1 + point[2] ** 2)
    return (
        float(1 + c * lower_square * upper_square),
        float(-c * (lower_square + upper_square)),
        float(c),
    )


def _maximum(triple: Triple, limit: float) -> float:
    """Return the largest f(s) for 0 < s <= ``limit``."""
    a, b, c = triple
    turning = (s for s in _positive_roots(a, 3 * b, 5 * c) if s < limit)
    return max(s * (a + s * s * (b + s * s * c)) for s in (limit, *turning))


def _positive_roots(constant: float, linear: float, square: float) -> list[float]:
    """Return every s > 0 with constant + linear s^2 + square s^4 = 0, in ascending order."""
    if square == 0:
        roots = [-constant / linear] if linear else []
    else:
        discriminant = linear * linear - 4 * constant * square
        if discriminant < 0:
            return []
        # The sum without cancellation; the other root follows from the product of both.
        larger = -(linear + math.copysign(math.sqrt(discriminant), linear)) / 2
        roots = [larger / square, constant / larger if larger else 0.0]
    return sorted(math.sqrt(root) for root in roots if root > 0)
