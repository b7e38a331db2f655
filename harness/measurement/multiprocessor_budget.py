"""Throughput of matrix products on fewer multiprocessors (SMs) of a GPU.

DeepSeek-V3 keeps 20 of the 132 SMs of an H800 busy with communication (arXiv 2505.09343, section
4.4), which leaves products 1 - 20/132 of them. If a product is limited by what SMs compute, its
throughput falls by the same share; it may fall less, as clocks and memory are shared by fewer, or
more, where its blocks no longer fit in whole waves.

A CUDA green context confines kernels to some SMs. FP8 products are measured with kernels sized for
the whole GPU and for the budget, which torch passes on for FP8 only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch.nn.functional import ScalingType

from harness.config.base import validate
from harness.config.decoder_schema import Fp8
from harness.errors import UserError
from harness.measurement.green_contexts import Budget, green_budgets
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.models.fp8 import ALIGNMENT, fp8_backend
from harness.records.record import Record, record

# Products of one timed sample: waiting for a GPU takes as long as a small one.
CALLS = 20
TERA = 1e12

Precision = Literal["bfloat16", "fp8"]
Shape = Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]


def multiprocessor_budget(
    shapes: Mapping[str, Sequence[int]],
    precisions: Sequence[str],
    taken: Sequence[int],
    rounds: int,
    device: torch.device | str,
) -> list[Record]:
    """Return throughput of products on all SMs and on all but some.

    Args:
        shapes: M, N and K of the products by name.
        precisions: Of the operands: ``bfloat16``, ``fp8`` (E4M3, one scale per tensor).
        taken: SMs that products may not use.
        rounds: Timed rounds; each takes every shape, precision and budget once.
        device: A CUDA device.

    Returns:
        By shape, precision, sized_for (device, budget), multiprocessors and round:
        ``gemm/throughput`` in TFLOP/s, and ``gemm/throughput_share``, over that on all SMs in the
        same round. ``gemm/throughput_share`` with method closed_form: the share of SMs.
        ``gemm/supported``: 1, or 0 with a reason for budgets or precisions that cannot be had.

    Raises:
        UserError: If an argument is not as described, or the device is no GPU.
    """
    where, device = "multiprocessor_budget", torch.device(device)
    named: dict[str, list[int]] = validate(dict[str, Shape], shapes, f"{where}: shapes")
    wanted: list[Precision] = validate(
        Annotated[list[Precision], Field(min_length=1)], precisions, f"{where}: precisions"
    )
    for name, (_, columns, inner) in named.items():
        if "fp8" in wanted and (columns % ALIGNMENT or inner % ALIGNMENT):
            raise UserError(f"{where}: shapes: {name}: found N {columns} and K {inner}, expected "
                            f"multiples of {ALIGNMENT} for FP8")  # fmt: skip
    validate(list[PositiveInt], taken, f"{where}: taken")
    validate(PositiveInt, rounds, f"{where}: rounds")
    if device.type != "cuda":
        raise UserError(f"{where}: device: found '{device.type}', expected 'cuda': its "
                        "multiprocessors are what is measured")  # fmt: skip
    total = torch.cuda.get_device_properties(device).multi_processor_count
    if max(taken, default=0) >= total:
        raise UserError(f"{where}: taken: found {max(taken)}, expected less than the {total} "
                        "multiprocessors of this GPU")  # fmt: skip
    try:
        budgets = green_budgets([total - number for number in taken], total, device)
    except (RuntimeError, OSError) as error:
        return [_unsupported(what="green contexts", reason=str(error).splitlines()[0])]
    records = [_record("supported", 1.0, what="green contexts")]
    if "fp8" in wanted and fp8_backend(Fp8(scaling="tensor"), device) != "hardware":
        wanted = [precision for precision in wanted if precision != "fp8"]
        records.append(_unsupported(what="fp8", reason="no FP8 tensor cores"))
    works: dict[tuple[str, str], Callable[[], object]] = {
        (name, precision): _work(shape, precision, device)
        for name, shape in named.items()
        for precision in wanted
    }
    return [*records, *measure(works, named, budgets, total, rounds, device)]


def measure(
    works: Mapping[tuple[str, str], Callable[[], object]],
    shapes: Mapping[str, Sequence[int]],
    budgets: Mapping[int, Budget],
    total: int,
    rounds: int,
    device: torch.device,
) -> list[Record]:
    """Return the records of every product within every budget.

    Args:
        works: Products by name of their shape and precision.
        shapes: M, N and K by name.
        budgets: By number of multiprocessors: what confines to them; ``total`` is one of them.
        total: Multiprocessors of the device.
        rounds: Timed rounds.
        device: Of the products.
    """
    records = [
        _record("throughput_share", count / total, method="closed_form", multiprocessors=count)
        for count in budgets
        if count != total
    ]
    for round_ in range(-WARMUP_ROUNDS, rounds):
        for (name, precision), work in works.items():
            seconds = dict(_seconds(work, precision, budgets, total, device))
            if round_ >= 0:
                operations = 2 * torch.tensor(shapes[name], dtype=torch.float64).prod().item()
                records += _round(seconds, operations, total,
                                  shape=name, precision=precision, round=round_)  # fmt: skip
    return records


def _seconds(
    work: Callable[[], object],
    precision: str,
    budgets: Mapping[int, Budget],
    total: int,
    device: torch.device,
) -> Iterator[tuple[tuple[int, str], float]]:
    """Yield the seconds of one product by budget and what its kernel is sized for."""
    for count, budget in budgets.items():
        kernels: list[tuple[str, AbstractContextManager[None]]] = [("device", nullcontext())]
        if precision == "fp8" and count != total:
            kernels.append(("budget", _kernels_leave(total - count)))
        for sized_for, kernel in kernels:
            with budget(), kernel:
                # The first product in a context may load its kernel.
                work()
                yield (
                    (count, sized_for),
                    timed(lambda: [work() for _ in range(CALLS)], device) / CALLS,
                )


def _round(
    seconds: Mapping[tuple[int, str], float], operations: float, total: int, **labels: Any
) -> Iterator[Record]:
    whole = seconds[total, "device"]
    for (count, sized_for), value in seconds.items():
        own = {**labels, "multiprocessors": count, "sized_for": sized_for}
        yield _record("throughput", operations / value / TERA, unit="TFLOP/s", **own)
        if count != total:
            yield _record("throughput_share", whole / value, method="measured", **own)


@contextmanager
def _kernels_leave(count: int) -> Iterator[None]:
    """Have cuBLAS choose FP8 kernels that leave ``count`` SMs to others."""
    torch._C._set_sm_carveout_experimental(count)
    try:
        yield
    finally:
        torch._C._set_sm_carveout_experimental(None)


def _work(shape: Sequence[int], precision: str, device: torch.device) -> Callable[[], object]:
    """Return the product of one shape, with a bfloat16 result."""
    rows, columns, inner = shape
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
    if precision == "bfloat16":
        return partial(torch.mm, left, right.T)
    one = torch.ones((), device=device)
    operands = [side.to(torch.float8_e4m3fn) for side in (left, right)]
    return partial(
        F.scaled_mm, operands[0], operands[1].T, one, ScalingType.TensorWise, one,
        ScalingType.TensorWise, output_dtype=torch.bfloat16,
    )  # fmt: skip


def _unsupported(**labels: str) -> Record:
    return _record("supported", 0.0, **labels)


def _record(metric: str, value: float, unit: str = "1", **labels: Any) -> Record:
    return record(f"gemm/{metric}", value, unit, **labels)
