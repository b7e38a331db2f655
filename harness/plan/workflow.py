"""The plan as Snakemake asks for it: paths in, paths out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.config.catalog import Catalog, load_catalog
from harness.errors import UserError, closest
from harness.plan.expand import expand
from harness.plan.job import Job, Stage
from harness.plan.verify import verify

# Stages whose jobs may share a GPU where the scale says so.
SHARING: tuple[Stage, ...] = ("tune", "train")


@dataclass(frozen=True)
class Settings:
    """What ``snakemake --config`` may say.

    Attributes:
        scale: Name of a scale.
        config: Folder of the configuration.
        records: Folder of records that takes the place of this machine's own; None if there is
            none.
    """

    scale: str = "smoke"
    config: str = "config"
    records: str | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Settings":
        """Return the settings in Snakemake's ``config``.

        Raises:
            UserError: For an unknown key, one without a value or a folder without records.
        """
        valid = [field.name for field in fields(cls)]
        for key, value in given.items():
            if key not in valid:
                raise UserError(f"--config: unknown key '{key}'{closest(key, valid)}")
            if value is None:
                raise UserError(f"--config {key}: found nothing, expected a value")
        # Snakemake makes numbers and truth values of what looks like them.
        settings = cls(**{key: str(value) for key, value in given.items()})
        records = settings.records
        if records is not None and not Path(records, "records.parquet").is_file():
            raise UserError(f"--config records: found '{records}', which has no records.parquet; "
                            "expected a folder such as results/smoke")  # fmt: skip
        return settings


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
