"""Schema of ``config/optimizers.yaml``: any importable ``torch.optim.Optimizer``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from harness.config.base import Distinct, Spec


class Companion(Spec):
    """Which entry optimizes the parameters that are not hidden matrices, and how fast."""

    use: str = Field(description="name of another entry with `parameters: all`")
    lr: PositiveFloat | None = Field(None, description="its learning rate; none: the tuned one")


class Tune(Spec):
    """The grid that is searched on the tuning seeds."""

    lr: Annotated[list[PositiveFloat], Distinct] = Field(
        min_length=2, description="learning rates to try"
    )


class Recording(Spec):
    """Runs that record what they orthogonalise: the reporting seeds of one optimizer."""

    experiment: str = Field(description="a train experiment with `training.recording_interval`")
    optimizer: str = Field(description="one of its optimizers, an orthogonalising one")


class CalibrationOptions(BaseModel):
    """Options of a calibration; the plan only has to know which other runs it needs.

    The rest is for ``harness.optimizers.calibration.Calibration``, which refuses unknown keys.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    recording: Recording | None = None


class OptimizerEntry(Spec):
    """One optimizer: its class, its arguments and the parameters that it takes."""

    class_: str = Field(alias="class", description="import path of a torch.optim.Optimizer")
    parameters: Literal["all", "matrices"] = Field(
        "all", description="matrices: hidden weight matrices only, the rest goes to `companion`"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments")
    companion: Companion | None = Field(None, description="needed with `parameters: matrices`")
    calibration: CalibrationOptions | None = Field(
        None, description="how AdaNewton coefficients are found for shapes without published ones"
    )
    tune: Tune
    variant_of: str | None = Field(None, description="the entry that this one inherits from")

    @property
    def recording(self) -> Recording | None:
        """The runs whose matrices its coefficients are fitted to."""
        return None if self.calibration is None else self.calibration.recording

    @model_validator(mode="before")
    @classmethod
    def _name_only_companion(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("companion"), str):
            return data | {"companion": {"use": data["companion"]}}
        return data

    @model_validator(mode="after")
    def _companion_goes_with_matrices(self) -> "OptimizerEntry":
        if self.parameters == "matrices" and self.companion is None:
            raise ValueError("`parameters: matrices` needs `companion`, e.g. `companion: adamw`")
        if self.parameters == "all" and self.companion is not None:
            raise ValueError("`companion` is only used with `parameters: matrices`; remove one")
        if "lr" in self.arguments:
            raise ValueError("arguments.lr is set by `tune.lr`; remove it from `arguments`")
        return self
