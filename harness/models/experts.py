"""Feed-forward experts, each computed for the tokens that chose it and for no others.

Every assignment of a token to an expert becomes a row. Rows are ordered by expert, so that each
expert has a slice of them, and afterwards the rows of a token are summed.

Shape suffixes: N tokens, D hidden size, E experts, K experts of a token, A = N x K assignments, F
width of an expert, C rows of an expert in a batch of equally many, R rows (A or E x C).
"""

from collections.abc import Sequence
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
# Rows that are filled up at most, over those that are needed, for one product of all experts.
LARGEST_FILL = 0.25


class Weights(NamedTuple):
    """The matrices of all experts, as in ``FeedForward``."""

    gate_EFD: Tensor
    up_EFD: Tensor
    down_EDF: Tensor


@dataclass(frozen=True)
class Dispatch:
    """Where the rows of the tokens are.

    Attributes:
        order_R: The assignment, counted along N x K, of each row; N x K for rows that fill up.
        rows_NK: The row of each assignment.
        ends_E: The row after the last one of each expert, int32; dropped assignments come last.
    """

    order_R: Tensor
    rows_NK: Tensor
    ends_E: Tensor

    @property
    def tokens_R(self) -> Tensor:
        """The token of each row; any for rows that fill up."""
        return _tokens(self.order_R, self.rows_NK)


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
    if fp8 is None and runs_grouped(x_ND, weights):
        y_RD = grouped(_Spread.apply(x_ND, plan), weights, plan.ends_E)
    else:
        ends = plan.ends_E.tolist()
        rows = fill_up(ends, plan.rows_NK.numel()) if fp8 is None else None
        if rows is not None:
            plan = filled(plan, rows)
            y_RD = batched(_Spread.apply(x_ND, plan), weights)
        else:
            y_RD = segmented(_Spread.apply(x_ND, plan), weights, ends, fp8)
    return _Collect.apply(y_RD, weights_NK.masked_fill(experts_NK == n_experts, 0), plan)


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


def fill_up(ends: Sequence[int], assignments: int) -> int | None:
    """Return to how many rows each expert is filled up for one product of all; None for none.

    Small products leave the threads of a CPU idle and other GPUs than Hopper waiting for launches;
    one thread does best without rows that nobody needs.

    Args:
        ends: Of ``Dispatch``.
        assignments: A.
    """
    rows = max(end - start for start, end in pairwise([0, *ends]))
    alike = rows * len(ends) <= (1 + LARGEST_FILL) * assignments
    dropped = ends[-1] < assignments
    return rows if alike and not dropped and torch.get_num_threads() > 1 else None


def filled(plan: Dispatch, rows: int) -> Dispatch:
    """Return ``plan`` with ``rows`` rows for every expert.

    Args:
        plan: Of ``dispatch``, nothing dropped.
        rows: C.
    """
    experts, assignments = len(plan.ends_E), len(plan.order_R)
    starts_E = F.pad(plan.ends_E[:-1], (1, 0)).long()
    loads_E = plan.ends_E - starts_E
    first_E = torch.arange(experts, device=starts_E.device) * rows
    # How far the rows of each expert move.
    moved_A = (first_E - starts_E).repeat_interleave(loads_E, output_size=assignments)
    places_A = torch.arange(assignments, device=starts_E.device) + moved_A
    order_R = plan.order_R.new_full((experts * rows,), assignments)
    order_R[places_A] = plan.order_R
    return Dispatch(order_R, places_A[plan.rows_NK], (first_E + rows).int())


def batched(x_RD: Tensor, weights: Weights) -> Tensor:
    """Return each expert's outputs (R x D) for as many rows as every other's, in one product."""
    x_ECD = x_RD.unflatten(0, (len(weights.gate_EFD), -1))
    gate_ECF, up_ECF = _Products.apply(x_ECD, weights.gate_EFD, weights.up_EFD)
    (y_ECD,) = _Products.apply(F.silu(gate_ECF) * up_ECF, weights.down_EDF)
    return y_ECD.flatten(0, 1)


def segmented(x_AD: Tensor, weights: Weights, ends: Sequence[int], fp8: Fp8 | None) -> Tensor:
    """Return each expert's outputs (A x D) for its rows, one expert after the other.

    Dropped rows are zero.
    """
    bounds = [0, *ends, len(x_AD)]
    *segments, dropped_AD = x_AD.split([end - start for start, end in pairwise(bounds)])
    # Indexing a weight for each expert would make as many full-sized gradients.
    experts = zip(segments, *(weight.unbind() for weight in weights), strict=True)
    outputs = [
        project(F.silu(project(x, gate, fp8)) * project(x, up, fp8), down, fp8)
        for x, gate, up, down in experts
        if len(x)
    ]
    return torch.cat([*outputs, torch.zeros_like(dropped_AD, dtype=outputs[0].dtype)])


def _tokens(order_R: Tensor, rows_NK: Tensor) -> Tensor:
    tokens, choices = rows_NK.shape
    return (order_R // choices).clamp_max(tokens - 1)


class _Products(torch.autograd.Function):
    """Products of each expert's rows (E x C x D) with its matrices (E x F x D) of any number.

    The gradients of the matrices come in their own layout, which ``@`` would copy them into, and
    those of the rows are summed by the products.
    """

    @staticmethod
    def forward(ctx: Any, x_ECD: Tensor, *weights_EFD: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_ECD, *weights_EFD)
        return tuple(torch.bmm(x_ECD, weight_EFD.mT) for weight_EFD in weights_EFD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients_ECF: Tensor) -> tuple[Tensor, ...]:
        x_ECD, *weights_EFD = ctx.saved_tensors
        of_x_ECD = torch.bmm(gradients_ECF[0], weights_EFD[0])
        for gradient_ECF, weight_EFD in zip(gradients_ECF[1:], weights_EFD[1:], strict=True):
            of_x_ECD.baddbmm_(gradient_ECF, weight_EFD)
        return of_x_ECD, *(torch.bmm(gradient.mT, x_ECD) for gradient in gradients_ECF)


class _Spread(torch.autograd.Function):
    """Each assignment's token; the gradient sums the rows of a token without atomic additions."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, plan: Dispatch) -> Tensor:
        ctx.save_for_backward(plan.rows_NK)
        return x_ND.index_select(0, plan.tokens_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_RD: Tensor) -> tuple[Tensor, None]:
        (rows_NK,) = ctx.saved_tensors
        return F.embedding_bag(rows_NK, gradient_RD, mode="sum"), None


class _Collect(torch.autograd.Function):
    """The weighted sum of each token's rows.

    A bag of embeddings is just this sum: it gathers, weighs and adds in one pass, in float32.
    """

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, weights_NK: Tensor, plan: Dispatch) -> Tensor:
        ctx.save_for_backward(y_RD, weights_NK, plan.order_R, plan.rows_NK)
        return F.embedding_bag(
            plan.rows_NK, y_RD, mode="sum", per_sample_weights=weights_NK.to(y_RD.dtype)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        y_RD, weights_NK, order_R, rows_NK = ctx.saved_tensors
        gradient_RD = gradient_ND.index_select(0, _tokens(order_R, rows_NK))
        along_R = (gradient_RD * y_RD).sum(dim=-1, dtype=weights_NK.dtype)
        # Rows that fill up weigh nothing.
        weights_R = F.pad(weights_NK.flatten(), (0, 1))[order_R].to(y_RD.dtype)
        return gradient_RD.mul_(weights_R.unsqueeze(-1)), along_R[rows_NK], None
