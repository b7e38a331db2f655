"""Multi-token prediction: modules that each predict one token further than the one before.

DeepSeek-V3 (arXiv 2412.19437, section 2.2). Module k at position i joins the state of depth k - 1
with the embedding of token i + k, passes both through one block, and predicts token i + k + 1 by
the output head of the main model:

    h'_i^k = M_k [RMSNorm(h_i^(k-1)); RMSNorm(Emb(t_(i+k)))]    (eq. 21)
    h^k_(1:T-k) = TRM_k(h'^k_(1:T-k))                           (eq. 22)
    P^k_(i+k+1) = OutHead(h_i^k)                                (eq. 23)

The report leaves open where the norms before the head belong and in which order M_k finds its
halves. Both follow what the released weights are run with (`deepseek_mtp.py` of vLLM,
`deepseek_nextn.py` of SGLang): h^0 is the main model's state after its final norm, every module has
a norm of its own before the shared head, h^k is the state after that norm, and the columns of M_k
for the embedding come first.

Shape suffixes: B batch, T positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from harness.config.decoder_schema import DecoderSpec
from harness.models.linear import Linear
from harness.models.rotary import rotary_angles
from harness.models.token_loss import IGNORED, token_loss


class PredictionModule(nn.Module):
    """One depth: norms of state and embedding, projection, block and norm.

    In the released weights ``state_norm`` is ``hnorm``, ``embedding_norm`` is ``enorm``,
    ``projection`` is ``eh_proj`` and ``norm`` is ``shared_head.norm``.
    """

    def __init__(self, spec: DecoderSpec, block: nn.Module) -> None:
        super().__init__()
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.rotary_dim, self.rope_theta = spec.rotary_dim, spec.rope_theta
        self.state_norm = nn.RMSNorm(width, eps=eps)
        self.embedding_norm = nn.RMSNorm(width, eps=eps)
        self.projection = Linear(2 * width, width, fp8=spec.linear)
        self.block = block
        self.norm = nn.RMSNorm(width, eps=eps)

    def forward(
        self,
        state_BTD: Tensor,
        embedded_BTD: Tensor,
        layer: dict[str, Tensor] | None = None,
        start: int = 0,
        visible_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Return the states of this depth, which the output head reads (B x T x D).

        Args:
            state_BTD: States of the depth before; at first what the main model's head reads.
            embedded_BTD: For position i the embedding of token i + k.
            layer: This module's tensors of a cache, of which the positions before ``start`` are
                read; takes in the new ones.
            start: Position of the first state.
            visible_B1TT: Which positions each of them may read, if that is not all earlier ones.
        """
        joined = torch.cat((self.embedding_norm(embedded_BTD), self.state_norm(state_BTD)), dim=-1)
        rotation = rotary_angles(
            start, joined.shape[1], self.rotary_dim, self.rope_theta, joined.device
        )
        # As in the main model, the residual stream is not in autocast's type.
        x_BTD = self.projection(joined).to(joined.dtype)
        return self.norm(self.block(x_BTD, rotation, layer, start, visible_B1TT))


class PredictionModules(nn.ModuleList):
    """The modules of all depths, the first predicts one token after the main model's.

    They serve training and drafting; the main model's logits do not depend on them.
    """

    def __init__(self, spec: DecoderSpec, blocks: Iterable[nn.Module]) -> None:
        assert spec.prediction is not None
        super().__init__(PredictionModule(spec, block) for block in blocks)
        self.options = spec.prediction

    def states(
        self, features_BTD: Tensor, embedded_BTD: Tensor, visible_B1TT: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the states of depth 1, 2, ... (B x (T - k) x D).

        Args:
            features_BTD: What the main model's output head reads.
            embedded_BTD: Embeddings of the main model's tokens.
            visible_B1TT: Which positions each of them may read, if that is not all earlier ones.
        """
        state_BTD = features_BTD
        for depth, module in enumerate(self, 1):
            if visible_B1TT is not None:
                visible_B1TT = visible_B1TT[..., :-1, :-1]
            state_BTD = module(
                state_BTD[:, :-1], embedded_BTD[:, depth:], visible_B1TT=visible_B1TT
            )
            yield state_BTD

    def loss(
        self,
        features_BTD: Tensor,
        embedded_BTD: Tensor,
        targets_BT: Tensor,
        head: nn.Module,
        progress: float,
        visible_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Return lambda / D times the sum of the modules' cross-entropies in nats (eq. 24, 25).

        As in eq. 24 all depths divide by the number of targets of the main model, of which depth k
        misses the first k in every sequence.

        Args:
            features_BTD: What the main model's output head reads.
            embedded_BTD: Embeddings of the main model's tokens.
            targets_BT: The token after each; -100 is ignored.
            head: The output head that all depths share.
            progress: Share of the training steps taken so far.
            visible_B1TT: Which positions each of them may read, if that is not all earlier ones.
        """
        states = self.states(features_BTD, embedded_BTD, visible_B1TT)
        total = torch.stack([
            token_loss(state_BTD, head, targets_BT[:, depth:], reduction="sum")
            for depth, state_BTD in enumerate(states, 1)
        ]).sum()  # fmt: skip
        return self.loss_weight(progress) / len(self) * total / (targets_BT != IGNORED).sum()

    def loss_weight(self, progress: float) -> float:
        """Return lambda after the share ``progress`` of the training steps."""
        late = self.options.late_loss_weight
        if late is None or progress < self.options.late_from:
            return self.options.loss_weight
        return late
