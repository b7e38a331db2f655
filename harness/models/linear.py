"""Linear layers whose products run in the type of the run or in FP8."""

import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.decoder_schema import Fp8
from harness.models.fp8 import Fp8Product


class Linear(nn.Linear):
    """``nn.Linear`` with its products in FP8 where ``fp8`` says so."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, fp8: Fp8 | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.fp8 = fp8

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``."""
        product = project(input, self.weight, self.fp8)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def project(x: Tensor, weight: Tensor, fp8: Fp8 | None) -> Tensor:
    """Return ``x @ weight.T`` (... x out) of ``x`` (... x in) and ``weight`` (out x in).

    Args:
        x: Of any floating-point type.
        weight: A matrix, float32 in training.
        fp8: How both and the gradient are scaled and rounded; None to compute in the run's type.
    """
    # An expert without tokens has nothing to round.
    if fp8 is None or x.numel() == 0:
        return F.linear(x, weight)
    return Fp8Product.apply(x, weight, fp8)


def fp8_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers whose products run in FP8.

    They are the matrices of all modules that multiply by ``project`` and keep its recipe as their
    attribute ``fp8``: linear layers, and the stacked ones of experts.
    """
    return [
        name.removesuffix(".weight")
        for prefix, module in model.named_modules()
        if isinstance(getattr(module, "fp8", None), Fp8)
        for name, parameter in module.named_parameters(prefix, recurse=False)
        if parameter.ndim >= 2
    ]
