"""The error of FP8 dot products on a GPU's tensor cores, beside the emulation on the same operands.

Hopper keeps 13 fraction bits of a sum (arXiv 2505.09343, section 3.1.2; DeepSeek-V3, section
3.3.2), the figure that `harness.numerics.accumulation` emulates. A product with fast accumulation
leaves the whole sum to the tensor cores; without it, the library adds parts in float32; and a sum
of float32 products over 128 elements each is the remedy of DeepSeek-V3, with its interval.

Operands are the same vectors as in the experiment `accumulation`, without scales, on which no error
depends; errors are defined in the same way.

Shape suffixes: D dot products, K their elements.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from harness.config.base import validate
from harness.config.decoder_schema import Fp8
from harness.errors import UserError, closest
from harness.models.fp8 import fp8_backend, hardware_product
from harness.numerics.accumulation import Accumulator, accumulate, sum_errors
from harness.numerics.format_evidence import DISTRIBUTIONS
from harness.numerics.formats import E4M3
from harness.numerics.scaling import Quantized, quantize
from harness.records.record import Record, record

RECIPE = Fp8(scaling="tensor")
# What Hopper keeps and adds at once, and DeepSeek-V3's interval: 4 instructions of 32 products.
FRACTION_BITS, ALIGN, PROMOTION = 13, 32, 128

_Sizes = Annotated[list[PositiveInt], Field(min_length=1)]
_Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]


def fp8_accumulation(
    lengths: Sequence[int],
    distributions: Sequence[str],
    dots: int,
    seeds: Sequence[int],
    device: torch.device | str,
) -> list[Record]:
    """Return errors of dot products of E4M3 vectors against their exact sums, on tensor cores.

    Args:
        lengths: Elements of a dot product, multiples of 128.
        distributions: Keys of ``DISTRIBUTIONS``, of both operands before they are quantised.
        dots: Independent dot products per seed.
        seeds: Of the operands.
        device: With FP8 tensor cores; on another GPU the records say that it has none.

    Returns:
        By length, distribution, promotion (none; library; 128), method (measured; emulated, with
        fraction_bits and align) and seed: ``tensor_cores/max_error``, the largest error over the
        largest sum; ``tensor_cores/frobenius_error``, that of their root mean squares;
        ``tensor_cores/bias``, the mean error in the direction of the sum over the mean magnitude.
        By length, distribution, promotion and seed: ``tensor_cores/equal_to_emulation``, the share
        of sums that are the same float32 number.
        ``tensor_cores/supported``: 1, or 0 where there are no FP8 tensor cores and nothing else.

    Raises:
        UserError: If an argument is not as described, or the device is no GPU.
    """
    where, device = "fp8_accumulation", torch.device(device)
    validate(_Sizes, lengths, f"{where}: lengths")
    validate(PositiveInt, dots, f"{where}: dots")
    validate(_Seeds, seeds, f"{where}: seeds")
    validate(Annotated[list[str], Field(min_length=1)], distributions, f"{where}: distributions")
    for name in distributions:
        if name not in DISTRIBUTIONS:
            raise UserError(f"{where}: distributions: found '{name}'"
                            f"{closest(name, DISTRIBUTIONS)}")  # fmt: skip
    for length in lengths:
        if length % PROMOTION:
            raise UserError(f"{where}: lengths: found {length}, expected multiples of {PROMOTION}")
    if device.type != "cuda":
        raise UserError(f"{where}: device: found '{device.type}', expected 'cuda': its tensor "
                        "cores are what is measured")  # fmt: skip
    if fp8_backend(RECIPE, device) != "hardware":
        missing = {"what": "FP8 tensor cores", "reason": "this device has none"}
        return [_record("supported", 0.0, missing)]
    records = [_record("supported", 1.0, {})]
    for name, length, seed in product(distributions, lengths, seeds):
        left_DK, right_DK = (side.to(device) for side in operands(name, dots, length, seed))
        for row in compare(left_DK, right_DK):
            labels = {"length": length, "distribution": name, **row["labels"]}
            records.append(row | {"labels": labels, "seed": seed})
    return records


def operands(distribution: str, dots: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return both sides of the dot products (D x K, E4M3), quantised by row."""
    left_DK, right_DK = (
        quantize(
            torch.from_numpy(
                DISTRIBUTIONS[distribution](np.random.default_rng((seed, side)), (dots, length))
            ),
            E4M3,
            "row",
        ).values
        for side in range(2)
    )
    return left_DK, right_DK


def compare(left_DK: Tensor, right_DK: Tensor) -> list[Record]:
    """Return the errors of measured and emulated sums, and how often both are equal."""
    products_DK = left_DK.double() * right_DK.double()
    exact_D = products_DK.sum(1)
    records = []
    for promotion, measure in MEASURED.items():
        measured_D = measure(left_DK, right_DK).double()
        labels = {"promotion": promotion, "method": "measured"}
        records += [_record(m, v, labels) for m, v in sum_errors(measured_D, exact_D).items()]
        if promotion == "library":
            # Its interval is not documented.
            continue
        interval = None if promotion == "none" else PROMOTION
        emulated_D = accumulate(products_DK, Accumulator(FRACTION_BITS, ALIGN, interval))
        labels = {"promotion": promotion, "method": "emulated",
                  "fraction_bits": FRACTION_BITS, "align": ALIGN}  # fmt: skip
        records += [_record(m, v, labels) for m, v in sum_errors(emulated_D, exact_D).items()]
        equal = (measured_D.float() == emulated_D.float()).double().mean().item()
        records.append(_record("equal_to_emulation", equal, {"promotion": promotion}))
    return records


def _product(left_DK: Tensor, right_DK: Tensor, *, fast: bool) -> Tensor:
    """Return the dot products of tensor cores: the diagonal of a matrix product."""
    one, group = torch.ones(1, 1, device=left_DK.device), (len(left_DK), left_DK.shape[1])
    result_DD = hardware_product(
        Quantized(left_DK, one, group), Quantized(right_DK, one, group), RECIPE, torch.float32,
        fast_accumulation=fast,
    )  # fmt: skip
    return result_DD.diagonal()


def _whole(left_DK: Tensor, right_DK: Tensor) -> Tensor:
    return _product(left_DK, right_DK, fast=True)


def _library(left_DK: Tensor, right_DK: Tensor) -> Tensor:
    return _product(left_DK, right_DK, fast=False)


def _promoted(left_DK: Tensor, right_DK: Tensor) -> Tensor:
    parts = zip(left_DK.split(PROMOTION, 1), right_DK.split(PROMOTION, 1), strict=True)
    total_D = torch.zeros(len(left_DK), device=left_DK.device)
    for left, right in parts:
        total_D += _product(left, right, fast=True)
    return total_D


MEASURED: dict[str | int, Callable[[Tensor, Tensor], Tensor]] = {
    "none": _whole,
    "library": _library,
    PROMOTION: _promoted,
}


def _record(metric: str, value: float, labels: dict[str, Any]) -> Record:
    return record(f"tensor_cores/{metric}", value, "1", **labels)
