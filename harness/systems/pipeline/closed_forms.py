"""What is published of schedules in formulas: how long ranks idle and what they hold.

The number of micro-batches does not enter; the formulas hold from ``2 * stages`` of them on.
"""

from harness.systems.pipeline.schedules import INTERLEAVED
from harness.systems.pipeline.simulator import Durations


def bubble(schedule: str, stages: int, durations: Durations, virtual_stages: int = 1) -> float:
    """Return the time that a rank idles, in the unit of ``durations``.

    DeepSeek-V3 (arXiv 2412.19437), table 2; DualPipeV: the table of ``deepseek-ai/DualPipe``;
    interleaved 1F1B: Megatron-LM (arXiv 2104.04473), section 2.2.2. For DualPipe it is an upper
    bound where W <= F <= B - W, and exact where they are equal.

    Args:
        schedule: Its name.
        stages: PP of the formulas.
        durations: Of a stage; their latency is left out.
        virtual_stages: Pieces of a stage that are interleaved.
    """
    f, b, w = durations.forward, durations.backward, durations.backward_weight
    if schedule in ("1f1b", INTERLEAVED):
        return (stages - 1) * (f + b) / virtual_stages
    if schedule == "zb1p":
        return (stages - 1) * (f + b - 2 * w)
    assert schedule in ("dualpipe", "dualpipe_v"), schedule
    return (stages / 2 - 1) * (durations.overlapped + b - 3 * w)


def peak_activations(schedule: str, stages: int, virtual_stages: int = 1) -> float:
    """Return how many stages' activations the fullest rank holds.

    DeepSeek-V3 (arXiv 2412.19437), table 2, and for interleaved stages Korthikanti et al.
    (arXiv 2205.05198), section 4.2.3. Arguments as for ``bubble``.
    """
    if schedule in ("1f1b", "zb1p"):
        return stages
    if schedule == INTERLEAVED:
        return stages + (stages - 1) / virtual_stages
    assert schedule in ("dualpipe", "dualpipe_v"), schedule
    return stages + 1
