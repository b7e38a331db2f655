"""Schema of ``config/recommendations.yaml``: what a paper asks hardware for, what bears on it."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from harness.config.base import Spec, validate
from harness.config.yaml_file import read_yaml
from harness.errors import UserError, closest


class RecordedEvidence(Spec):
    """One number from the records of an experiment, and what it says."""

    experiment: str
    metric: str
    where: dict[str, Any] = Field(
        default_factory=dict, description="model, dataset, optimizer or labels of the records"
    )
    compare: tuple[str, str] | None = Field(
        None, description="two members of a sweep: the first over the second, less one"
    )
    says: str = Field(min_length=1, description="what the number is, in a few words")

    @model_validator(mode="after")
    def _one_way(self) -> "RecordedEvidence":
        if self.compare and self.where:
            raise ValueError("has both `where` and `compare`, expected one of them")
        return self


class Recommendation(Spec):
    """One thing that a paper asks for."""

    recommendation: str = Field(min_length=1, description="one sentence, in our words")
    sections: list[str] = Field(min_length=1, description="of the paper")
    evidence: list[RecordedEvidence] = Field(default_factory=list)
    nothing: str | None = Field(None, min_length=1, description="why nothing here bears on it")

    @field_validator("sections")
    @classmethod
    def _numbered(cls, sections: list[str]) -> list[str]:
        for section in sections:
            if not re.fullmatch(r"\d+(\.\d+)*", section):
                raise ValueError(f"found '{section}', expected a number like '5.2.2'")
        return sections

    @model_validator(mode="after")
    def _complete(self) -> "Recommendation":
        if bool(self.evidence) == (self.nothing is not None):
            raise ValueError("needs either `evidence` or `nothing` (why there is none)")
        return self


def load_recommendations(path: Path) -> dict[int, Recommendation]:
    """Return the recommendations by number, in the order of the file.

    Raises:
        UserError: For the first invalid entry, numbers that are not 1, 2, 3 and so on, or evidence
            from an unknown experiment.
    """
    data = read_yaml(path)
    if list(data) != list(range(1, len(data) + 1)):
        found = ", ".join(map(str, data))
        raise UserError(f"{path}: found the numbers {found}, expected 1 to {len(data)} in order")
    known = [file.stem for file in (path.parent / "experiments").glob("*.yaml")]
    entries: dict[int, Recommendation] = {}
    for number, entry in enumerate(data.values(), start=1):
        entries[number] = validate(Recommendation, entry, f"{path}: {number}")
        for place, evidence in enumerate(entries[number].evidence):
            if evidence.experiment not in known:
                where = f"{path}: {number}.evidence.{place}.experiment"
                found = f"found '{evidence.experiment}'{closest(evidence.experiment, known)}"
                raise UserError(f"{where}: {found}")
    return entries
