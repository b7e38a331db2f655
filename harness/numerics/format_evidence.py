"""What low-precision formats and limited accumulation lose, and what codecs cost, as records."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from harness.config.base import validate
from harness.errors import UserError, closest
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.numerics import logfmt
from harness.numerics.accumulation import Accumulator, accumulate, sum_errors
from harness.numerics.formats import E4M3, FORMATS
from harness.numerics.scaling import dequantize, fake_quantize, quantize, round_in_tiles
from harness.records.record import record

Scaling = Literal["tensor", "tile", "tile_power_of_two"]

# Each entry is drawn on its own; the product with a lognormal has outliers of many sizes.
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "student_t4": lambda random, shape: random.standard_t(4, shape),
    "normal_times_lognormal": lambda random, shape: (
        random.standard_normal(shape) * random.lognormal(0, 1, shape)
    ),
    "laplace": lambda random, shape: random.laplace(0, 1, shape),
    "uniform": lambda random, shape: random.random(shape),
}
LOGFMT = ("logfmt8", "logfmt10")
CODECS = ("e4m3", "e5m2", *LOGFMT)
# Products held in memory at once.
CHUNK = 2**21

_Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]
_Sizes = Annotated[list[PositiveInt], Field(min_length=1)]
_Promotions = Annotated[list[PositiveInt | Literal["none"]], Field(min_length=1)]


def format_signal_to_noise(
    formats: Sequence[str],
    scalings: Sequence[str],
    distributions: Sequence[str],
    samples: int,
    tile: int,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Return 10 log10(sum of squares / sum of squared errors) of float32 values in each format.

    Args:
        formats: Keys of ``FORMATS``, or of ``LOGFMT``.
        scalings: Of floating-point formats narrower than bfloat16: one scale per tensor or tile, or
            per tile rounded up to a power of two. LogFMT has tiles, bfloat16 has no scales.
        distributions: Keys of ``DISTRIBUTIONS``.
        samples: Values per seed, a multiple of ``tile``.
        tile: Values that share a scale.
        seeds: Of the values.

    Returns:
        ``format/signal_to_noise`` in dB by format, scaling, distribution, tile and seed.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "format_signal_to_noise"
    names = _names(formats, (*FORMATS, *LOGFMT), f"{where}: formats")
    scales = _names(scalings, get_args(Scaling), f"{where}: scalings")
    records = []
    for distribution, seed, x in _samples(distributions, samples, tile, seeds, where):
        for name, scaling in _scaled(names, scales):
            error = x.double() - _rounded(x, name, scaling, tile).double()
            ratio = x.double().square().sum() / error.square().sum()
            labels = {"format": name, "scaling": scaling, "distribution": distribution,
                      "tile": tile}  # fmt: skip
            decibels = 10 * torch.log10(ratio).item()
            records.append(record("format/signal_to_noise", decibels, "dB", seed=seed, **labels))
    return records


def logfmt_rounding_bias(
    bits: Sequence[int],
    tiles: Sequence[int],
    distributions: Sequence[str],
    samples: int,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Return by how much LogFMT changes the mean magnitude under both ways of rounding.

    Args:
        bits: Of each value, sign included.
        tiles: Values that share a range; each divides ``samples``.
        distributions: Keys of ``DISTRIBUTIONS``.
        samples: Values per seed.
        seeds: Of the values.

    Returns:
        ``logfmt/rounding_bias``, the mean magnitude after over that before minus one, and its
        absolute value, by bits, tile, distribution, rounding (linear or logarithmic) and seed.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "logfmt_rounding_bias"
    validate(_Sizes, bits, f"{where}: bits")
    for number in bits:
        if number not in logfmt.BITS:
            raise UserError(f"{where}: bits: found {number}, expected 3 to 15")
    validate(_Sizes, tiles, f"{where}: tiles")
    records = []
    for tile in tiles:
        for distribution, seed, x in _samples(distributions, samples, tile, seeds, where):
            before = x.double().abs().sum()
            for number, rounding in product(bits, get_args(logfmt.Rounding)):
                found = logfmt.round_to_logfmt(x, number, tile, rounding)
                bias = (found.double().abs().sum() / before - 1).item()
                labels = {"bits": number, "tile": tile, "distribution": distribution,
                          "rounding": rounding}  # fmt: skip
                records += [
                    record("logfmt/rounding_bias", bias, "1", seed=seed, **labels),
                    record("logfmt/absolute_rounding_bias", abs(bias), "1", seed=seed, **labels),
                ]
    return records


def accumulation_error(
    lengths: Sequence[int],
    fraction_bits: Sequence[int],
    promotions: Sequence[int | str],
    distributions: Sequence[str],
    dots: int,
    align: int,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Return errors of dot products of E4M3 vectors against their exact sums.

    Every vector has a scale of its own, which no error depends on: the hardware multiplies what is
    stored, and the scales follow.

    Args:
        lengths: Elements of a dot product.
        fraction_bits: That the hardware keeps.
        promotions: Elements after which sums move to float32, multiples of ``align``, or ``none``.
        distributions: Keys of ``DISTRIBUTIONS``, of both operands before they are quantised.
        dots: Independent dot products per seed.
        align: Products that the hardware adds at once.
        seeds: Of the operands.

    Returns:
        By length, fraction_bits, promotion, align, distribution and seed:
        ``accumulation/max_error``, the largest error over the largest sum;
        ``accumulation/frobenius_error``, that of their root mean squares;
        ``accumulation/bias``, the mean error in the direction of the sum over the mean magnitude.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "accumulation_error"
    names = _names(distributions, DISTRIBUTIONS, f"{where}: distributions")
    validate(_Sizes, lengths, f"{where}: lengths")
    validate(_Sizes, fraction_bits, f"{where}: fraction_bits")
    validate(PositiveInt, dots, f"{where}: dots")
    validate(PositiveInt, align, f"{where}: align")
    validate(_Seeds, seeds, f"{where}: seeds")
    validate(_Promotions, promotions, f"{where}: promotions")
    hardware = {
        (bits, promotion): _hardware(bits, align, promotion, where)
        for bits, promotion in product(fraction_bits, promotions)
    }
    records = []
    for name, length, seed in product(names, dict.fromkeys(lengths), dict.fromkeys(seeds)):
        exact, found = _dot_products(name, length, dots, seed, list(hardware.values()))
        for (bits, promotion), sums in zip(hardware, found, strict=True):
            labels = {"length": length, "fraction_bits": bits, "promotion": promotion,
                      "align": align, "distribution": name}  # fmt: skip
            for metric, value in sum_errors(sums, exact).items():
                records.append(record(f"accumulation/{metric}", value, "1", seed=seed, **labels))
    return records


def codec_cost(
    formats: Sequence[str],
    tile: int,
    rows: int,
    columns: int,
    rounds: int,
    device: torch.device | str,
) -> list[dict[str, Any]]:
    """Return the time to encode and decode a bfloat16 matrix, and that over a copy of its bytes.

    The codecs are chains of plain torch operations: an upper bound for fused kernels. LogFMT-10
    fills two bytes per value here.

    Args:
        formats: Of ``CODECS``.
        tile: Values that share a scale, a divisor of ``columns``.
        rows: Of the matrix, the tokens of a message.
        columns: Of the matrix.
        rounds: Timed rounds; each takes the copy and every codec once.
        device: On which all is timed.

    Returns:
        ``codec/time`` in seconds, of the copy too, and ``codec/time_over_copy`` within the same
        round, by codec, tile, rows, columns and round.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "codec_cost"
    names = _names(formats, CODECS, f"{where}: formats")
    for key, size in {"tile": tile, "rows": rows, "columns": columns, "rounds": rounds}.items():
        validate(PositiveInt, size, f"{where}: {key}")
    if columns % tile:
        raise UserError(f"{where}: tile: found {tile}, expected a divisor of columns {columns}")
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, columns, generator=generator, device=device).bfloat16()
    steps = {"copy": partial(torch.empty_like(x).copy_, x)}
    steps |= {name: partial(_code_and_back, x, name, tile) for name in names}
    records = []
    for round_ in range(-WARMUP_ROUNDS, rounds):
        seconds = {name: timed(step, device) for name, step in steps.items()}
        if round_ < 0:
            continue
        for name, time in seconds.items():
            labels = {"codec": name, "tile": tile, "rows": rows, "columns": columns,
                      "round": round_}  # fmt: skip
            records.append(record("codec/time", time, "s", **labels))
            if name != "copy":
                ratio = time / seconds["copy"]
                records.append(record("codec/time_over_copy", ratio, "1", **labels))
    return records


