"""What Snakemake schedules: jobs, which are small batches of runs that share a process."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.plan.identity import digest

Stage = Literal[
    "check",
    "prepare",
    "calibrate",
    "tune",
    "train",
    "evaluate",
    "precision",
    "measure",
    "compute",
    "faults",
]
# What a training run is for: a trial of a learning rate, or a number in a table.
Role = Literal["tuning", "reporting"]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The names under which the records of a run appear in tables and figures."""

    model: str | None = None
    dataset: str | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of a job: its factors, its specification and what it is for.

    A reported run lacks the learning rate in its specification if trials decide it.
    """

    factors: Factors
    spec: dict[str, Any]
    role: Role = "reporting"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A node of the workflow.

    Attributes:
        name: Readable, and ends in ``content`` unless other jobs only wait for this one.
        content: A hash of everything the job does.
        stage: Which rule runs it.
        experiment: The experiment it belongs to; None for stages that serve several.
        needs: Names of the jobs whose results it reads.
        after: Names of jobs that must have run before, but whose results do not enter its own.
        work: Its runs.
        gpu: Whether it needs a GPU.
    """

    name: str
    content: str
    stage: Stage
    experiment: str | None
    work: tuple[Work, ...]
    gpu: bool
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The one file that Snakemake owns of this job, relative to ``results/<scale>``."""
        if self.stage == "prepare":
            return f"../data/{self.name}/manifest.json"
        return f"jobs/{self.stage}/{self.name}.json"


def make_job(
    stage: Stage,
    label: str,
    work: list[Work],
    gpu: bool,
    *,
    experiment: str | None = None,
    needs: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Job:
    """Return a job whose content is the hash of its work and of the contents of what it needs."""
    hashed = digest([stage, [asdict(item) for item in work], sorted(map(content_of, needs))])
    return Job(
        # Jobs that others only wait for keep their name: a new one would be a new input to those.
        name=label if stage in ("check", "calibrate") else f"{label}-{hashed}",
        content=hashed,
        stage=stage,
        experiment=experiment,
        work=tuple(work),
        gpu=gpu,
        needs=needs,
        after=after,
    )


def content_of(name: str) -> str:
    """Return the hash in a job's name, which says what it does but not for which experiment."""
    return name.rpartition("-")[2]
