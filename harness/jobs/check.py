"""The job before all others: can this machine and configuration train at all?"""

from typing import TYPE_CHECKING, Any

from harness.errors import UserError, first_line
from harness.jobs.context import Context
from harness.plan.job import Job
from harness.training.devices import leased_device

if TYPE_CHECKING:
    from harness.models.decoder import Decoder


def check(job: Job, context: Context) -> dict[str, Any]:
    """Take two steps with every optimizer of the scale on a tiny model, on the scale's device.

    Raises:
        UserError: If the device is missing, layers cannot be compiled although the scale says so,
            or an optimizer cannot be built or cannot step.
    """
    scale = context.catalog.scale
    with leased_device(scale.device, context.device_key) as device:
        if scale.compile:
            _compile(device, context)
        for item in job.work:
            name = f"{context.catalog.folder}/optimizers.yaml: {item.factors.optimizer}"
            try:
                _take_steps(item.spec, device)
            except UserError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise UserError(
                    f"{name}: cannot take a step: {reason}; expected arguments that its class "
                    "accepts"
                ) from error
    return {"checked": [item.factors.optimizer for item in job.work]}


def _compile(device: str, context: Context) -> None:
    import torch

    from harness.training.compilation import compile_layers

    model = _tiny_decoder(device)
    compile_layers(model)
    tokens = torch.arange(12, device=device).reshape(2, 6)
    try:
        model.loss(tokens, tokens).backward()
    except Exception as error:
        # Dynamo wraps what a backend raises.
        cause = getattr(error, "inner_exception", error)
        where = f"{context.catalog.folder}/scales/{context.catalog.scale_name}.yaml: compile"
        raise UserError(
            f"{where}: found true, but torch.compile fails: {first_line(cause)}; expected what its "
            "compilers need, such as gcc and Python's headers, or false"
        ) from error


def _take_steps(spec: dict[str, Any], device: str) -> None:
    import torch

    from harness.optimizers import build_optimizer

    model = _tiny_decoder(device)
    shapes = {(min(p.shape), max(p.shape)) for p in model.parameters() if p.ndim == 2}
    # Any coefficients do: what is checked is that a step can be taken.
    coefficients = dict.fromkeys(shapes, (3.4445, -4.7750, 2.0315))
    optimizer = build_optimizer(spec, model, 1e-3, coefficients if spec["calibration"] else None)
    tokens = torch.arange(12, device=device).reshape(2, 6)
    for _ in range(2):
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _tiny_decoder(device: str) -> "Decoder":
    from harness.config.base import validate
    from harness.config.model_schema import ModelSpec
    from harness.models.decoder import Decoder

    spec = {
        "family": "decoder",
        "vocab_size": 17,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
        "feed_forward": {"kind": "swiglu", "intermediate_size": 16},
    }
    return Decoder(validate(ModelSpec, spec, "check"), vocab_size=17).to(device)
