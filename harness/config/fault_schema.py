"""Schema of the faults that an experiment injects into training."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.base import Spec

# What holds the value: a weight, its gradient before clipping, what the optimizer keeps of it
# (momentum; mean square), or the output of a module in one forward pass.
Target = Literal["weight", "gradient", "first_moment", "second_moment", "activation"]
Part = Literal["embedding", "attention", "feed_forward", "norms", "head"]
# The bits of a bfloat16 word, which are the upper half of a float32 word.
Bit = Annotated[str, Field(pattern=r"^(sign|exponent_[0-7]|mantissa_[1-7])$")]


class Condition(Spec):
    """Under which training a fault strikes; takes the place of the same keys of `training`."""

    gradient_clip: PositiveFloat | None = Field(description="largest global gradient norm")
    precision: Literal["float32", "bfloat16"]
    targets: list[Target] | None = Field(None, description="none: all targets of the experiment")


class Faults(Spec):
    """One bit flip at a time, each from the same state of a run."""

    step: NonNegativeInt = Field(description="steps before the flip")
    observe: PositiveInt = Field(description="steps after it")
    targets: list[Target] = Field(min_length=1)
    parts: list[Part] = Field(min_length=1)
    bits: list[Bit] = Field(min_length=1)
    draws: PositiveInt = Field(description="random places of each target and part")
    tolerance: PositiveFloat = Field(
        description="relative rise of a loss, over the run without a fault, up to which it counts "
        "as harmless"
    )
    conditions: list[Condition] = Field(min_length=1)

    def targets_under(self, condition: Condition) -> list[Target]:
        """Return what is hit under a condition."""
        return self.targets if condition.targets is None else condition.targets
