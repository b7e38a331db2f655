"""Two kinds of work on two streams of one GPU: what running them together hides.

arXiv 2505.09343 overlaps computation with communication (section 2.3.1) and asks for traffic
classes, because copies from the host get in the way of other transfers (section 4.5.2). One GPU has
no network, so copies stand in for it. Those within a GPU take memory bandwidth, and most drivers
make them with kernels; those from pinned memory take the bus and a copy engine.

Perfect overlap of times C and T takes max(C, T), a speed-up of (C + T) / max(C, T).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from harness.config.base import validate
from harness.errors import UserError
from harness.measurement.optimizer_step import WARMUP_ROUNDS
from harness.records.record import Record, record
from harness.systems.overlap import speedup

Kind = Literal["gemm", "device_to_device", "host_to_device"]
Pair = tuple[Kind, Kind]

MEBIBYTE = 2**20
# Before what is timed, the GPU spins while the host submits all of it: 10 ms at about 2 GHz.
SUBMISSION_CYCLES = 20_000_000


@dataclass(frozen=True)
class Times:
    """Seconds of two kinds of work, each alone and both at once."""

    first: float
    second: float
    both: float

    @property
    def speedup(self) -> float:
        """How much faster both at once are than one after the other."""
        return (self.first + self.second) / self.both

    @property
    def limit(self) -> float:
        """The speed-up of perfect overlap."""
        return speedup(self.first, self.second)

    @property
    def hidden_share(self) -> float:
        """How much of the shorter kind is hidden: 1 if all, below 0 if they slow each other."""
        return (self.first + self.second - self.both) / min(self.first, self.second)


def stream_overlap(
    gemm: Sequence[int],
    copy_mebibytes: int,
    pairs: Sequence[Sequence[str]],
    ratios: Sequence[float],
    seconds: float,
    rounds: int,
    device: torch.device | str,
) -> list[Record]:
    """Return times of pairs of work on two streams, alone and together.

    Args:
        gemm: M, N and K of the products, in bfloat16.
        copy_mebibytes: Of one copy.
        pairs: Two of ``gemm``, ``device_to_device`` and ``host_to_device``; the first is kept.
        ratios: Time of the second over that of the first, set by the number of its copies.
        seconds: That the first takes alone.
        rounds: Timed rounds; each measures both kinds alone and then together.
        device: A CUDA device.

    Returns:
        By first, second, ratio and round: ``streams/time`` in s, by ``run`` (first, second, both);
        ``streams/speedup`` by ``method`` (measured, closed_form); ``streams/hidden_share``. Without
        round: ``streams/median_speedup``, of what was measured.

    Raises:
        UserError: If an argument is not as described, or the device has no streams.
    """
    where, device = "stream_overlap", torch.device(device)
    sizes = validate(Annotated[list[PositiveInt], Field(min_length=3, max_length=3)], gemm,
                     f"{where}: gemm")  # fmt: skip
    validate(PositiveInt, copy_mebibytes, f"{where}: copy_mebibytes")
    chosen: list[Pair] = validate(list[Pair], pairs, f"{where}: pairs")
    validate(list[PositiveFloat], ratios, f"{where}: ratios")
    validate(PositiveFloat, seconds, f"{where}: seconds")
    validate(PositiveInt, rounds, f"{where}: rounds")
    if device.type != "cuda":
        raise UserError(f"{where}: device: found '{device.type}', expected 'cuda': its streams are "
                        "what is measured")  # fmt: skip
    works = _works(sizes, copy_mebibytes * MEBIBYTE, device)
    # The same ones throughout: libraries allocate on the first use of a stream.
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    single = {kind: _time_of_one(work, streams) for kind, work in works.items()}
    records = []
    for (first, second), ratio in product(chosen, ratios):
        count = repetitions(single[first], seconds)
        others = repetitions(single[second], ratio * count * single[first])
        labels = {"first": first, "second": second, "ratio": ratio}
        measured = list(_rounds(
            partial(_repeat, works[first], count), partial(_repeat, works[second], others),
            rounds, streams,
        ))  # fmt: skip
        for round_, times in enumerate(measured):
            records += records_of(times, round=round_, **labels)
        typical = median(times.speedup for times in measured)
        records.append(_record("median_speedup", typical, "1", **labels))
    return records


def repetitions(one: float, seconds: float) -> int:
    """Return how often work of ``one`` second fills ``seconds``, at least once."""
    return max(1, round(seconds / one))


def records_of(times: Times, **labels: str | float) -> list[Record]:
    """Return what was measured in one round, beside perfect overlap."""
    runs = {"first": times.first, "second": times.second, "both": times.both}
    return [
        *(_record("time", value, "s", run=run, **labels) for run, value in runs.items()),
        _record("speedup", times.speedup, "1", method="measured", **labels),
        _record("speedup", times.limit, "1", method="closed_form", **labels),
        _record("hidden_share", times.hidden_share, "1", **labels),
    ]


def _record(metric: str, value: float, unit: str, **labels: str | float) -> Record:
    return record(f"streams/{metric}", value, unit, **labels)


def _works(sizes: Sequence[int], nbytes: int, device: torch.device) -> Mapping[str, Any]:
    """Return one unit of every kind of work, on buffers of its own."""
    rows, columns, inner = sizes
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    result = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)

    def buffer(place: torch.device, pinned: bool = False) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=place, pin_memory=pinned)

    host = buffer(torch.device("cpu"), pinned=True)
    works = (
        partial(torch.mm, left, right, out=result),
        partial(buffer(device).copy_, buffer(device)),
        partial(buffer(device).copy_, host, non_blocking=True),
    )
    return dict(zip(get_args(Kind), works, strict=True))


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def _time_of_one(work: Callable[[], object], streams: Sequence[torch.cuda.Stream]) -> float:
    """Return the median seconds of one unit of work."""
    samples = [timed_on_streams([work], streams) for _ in range(WARMUP_ROUNDS + 5)]
    return median(samples[WARMUP_ROUNDS:])


def _rounds(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    streams: Sequence[torch.cuda.Stream],
) -> Iterator[Times]:
    for round_ in range(-WARMUP_ROUNDS, rounds):
        runs = ([first], [second], [first, second])
        times = Times(*(timed_on_streams(run, streams) for run in runs))
        if round_ >= 0:
            yield times


def timed_on_streams(
    works: Sequence[Callable[[], object]], streams: Sequence[torch.cuda.Stream]
) -> float:
    """Return the seconds from the common start of ``works``, a stream each, to their common end.

    Args:
        works: Functions that submit work to the current stream.
        streams: As many, or more.
    """
    device = streams[0].device
    torch.cuda.synchronize(device)
    main = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Otherwise the second stream starts late by what the host needs to submit the first one's work.
    torch.cuda._sleep(SUBMISSION_CYCLES)
    start.record(main)
    for stream, work in zip(streams, works, strict=False):
        stream.wait_event(start)
        with torch.cuda.stream(stream):
            work()
        main.wait_stream(stream)
    end.record(main)
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000
