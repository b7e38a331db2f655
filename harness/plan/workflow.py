"""The plan as Snakemake asks for it: paths in, paths out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.config.catalog import Catalog, load_catalog
from harness.plan.expand import expand
from harness.plan.job import Job, Stage
from harness.plan.verify import verify

# Stages whose jobs may share a GPU where the scale says so.
SHARING: tuple[Stage, ...] = ("tune", "train")


@dataclass(frozen=True)
class WorkflowPlan:
    """The jobs of a scale and the files through which they depend on each other."""

    catalog: Catalog
    jobs: dict[str, Job]

    @classmethod
    def load(cls, config: Path, scale: str) -> "WorkflowPlan":
        """Load, verify and expand the configuration of one scale.

        Raises:
            UserError: For the first mistake found.
        """
        catalog = load_catalog(config, scale)
        verify(catalog)
        return cls(catalog, expand(catalog))

    def outputs(self, stages: Iterable[Stage] | None = None) -> list[str]:
        """Return the result files of the jobs of some stages, or of all."""
        wanted = None if stages is None else set(stages)
        return [self._path(job) for job in self.jobs.values()
                if wanted is None or job.stage in wanted]  # fmt: skip

    def needs(self, name: str) -> list[str]:
        """Return the results that a job reads."""
        return [self._path(self.jobs[other]) for other in self.jobs[name].needs]

    def after(self, name: str) -> list[str]:
        """Return the results that must exist before a job, whatever their age."""
        return [self._path(self.jobs[other]) for other in self.jobs[name].after]

    def content(self, name: str) -> str:
        """Return a hash of everything that a job does."""
        return self.jobs[name].content

    def gpus(self, name: str) -> int:
        """Return how many shares of a GPU a job holds, of which one has ``jobs_per_gpu``."""
        job = self.jobs[name]
        if not job.gpu:
            return 0
        return 1 if job.stage in SHARING else self.catalog.scale.jobs_per_gpu

    def _path(self, job: Job) -> str:
        if job.stage == "prepare":
            return f"results/data/{job.name}/manifest.json"
        return f"results/{self.catalog.scale_name}/{job.output}"
