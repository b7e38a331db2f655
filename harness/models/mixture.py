"""A mixture of experts (DeepSeekMoE, Dai et al., arXiv 2401.06066, as in DeepSeek-V2 and V3).

Shape suffixes: B sequences, T positions, N = B x T tokens, D hidden size, E routed experts, K
experts of a token, F width of an expert.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts
from harness.models.experts import Weights, apply_experts
from harness.models.feed_forward import FeedForward
from harness.models.routing import balance_loss, route, within_capacity


class Mixture(nn.Module):
    """Shared experts, which see every token, and routed ones, which see those that choose them.

    Attributes:
        router: Centroids of the routed experts (E x D); its products stay in float32.
        routing_bias: Added to the scores for the choice of experts, never to their weights (E).
        gate: Matrices of the routed experts (E x F x D), as in ``FeedForward``.
        up: Likewise (E x F x D).
        down: Likewise (E x D x F).
        shared: The shared experts as one ``FeedForward`` of their joint width, or None.
        balance_loss: Of the last forward pass in training, a part of what training minimises;
            otherwise zero.
        fp8: How the products of the experts are quantised.
    """

    routing_bias: Tensor

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        assert isinstance(spec.feed_forward, MixtureOfExperts)
        self.moe = moe = spec.feed_forward
        self.fp8 = spec.linear
        experts, hidden, width = moe.n_routed_experts, spec.hidden_size, moe.moe_intermediate_size
        self.router = nn.Linear(hidden, experts, bias=False)
        self.register_buffer("routing_bias", torch.zeros(experts))
        self.gate = nn.Parameter(torch.empty(experts, width, hidden))
        self.up = nn.Parameter(torch.empty(experts, width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        for parameter in (self.router.weight, self.gate, self.up, self.down):
            nn.init.normal_(parameter, std=spec.initializer_range)
        shared = moe.n_shared_experts * width
        self.shared = FeedForward(hidden, shared, spec.linear) if shared else None
        self.load = Load(experts)
        self.balance_loss = torch.zeros(())

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the transformed states (B x T x D).

        In training it also sets ``balance_loss``, adds to the load and, if there is a capacity,
        drops what exceeds it; nothing is dropped in evaluation (DeepSeek-V2, section 3.1.2).
        """
        x_ND = x_BTD.flatten(0, 1)
        routing = route(self._logits(x_ND), self.routing_bias, self.moe)
        experts_NK = routing.experts_NK
        self.balance_loss = routing.scores_NE.new_zeros(())
        if self.training:
            self.balance_loss = balance_loss(routing, len(x_BTD), self.moe)
            if self.moe.capacity_factor is not None:
                experts_NK = within_capacity(routing, self.moe)
            self.load.add(routing.experts_NK, experts_NK)
        weights = Weights(self.gate, self.up, self.down)
        y_ND = apply_experts(x_ND, experts_NK, routing.weights_NK, weights, self.fp8)
        y_BTD = y_ND.view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)

    def after_step(self, progress: float) -> None:
        """Move the bias towards an even load and start counting the next step.

        The bias of overloaded experts falls and that of underloaded ones rises by
        ``bias_update_rate`` (Wang et al., arXiv 2408.15664). To be called once after
        each optimizer step, whose forward passes all count.

        Args:
            progress: Share of the training steps taken so far.
        """
        balance = self.moe.balance
        if balance.bias_update_rate and progress < balance.bias_update_until:
            self.routing_bias += balance.bias_update_rate * self.load.deficit_sign()
        self.load.close_step()

    def statistics(self) -> dict[str, float]:
        """Return means over the optimizer steps since the last call; nothing if there were none.

        ``max_violation`` is the largest load over the mean load, minus one (MaxVio, arXiv
        2408.15664), ``load_entropy`` the entropy of the load, 1 for an even one,
        ``dead_experts`` the share of experts without a token, and with a capacity
        ``dropped_tokens`` the share of assignments that were dropped. Waits for the device.
        """
        values = self.load.take_statistics()
        if self.moe.capacity_factor is None:
            values.pop("dropped_tokens", None)
        return values

    def _logits(self, x_ND: Tensor) -> Tensor:
        """Return the products with the centroids (N x E), in float32 whatever autocast says."""
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.to(dtype), self.router.weight.to(dtype))

    def __getstate__(self) -> dict[str, Any]:
        # The graph of the last pass can be neither copied nor saved.
        return self.__dict__ | {"balance_loss": self.balance_loss.detach()}


class Load(nn.Module):
    """Tokens of each expert, counted on the device over an optimizer step."""

    tokens: Tensor
    dropped: Tensor
    sums: Tensor

    NAMES = ("max_violation", "load_entropy", "dead_experts", "dropped_tokens")

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.steps = 0
        for name, value in (
            ("tokens", torch.zeros(experts, dtype=torch.int64)),
            ("dropped", torch.zeros((), dtype=torch.int64)),
            ("sums", torch.zeros(len(self.NAMES), dtype=torch.float64)),
        ):
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def add(self, chosen_NK: Tensor, kept_NK: Tensor) -> None:
        """Count the experts that tokens chose, and those that had no room, which are E."""
        experts_A = chosen_NK.flatten()
        self.tokens.scatter_add_(0, experts_A, torch.ones_like(experts_A))
        if kept_NK is not chosen_NK:
            self.dropped += (kept_NK == len(self.tokens)).sum()

    def deficit_sign(self) -> Tensor:
        """Return for each expert whether it got fewer (1) or more (-1) tokens than the mean."""
        return torch.sign(self.tokens.sum() - len(self.tokens) * self.tokens)

    @torch.no_grad()
    def close_step(self) -> None:
        """Add the measures of this step to the sums and start over."""
        share_E = self.tokens.double() / self.tokens.sum()
        experts = len(share_E)
        measures = (
            experts * share_E.max() - 1,
            # log E minus the divergence from an even load, over log E.
            1 - torch.xlogy(share_E, experts * share_E).sum() / (math.log(experts) or 1.0),
            (self.tokens == 0).double().mean(),
            self.dropped / self.tokens.sum(),
        )
        self.sums += torch.stack([measure.to(self.sums.dtype) for measure in measures])
        self.steps += 1
        self.tokens.zero_()
        self.dropped.zero_()

    def take_statistics(self) -> dict[str, float]:
        """Return the mean measures of the steps since the last call, and forget them."""
        if not self.steps:
            return {}
        means = (self.sums / self.steps).tolist()
        self.sums.zero_()
        self.steps = 0
        return dict(zip(self.NAMES, means, strict=True))
