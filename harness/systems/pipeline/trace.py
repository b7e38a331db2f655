"""A simulated schedule as a Chrome trace, to be opened in Perfetto or ``chrome://tracing``.

python -m harness.systems.pipeline.trace --schedule 1f1b --stages 8 --micro-batches 20 --output F
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config.base import validate
from harness.errors import UserError
from harness.files import write_json
from harness.systems.pipeline.programs import Operation
from harness.systems.pipeline.schedules import SCHEDULES, build
from harness.systems.pipeline.simulator import Durations, Timeline, simulate

SYMBOLS = {"forward": "F", "backward": "B", "backward_input": "I", "backward_weight": "W"}
MICROSECONDS = 1000
# Milliseconds; with these the formulas of all schedules are exact.
DEFAULTS = {"forward": 1.0, "backward_input": 1.0, "backward_weight": 1.0, "overlapped": 3.0,
            "latency": 0.0}  # fmt: skip


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """Return a timeline in milliseconds in the Trace Event Format, as a JSON object.

    Every operation is a complete event (``ph`` X) of the thread of its rank, ``ts`` and ``dur`` in
    microseconds.
    """
    events: list[dict[str, Any]] = []
    for rank, spans in enumerate(timeline.spans):
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": rank,
                       "args": {"name": f"rank {rank}"}})  # fmt: skip
        for operation, (start, end) in zip(timeline.program.ranks[rank], spans, strict=True):
            events.append(_event(operation) | {
                "ph": "X", "pid": 0, "tid": rank,
                "ts": start * MICROSECONDS, "dur": (end - start) * MICROSECONDS,
            })  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(operation: Operation) -> dict[str, Any]:
    return {
        "name": " & ".join(f"{SYMBOLS[task.kind]}{task.micro_batch}" for task in operation.tasks),
        "cat": operation.kind,
        "args": {f"stage of {task.kind}": task.stage for task in operation.tasks},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate a schedule and write its trace."""
    parser = argparse.ArgumentParser(description="Write a pipeline schedule as a Chrome trace.")
    parser.add_argument("--schedule", required=True, help=", ".join(SCHEDULES))
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--micro-batches", type=int, required=True)
    parser.add_argument("--virtual-stages", type=int, default=1, help="pieces of a stage that are "
                        "interleaved; durations are of a whole stage")  # fmt: skip
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value,
                            help=f"milliseconds (default {value:g})")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        program = build(options.schedule, options.stages, options.micro_batches,
                        options.virtual_stages)  # fmt: skip
        durations = validate(Durations, {name: getattr(options, name) for name in DEFAULTS},
                             "durations")  # fmt: skip
    except UserError as error:
        parser.error(str(error))
    timeline = simulate(program, durations.of_piece(options.virtual_stages))
    write_json(options.output, chrome_trace(timeline))
    print(options.output)


if __name__ == "__main__":
    main()
