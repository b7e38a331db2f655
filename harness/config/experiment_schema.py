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

from harness.config.base import Spec


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

    flip: bool = Field(False, description="mirror left to right with probability 1/2")
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

    @model_validator(mode="after")
    def _divides(self) -> "Training":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}"
            )
        return self


class Seeds(Spec):
    """Learning rates are chosen on some seeds and reported on others."""

    tuning: list[NonNegativeInt] = Field(min_length=1)
    reporting: list[NonNegativeInt] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "Seeds":
        shared = set(self.tuning) & set(self.reporting)
        if shared:
            raise ValueError(f"seed {min(shared)} is in both lists, expected fresh reporting seeds")
        if len(set(self.reporting)) != len(self.reporting):
            raise ValueError("reporting repeats a seed, expected distinct seeds")
        return self


class Speculation(Spec):
    """Self-speculative decoding of held-out text by models with multi-token prediction."""

    prompts: PositiveInt
    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    rounds: PositiveInt = Field(3, description="interleaved repetitions of the timing")


class Evaluation(Spec):
    """Tasks of lm-eval on the reported checkpoints; language only."""

    tasks: list[str] = Field(min_length=1, description="names in config/tasks.yaml or of lm-eval")
    documents: PositiveInt | None = Field(None, description="per task; none: all")
    batch_size: PositiveInt = 16
    speculation: Speculation | None = None


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
    optimizers: Literal["all"] | list[str] = Field(
        description="names; `all`, alone or in the list: every entry of config/optimizers.yaml "
        "that is not a variant"
    )
    compare: Literal["optimizers", "models"] = "optimizers"
    baseline: str = Field(description="the optimizer or model that differences are taken against")
    models: ModelNames = Field(min_length=1)
    datasets: list[str] = Field(min_length=1)
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
    optimizers: Literal["all"] | list[str]
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


ExperimentSpec = Annotated[
    TrainExperiment | MeasureExperiment | ComputeExperiment, Field(discriminator="kind")
]


class Scale(Spec):
    """An overlay of numbers over the experiments: never a different code path."""

    description: str
    device: Literal["cpu", "cuda"]
    threads: PositiveInt = Field(1, description="CPU threads of one training job")
    runs_per_job: PositiveInt = Field(
        1, description="runs that share a process; more for short runs, 1 for long ones"
    )
    checkpoint_seconds: PositiveFloat = Field(300, description="time between checkpoints")
    experiments: dict[str, dict[str, Any] | None] = Field(
        min_length=1, description="the experiments that run at this scale, with their overlays"
    )
