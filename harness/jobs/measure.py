"""The job that times optimizer steps side by side on the parameter shapes of a model."""

from typing import Any

import torch

from harness.jobs.calibrate import build_on_meta, matrix_shapes
from harness.jobs.context import Context
from harness.measurement.optimizer_step import measure as time_steps
from harness.plan.expand import Job
