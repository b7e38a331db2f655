"""Schema of ``config/claims.yaml``: what somebody published, and how it is to be judged."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from harness.config.base import Spec, validate
from harness.config.yaml_file import read_yaml
from harness.errors import UserError, closest


class ValueEvidence(Spec):
    """One number of an experiment: the mean over its seeds."""

    experiment: str
    metric: str
    where: dict[str, Any] = Field(
        default_factory=dict, description="model, dataset, optimizer or labels of the records"
    )


class ComparisonEvidence(Spec):
    """The paired difference of two members on every sweep of an experiment."""

    experiment: str
    metric: str
    compare: tuple[str, str] = Field(
        description="first and second member: optimizers or models, what the experiment compares"
    )
    claimed: Literal["first_lower", "first_higher"] | None = Field(
        None, description="which sign of first minus second the claim predicts; rule ordering"
    )
    relative: bool = Field(False, description="divide by the second, seed by seed")


class LabelEvidence(Spec):
    """The paired difference of two values of a label, for example of two sets of coefficients."""

    experiment: str
    metric: str
    label: str = Field(description="the label that tells the two sides apart")
    compare: tuple[str, str] = Field(description="first and second value of the label")
    where: dict[str, Any] = Field(default_factory=dict, description="as in ValueEvidence")
    each: list[str] = Field(
        default_factory=list, description="factors and labels of whose values each gets a row"
    )
    claimed: Literal["first_lower", "first_higher"]


class ConditionEvidence(Spec):
    """The paired difference of one optimizer between two experiments on equal seeds."""

    experiments: tuple[str, str] = Field(description="first and second condition")
    metric: str
    optimizer: str
    claimed: Literal["first_lower", "first_higher"]


OrderingEvidence = ComparisonEvidence | LabelEvidence | ConditionEvidence


class Claim(Spec):
    """One published statement.

    ``exact`` is a closed form and must agree within ``tolerance`` (relative). ``value`` is judged
    only at ``scale``. ``ordering`` is the sign of a paired difference at any scale. ``bound`` is a
    range that a number must lie in with its interval: a difference at any scale, another one only
    at ``scale``.
    """

    source: str = Field(description="paper and place in it")
    claim: str = Field(description="one sentence")
    reported: str = Field(description="as printed")
    unit: str = ""
    rule: Literal["exact", "value", "ordering", "bound"]
    value: float | None = Field(None, description="the reported number, for exact and value")
    tolerance: NonNegativeFloat | None = Field(None, description="relative, for exact and value")
    low: float | None = Field(None, description="smallest value that a bound allows")
    high: float | None = Field(None, description="largest value that a bound allows")
    scale: str = Field(
        "any",
        description="the scale at which the claim was made; agreement elsewhere is of direction",
    )
    evidence: ValueEvidence | OrderingEvidence | None = None
    nothing: str | None = Field(None, description="why there is no evidence to be had here")

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if (self.evidence is None) == (self.nothing is None):
            raise ValueError("needs either `evidence` or `nothing` (why there is none)")
        numbers = self.value is not None and self.tolerance is not None
        if self.rule in ("exact", "value") and self.evidence is not None and not numbers:
            raise ValueError(f"rule {self.rule} needs `value` and `tolerance`")
        if self.rule == "bound" and self.evidence and self.low is None and self.high is None:
            raise ValueError("rule bound needs `low` or `high`")
        if self.rule == "ordering" and self.evidence and self.sign is None:
            raise ValueError("rule ordering needs evidence with two sides and `claimed`")
        return self

    @property
    def sign(self) -> int | None:
        """The sign that the claim predicts for a difference; None if it predicts none."""
        claimed = getattr(self.evidence, "claimed", None)
        return None if claimed is None else {"first_lower": -1, "first_higher": 1}[claimed]

    @property
    def experiments(self) -> tuple[str, ...]:
        """The experiments whose records bear on the claim."""
        if self.evidence is None:
            return ()
        if isinstance(self.evidence, ConditionEvidence):
            return self.evidence.experiments
        return (self.evidence.experiment,)


ClaimId = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")]


def load_claims(path: Path) -> dict[str, Claim]:
    """Return the claims of the ledger by id, in the order of the file.

    Raises:
        UserError: For the first invalid entry, or evidence from an unknown experiment or
            at an unknown scale.
    """
    claims = {}
    known = [file.stem for file in (path.parent / "experiments").glob("*.yaml")]
    scales = ["any", *(file.stem for file in (path.parent / "scales").glob("*.yaml"))]
    for name, data in read_yaml(path).items():
        validate(ClaimId, name, f"{path}: {name}")
        claims[name] = claim = validate(Claim, data, f"{path}: {name}")
        if claim.scale not in scales:
            raise UserError(f"{path}: {name}.scale: found '{claim.scale}'"
                            f"{closest(claim.scale, scales)}")  # fmt: skip
        for experiment in claim.experiments:
            if experiment not in known:
                raise UserError(f"{path}: {name}.evidence.experiment: found '{experiment}'"
                                f"{closest(experiment, known)}")  # fmt: skip
    return claims
