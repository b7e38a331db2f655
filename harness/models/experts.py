"""Feed-forward experts, each computed for the tokens that chose it and for no others.

Every assignment of a token to an expert becomes a row. Rows are ordered by expert, so that each
expert has a slice of them, and afterwards the rows of a token are summed.

Shape suffixes: N tokens, D hidden size, E experts, K experts of a token, A = N x K assignments, F
width of an expert.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.config.decoder_schema import Fp8
from harness.models.linear import project

# Rows of operands of grouped products start at multiples of this, as the tensor cores' loads do.
ALIGNMENT_BYTES = 16


class Weights(NamedTuple):
    """The matrices of all experts, as in ``FeedForward``."""

    gate_EFD: Tensor
    up_EFD: Tensor
    down_EDF: Tensor


@dataclass(frozen=True)
class Dispatch:
    """Where the rows of the tokens are.

    Attributes:
        order_A: The assignment, counted along N x K, of each row.
        rows_NK: The row of each assignment.
        ends_E: The row after the last one of each expert, int32; dropped assignments come last.
    """

    order_A: Tensor
    rows_NK: Tensor
    ends_E: Tensor


def dispatch(experts_NK: Tensor, n_experts: int) -> Dispatch:
    """Order assignments by expert.

    Args:
        experts_NK: The experts of each token; ``n_experts`` stands for none.
        n_experts: E.
    """
    experts_A, order_A = experts_NK.flatten().sort(stable=True)
    every_A = torch.arange(len(order_A), device=order_A.device)
    rows_A = torch.empty_like(order_A).scatter_(0, order_A, every_A)
    every_E = torch.arange(n_experts, device=order_A.device)
    ends_E = torch.searchsorted(experts_A, every_E, right=True, out_int32=True)
    return Dispatch(order_A, rows_A.view_as(experts_NK), ends_E)


def apply_experts(
    x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor, weights: Weights, fp8: Fp8 | None
) -> Tensor:
    """Return the weighted sum (N x D) of the outputs of each token's experts.

    Args:
        x_ND: The tokens.
        experts_NK: Their experts; E stands for none, which adds nothing.
        weights_NK: Factors of the outputs, applied in the type of the products.
        weights: Of the experts.
        fp8: How products are quantised; None to compute in the run's type.
    """
    kind = x_ND.device.type
    if fp8 is None and torch.is_autocast_enabled(kind):
        # Once, instead of in every product; grouped ones know nothing of autocast.
        dtype = torch.get_autocast_dtype(kind)
        x_ND, weights = x_ND.to(dtype), Weights(*(weight.to(dtype) for weight in weights))
    n_experts = len(weights.gate_EFD)
    plan = dispatch(experts_NK, n_experts)
    x_AD = _Spread.apply(x_ND, plan)
    if fp8 is None and runs_grouped(x_AD, weights):
        y_AD = grouped(x_AD, weights, plan.ends_E)
    else:
        y_AD = segmented(x_AD, weights, plan.ends_E, fp8)
    return _Collect.apply(y_AD, weights_NK.masked_fill(experts_NK == n_experts, 0), plan)


def runs_grouped(x_AD: Tensor, weights: Weights) -> bool:
    """Return whether one kernel can compute the products of all experts.

    On Hopper, in bfloat16, it reads the sizes of the groups on the device. Elsewhere torch loops
    over the groups on the host, and on Blackwell experts without tokens get wrong gradients
    (pytorch/pytorch#172439).
    """
    if x_AD.device.type != "cuda" or torch.version.cuda is None:
        return False
    hopper = torch.cuda.get_device_capability(x_AD.device)[0] == 9
    widths = weights.gate_EFD.shape[1:]
    aligned = all(width * x_AD.itemsize % ALIGNMENT_BYTES == 0 for width in widths)
    return hopper and aligned and x_AD.dtype == weights.gate_EFD.dtype == torch.bfloat16


def grouped(x_AD: Tensor, weights: Weights, ends_E: Tensor) -> Tensor:
    """Return each expert's outputs (A x D) for its rows, one kernel per product.

    Never waits for the device. Rows that no expert owns would be left uninitialised, in the
    gradient too: dropped ones go through the last expert, and their weight is zero.
    """
    ends_E = ends_E.clone()
    ends_E[-1] = len(x_AD)
    gate_AF = F.grouped_mm(x_AD, weights.gate_EFD.mT, offs=ends_E)
    up_AF = F.grouped_mm(x_AD, weights.up_EFD.mT, offs=ends_E)
    return F.grouped_mm(F.silu(gate_AF) * up_AF, weights.down_EDF.mT, offs=ends_E)


def segmented(x_AD: Tensor, weights: Weights, ends_E: Tensor, fp8: Fp8 | None) -> Tensor:
    """Return each expert's outputs (A x D) for its rows, one expert after the other.

    Waits for the device once, for the sizes of the segments. Dropped rows are zero.
    """
    ends = [0, *ends_E.tolist(), len(x_AD)]
    *segments, dropped_AD = x_AD.split([end - start for start, end in pairwise(ends)])
    # Indexing a weight for each expert would make as many full-sized gradients.
    experts = zip(segments, *(weight.unbind() for weight in weights), strict=True)
    outputs = [
        project(F.silu(project(x, gate, fp8)) * project(x, up, fp8), down, fp8)
        for x, gate, up, down in experts
        if len(x)
    ]
    return torch.cat([*outputs, torch.zeros_like(dropped_AD, dtype=outputs[0].dtype)])


class _Spread(torch.autograd.Function):
    """Each assignment's token; the gradient sums the rows of a token without atomic additions."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, plan: Dispatch) -> Tensor:
        ctx.save_for_backward(plan.rows_NK)
        return x_ND.index_select(0, plan.order_A // plan.rows_NK.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_AD: Tensor) -> tuple[Tensor, None]:
        (rows_NK,) = ctx.saved_tensors
        return F.embedding_bag(rows_NK, gradient_AD, mode="sum"), None


class _Collect(torch.autograd.Function):
    """The weighted sum of each token's rows.

    A bag of embeddings is just this sum: it gathers, weighs and adds in one pass, in float32.
    """

    @staticmethod
    def forward(ctx: Any, y_AD: Tensor, weights_NK: Tensor, plan: Dispatch) -> Tensor:
        ctx.save_for_backward(y_AD, weights_NK, plan.order_A, plan.rows_NK)
        return F.embedding_bag(
            plan.rows_NK, y_AD, mode="sum", per_sample_weights=weights_NK.to(y_AD.dtype)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        y_AD, weights_NK, order_A, rows_NK = ctx.saved_tensors
        gradient_AD = gradient_ND.index_select(0, order_A // weights_NK.shape[1])
        along_A = (gradient_AD * y_AD).sum(dim=-1, dtype=weights_NK.dtype)
        weights_A = weights_NK.flatten()[order_A].to(y_AD.dtype)
        return gradient_AD.mul_(weights_A.unsqueeze(-1)), along_A[rows_NK], None
