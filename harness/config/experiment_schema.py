"""Schema of ``config/experiments/*.yaml`` and of the scales that are laid over them."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from harness.config.base import Distinct, Spec
from harness.config.fault_schema import Faults


class WarmupCosine(Spec):
    """Linear warm-up, then half a cosine down to `final` times the peak."""

    kind: Literal["warmup_cosine"]
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    final: float = Field(0.1, ge=0, le=1, description="last learning rate over the peak")


class WarmupStableDecay(Spec):
    """Linear warm-up, a constant stretch, then a linear decay to `final` times the peak."""

    kind: Literal["warmup_stable_decay"]
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    decay: float = Field(0.2, gt=0, le=1, description="share of the steps")
    final: float = Field(0.0, ge=0, le=1, description="last learning rate over the peak")

    @model_validator(mode="after")
    def _fits(self) -> "WarmupStableDecay":
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup + decay is {self.warmup + self.decay:g}, expected at most 1")
        return self


class Augmentation(Spec):
    """Random changes of the training images, drawn and applied on the device."""

    flip: bool | Literal["alternate"] = Field(
        False,
        description="mirror left to right with probability 1/2; alternate: in every other epoch, "
        "for half of the images in the even ones",
    )
    translate: NonNegativeInt = Field(0, description="shift by up to this many pixels, zero filled")
    cutout: NonNegativeInt = Field(0, description="side of a square set to the mean colour")


class GradientOutliers(Spec):
    """Heavy-tailed outliers added to random entries of every gradient, before it is clipped."""

    fraction: float = Field(gt=0, lt=1, description="share of the entries of each gradient")
    scale: PositiveFloat = Field(description="multiples of the root mean square of that gradient")
    distribution: Literal["normal", "laplace", "cauchy"]


class Training(Spec):
    """How one run is trained; the same for every optimizer of an experiment."""

    steps: PositiveInt = Field(description="optimizer steps")
    batch_size: PositiveInt = Field(description="sequences or images per optimizer step")
    sequence_length: PositiveInt | None = Field(None, description="tokens; language only")
    accumulation: PositiveInt = Field(1, description="micro-batches per optimizer step")
    attend_across_documents: bool = Field(
        True, description="no: a position reads only tokens of its own text; language only"
    )
    schedule: Annotated[WarmupCosine | WarmupStableDecay, Field(discriminator="kind")]
    gradient_clip: PositiveFloat | None = Field(None, description="largest global gradient norm")
    gradient_outliers: GradientOutliers | None = Field(
        None, description="added to the gradients before they are clipped; none: left alone"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast with float32 weights"
    )
    log_interval: PositiveInt = Field(10, description="steps between recorded training losses")
    evaluation_interval: PositiveInt = Field(description="steps between validation losses")
    evaluation_batches: PositiveInt | None = Field(
        None, description="batches of the validation and test split; none: all of it"
    )
    recording_interval: PositiveInt | None = Field(
        None,
        description="steps between records of what reported runs orthogonalise; language only",
    )
    augmentation: Augmentation | None = Field(None, description="images only")
    label_smoothing: NonNegativeFloat = Field(0.0, lt=1, description="images only")
    evaluation_views: Literal["image", "mirror", "mirror_translate"] = Field(
        "image", description="whose logits are averaged in evaluation; images only"
    )

    @model_validator(mode="after")
    def _divides(self) -> "Training":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}"
            )
        return self


class Seeds(Spec):
    """Learning rates are chosen on some seeds and reported on others."""

    tuning: Annotated[list[NonNegativeInt], Distinct] = Field(min_length=1)
    reporting: Annotated[list[NonNegativeInt], Distinct] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "Seeds":
        shared = set(self.tuning) & set(self.reporting)
        if shared:
            raise ValueError(f"seed {min(shared)} is in both lists, expected fresh reporting seeds")
        return self


class Speculation(Spec):
    """Self-speculative decoding of held-out text by models with multi-token prediction."""

    prompts: PositiveInt
    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    rounds: PositiveInt = Field(3, description="interleaved repetitions of the timing")


class Evaluation(Spec):
    """Tasks of lm-eval on the reported checkpoints; language only."""

    tasks: list[str] = Field(
        default_factory=list, description="embedded tasks, or any that lm-eval knows by name"
    )
    mirror: str | None = Field(
        None, description="folder with <task>.parquet or <task>.jsonl for each task of lm-eval, "
        "absolute or below HARNESS_DATA; none: the hub"
    )  # fmt: skip
    documents: PositiveInt | None = Field(None, description="per task; none: all")
    batch_size: PositiveInt = Field(16, description="most sequences in a forward pass")
    speculation: Speculation | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> "Evaluation":
        if not self.tasks and self.speculation is None:
            raise ValueError("found neither tasks nor speculation, expected one of them")
        return self


OptimizerNames = Literal["all"] | Annotated[list[str], Field(min_length=1)]
ModelNames = Annotated[
    list[str] | dict[str, str],
    Field(description="names in config/models.yaml; a mapping gives each the name under which it "
          "is compared, the same at every scale"),
]  # fmt: skip


def _shown_names(models: list[str] | dict[str, str]) -> dict[str, str]:
    pairs = models.items() if isinstance(models, dict) else zip(models, models, strict=True)
    return {entry: name for name, entry in pairs}


class TrainExperiment(Spec):
    """A sweep: every optimizer on every model and dataset, tuned and then reported.

    What it compares are the optimizers on each model, or the models under each optimizer.
    """

    kind: Literal["train"]
    title: str
    question: str
    task: Literal["language", "images"]
    optimizers: OptimizerNames = Field(
        description="names; `all`, alone or in the list: every entry of config/optimizers.yaml "
        "that is not a variant"
    )
    compare: Literal["optimizers", "models"] = "optimizers"
    baseline: str = Field(description="the optimizer or model that differences are taken against")
    models: ModelNames = Field(min_length=1)
    datasets: Annotated[list[str], Distinct] = Field(min_length=1)
    learning_rate: PositiveFloat | None = Field(
        None, description="one for all, to compare at equal hyperparameters; none: tuned"
    )
    training: Training
    seeds: Seeds
    evaluation: Evaluation | None = None

    @property
    def model_names(self) -> dict[str, str]:
        """Entries of ``config/models.yaml`` and the names under which they are compared."""
        return _shown_names(self.models)

    @model_validator(mode="after")
    def _task_options(self) -> "TrainExperiment":
        language = self.task == "language"
        if language != (self.training.sequence_length is not None):
            raise ValueError("training.sequence_length is needed for task language, and only there")
        if language and (self.training.augmentation or self.training.label_smoothing):
            raise ValueError("training.augmentation and label_smoothing are for task images only")
        if language and self.training.evaluation_views != "image":
            raise ValueError("training.evaluation_views is for task images only")
        if not language and not self.training.attend_across_documents:
            raise ValueError("training.attend_across_documents is for task language only")
        if self.training.recording_interval and not language:
            raise ValueError("training.recording_interval is for task language only")
        if self.evaluation and not language:
            raise ValueError("evaluation (lm-eval) is for task language only")
        if len(self.model_names) < len(self.models):
            raise ValueError("models names one entry twice, expected distinct entries")
        if self.learning_rate is not None and self.compare == "optimizers":
            raise ValueError("learning_rate is for `compare: models` only: optimizers are compared "
                             "at rates tuned for each")  # fmt: skip
        return self


class MeasureExperiment(Spec):
    """Optimizer step times, measured side by side on the parameter shapes of a model."""

    kind: Literal["measure"]
    title: str
    question: str
    optimizers: OptimizerNames
    baseline: str
    models: list[str] = Field(min_length=1)
    rounds: PositiveInt = Field(description="interleaved repetitions")
    version: PositiveInt = Field(1, description="raised when a change of the code changes results")


class ComputeExperiment(Spec):
    """A closed form or a simulation: a pure function from arguments to records."""

    kind: Literal["compute"]
    title: str
    question: str
    function: str = Field(description="import path; returns a list of records")
    models: ModelNames = Field(
        default_factory=list, description="their specifications go to the argument `models`"
    )
    arguments: dict[str, Any] = Field(default_factory=dict)
    timed: bool = Field(
        False, description="measures time: runs alone, on the device in the argument `device`"
    )
    version: PositiveInt = Field(1, description="raised when a change of the code changes results")

    @property
    def model_names(self) -> dict[str, str]:
        """Entries of ``config/models.yaml`` and the names that the function gets for them."""
        return _shown_names(self.models)


class FaultExperiment(Spec):
    """Single bit flips in training: which of them do harm."""

    kind: Literal["faults"]
    title: str
    question: str
    task: Literal["language"]
    optimizers: dict[str, PositiveFloat] = Field(
        min_length=1, description="names and their learning rates"
    )
    models: ModelNames = Field(min_length=1)
    datasets: Annotated[list[str], Distinct] = Field(min_length=1)
    training: Training
    faults: Faults
    seeds: Annotated[list[NonNegativeInt], Distinct] = Field(min_length=1)

    @property
    def model_names(self) -> dict[str, str]:
        """Entries of ``config/models.yaml`` and the names under which they are shown."""
        return _shown_names(self.models)

    @model_validator(mode="after")
    def _fits(self) -> "FaultExperiment":
        if self.training.sequence_length is None:
            raise ValueError("training.sequence_length: required key is missing")
        last = self.faults.step + self.faults.observe
        if last > self.training.steps:
            raise ValueError(f"faults: step + observe is {last}, expected at most training.steps "
                             f"{self.training.steps}")  # fmt: skip
        return self


AnyExperiment = TrainExperiment | MeasureExperiment | ComputeExperiment | FaultExperiment
ExperimentSpec = Annotated[AnyExperiment, Field(discriminator="kind")]


class Scale(Spec):
    """An overlay of numbers over the experiments: never a different code path."""

    description: str
    device: Literal["cpu", "cuda"]
    threads: PositiveInt = Field(1, description="CPU threads of one training job")
    runs_per_job: PositiveInt = Field(
        1, description="runs that share a process; more for short runs, 1 for long ones"
    )
    checkpoint_seconds: PositiveFloat = Field(300, description="time between checkpoints")
    compile: bool = Field(False, description="train with torch.compile; pays for long runs")
    jobs_per_gpu: PositiveInt = Field(
        1, description="training jobs that may share a GPU of this machine, for small models; all "
        "other jobs have one to themselves"
    )  # fmt: skip
    experiments: dict[str, dict[str, Any] | None] = Field(
        min_length=1, description="the experiments that run at this scale, with their overlays"
    )
