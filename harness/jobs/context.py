"""What every job needs to know: its configuration and where results live."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config.catalog import Catalog
from harness.errors import UserError
from harness.files import read_json
from harness.plan.expand import expand
from harness.plan.job import Job
from harness.records.run_folder import RunFolder


@dataclass(frozen=True)
class Context:
    """A catalog and the ``results`` folder that its jobs read and write."""

    catalog: Catalog
    results: Path

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """All jobs of the scale by name."""
        return expand(self.catalog)

    @property
    def scale_folder(self) -> Path:
        """Folder of the records, tables, figures and report of this scale."""
        return self.results / self.catalog.scale_name

    @property
    def device_key(self) -> str:
        """File and key that ask for a device, for messages."""
        return f"{self.catalog.folder}/scales/{self.catalog.scale_name}.yaml: device"

    @property
    def calibration_cache(self) -> Path:
        """Folder of calibrated coefficients, shared by all scales."""
        return self.results / "calibration"

    def job(self, name: str) -> Job:
        """Return a job by name.

        Raises:
            UserError: If the configuration no longer has it.
        """
        if name not in self.jobs:
            raise UserError(
                f"job: found '{name}', which the configuration no longer has; it was edited while "
                "the workflow ran: run snakemake again"
            )
        return self.jobs[name]

    def run_folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run; runs are shared by all scales."""
        return RunFolder(self.results / "runs", run_id)

    def output(self, job: Job) -> Path:
        """Return the path of a job's result."""
        return self.scale_folder / job.output

    def result(self, name: str) -> dict[str, Any]:
        """Return what the job called ``name`` wrote.

        Raises:
            UserError: If it has not done so, or the file is damaged.
        """
        path = self.output(self.job(name))
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the result of a job that 'snakemake' "
                            "runs")  # fmt: skip
        return read_json(path)

    def reported_runs(self, name: str) -> list[dict[str, Any]]:
        """Return the runs of a training job that are more than trials."""
        return [run for run in self.result(name)["runs"] if run["role"] == "reporting"]

    def dataset_folder(self, job: Job) -> Path:
        """Return the prepared dataset that ``job`` reads."""
        prepared = [name for name in job.needs if self.job(name).stage == "prepare"]
        return self.results / "data" / prepared[0]