def _samples(
    distributions: Sequence[str], samples: int, tile: int, seeds: Sequence[int], where: str
) -> Iterator[tuple[str, int, Tensor]]:
    """Yield distribution, seed and float32 values, one tile per row."""
    names = _names(distributions, DISTRIBUTIONS, f"{where}: distributions")
    validate(PositiveInt, samples, f"{where}: samples")
    validate(PositiveInt, tile, f"{where}: tile")
    validate(_Seeds, seeds, f"{where}: seeds")
    if samples % tile:
        raise UserError(f"{where}: samples: found {samples}, expected a multiple of tile {tile}")
    for name, seed in product(names, dict.fromkeys(seeds)):
        values = DISTRIBUTIONS[name](np.random.default_rng(seed), (samples // tile, tile))
        yield name, seed, torch.from_numpy(values).float()


def _scaled(formats: Sequence[str], scalings: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in formats:
        if name == "bfloat16":
            yield name, "none"
        elif name.startswith("logfmt"):
            yield name, "tile"
        else:
            yield from ((name, scaling) for scaling in scalings)


def _rounded(x: Tensor, format: str, scaling: str, tile: int) -> Tensor:
    if scaling == "tensor":
        return fake_quantize(x, FORMATS[format], "tensor")
    if scaling == "tile_power_of_two":
        return fake_quantize(x, FORMATS[format], "tile", tile, power_of_two=True)
    return round_in_tiles(x, format, tile)


def _hardware(bits: int, align: int, promotion: int | str, where: str) -> Accumulator:
    try:
        return Accumulator(bits, align, None if promotion == "none" else int(promotion))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _dot_products(
    distribution: str, length: int, dots: int, seed: int, hardware: Sequence[Accumulator]
) -> tuple[Tensor, list[Tensor]]:
    """Return exact sums and those of each hardware."""
    draw = DISTRIBUTIONS[distribution]
    # A stream for each operand, so that the size of a chunk changes nothing.
    streams = [np.random.default_rng((seed, side)) for side in range(2)]
    exact: list[Tensor] = []
    found: list[list[Tensor]] = [[] for _ in hardware]
    rows = max(1, CHUNK // length)
    for start in range(0, dots, rows):
        shape = (min(rows, dots - start), length)
        left, right = (
            quantize(torch.from_numpy(draw(random, shape)), E4M3, "row").values
            for random in streams
        )
        products = left.double() * right.double()
        exact.append(products.sum(1))
        for sums, accumulator in zip(found, hardware, strict=True):
            sums.append(accumulate(products, accumulator))
    return torch.cat(exact), [torch.cat(sums) for sums in found]


def _code_and_back(x: Tensor, format: str, tile: int) -> Tensor:
    if format.startswith("logfmt"):
        codes = logfmt.encode(x, int(format.removeprefix("logfmt")), tile)
        return logfmt.decode(codes, x.dtype)
    return dequantize(quantize(x, FORMATS[format], "tile", tile), x.dtype)


def _names(names: Sequence[str], valid: Sequence[str] | dict[str, Any], where: str) -> list[str]:
    validate(Annotated[list[str], Field(min_length=1)], names, where)
    for name in names:
        if name not in valid:
            raise UserError(f"{where}: found '{name}'{closest(name, valid)}")
    return list(dict.fromkeys(names))
