"""The job before all others: can this machine and configuration train at all?"""

from typing import Any

from harness.errors import UserError
from harness.jobs.context import Context
from harness.plan.job import Job
from harness.training.devices import leased_device


def check(job: Job, context: Context) -> dict[str, Any]:
    """Take two steps with every optimizer of the scale on a tiny model, on the scale's device.

    Raises:
        UserError: If the device is missing or an optimizer cannot be built or cannot step.
    """
    with leased_device(context.catalog.scale.device, context.device_key) as device:
        for item in job.work:
            name = f"{context.catalog.folder}/optimizers.yaml: {item.factors.optimizer}"
            try:
                _take_steps(item.spec, device)
            except UserError:
                raise
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else "no message"
                raise UserError(
                    f"{name}: cannot take a step: {type(error).__name__}: {reason}; expected "
                    "arguments that its class accepts"
                ) from error
    return {"checked": [item.factors.optimizer for item in job.work]}


def _take_steps(spec: dict[str, Any], device: str) -> None:
    import torch

    from harness.config.base import validate
    from harness.config.model_schema import ModelSpec
    from harness.models.decoder import Decoder
    from harness.optimizers import build_optimizer

    tiny = {
        "family": "decoder",
        "vocab_size": 17,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
        "feed_forward": {"kind": "swiglu", "intermediate_size": 16},
    }
    model = Decoder(validate(ModelSpec, tiny, "check"), vocab_size=17).to(device)
    shapes = {(min(p.shape), max(p.shape)) for p in model.parameters() if p.ndim == 2}
    # Any coefficients do: what is checked is that a step can be taken.
    coefficients = dict.fromkeys(shapes, (3.4445, -4.7750, 2.0315))
    optimizer = build_optimizer(spec, model, 1e-3, coefficients if spec["calibration"] else None)
    tokens = torch.arange(12, device=device).reshape(2, 6)
    for _ in range(2):
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
