"""Multi-token prediction against DeepSeek-V3's equations 21-25, position by position in float64."""

import math

import pytest
import torch

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.models import build_model

VOCABULARY, EPS, THETA = 23, 1e-5, 100.0
HEADS, GROUPS, WIDTH = 4, 2, 6


def build(depth: int | None, seed: int = 0, **prediction):
    spec = {
        "family": "decoder",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "attention": {"kind": "gqa", "num_attention_heads": HEADS, "num_key_value_heads": GROUPS,
                      "head_dim": WIDTH},
        "feed_forward": {"kind": "swiglu", "intermediate_size": 20},
        "rope_theta": THETA,
        "rms_norm_eps": EPS,
        "prediction": None if depth is None else {"depth": depth, **prediction},
    }  # fmt: skip
    torch.manual_seed(seed)
    return build_model(validate(ModelSpec, spec, "test"), vocab_size=VOCABULARY).double()


def spread(model):
    """Draw all weights, norms included, wide enough for every part to matter."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.4)
    return model


def draw_tokens(*shape: int, seed: int = 1):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def norm(x, weight):
    return x / (x.square().mean() + EPS).sqrt() * weight


def rotated(x, position):
    """Turn channels c and c + WIDTH / 2 of a head by position * THETA^(-2c / WIDTH)."""
    half = WIDTH // 2
    angle = torch.tensor(
        [position * THETA ** (-2 * c / WIDTH) for c in range(half)], dtype=torch.float64
    )
    a, b = x[:half], x[half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))


def block(xs, weights):
    """The residual block on a list of positions, one query and one key at a time."""
    inputs = [norm(x, weights["attention_norm.weight"]) for x in xs]
    queries, keys, values = (
        [(weights[f"attention.{name}.weight"] @ x).view(-1, WIDTH) for x in inputs]
        for name in ("query", "key", "value")
    )
    outputs = []
    for i, x in enumerate(xs):
        read = []
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            query = rotated(queries[i][head], i)
            scores = [query @ rotated(keys[j][group], j) / math.sqrt(WIDTH) for j in range(i + 1)]
            shares = torch.stack(scores).softmax(0)
            read.append(sum(shares[j] * values[j][group] for j in range(i + 1)))
        x = x + weights["attention.output.weight"] @ torch.cat(read)
        inner = norm(x, weights["feed_forward_norm.weight"])
        gate, up = (weights[f"feed_forward.{name}.weight"] @ inner for name in ("gate", "up"))
        outputs.append(x + weights["feed_forward.down.weight"] @ (gate * gate.sigmoid() * up))
    return outputs


def below(weights, prefix):
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def reference_objective(weights, rows, target_rows, depth, weight):
    """Main loss + eq. 25, the sums over positions of eq. 24 written out."""
    main, further, counted = 0.0, 0.0, sum(t != -100 for row in target_rows for t in row)
    for tokens, targets in zip(rows, target_rows, strict=True):
        embedded = [weights["embedding.weight"][token] for token in tokens]
        states = embedded
        for layer in range(2):
            states = block(states, below(weights, f"blocks.{layer}."))
        states = [norm(x, weights["norm.weight"]) for x in states]
        for k in range(depth + 1):
            if k > 0:
                module = below(weights, f"prediction.{k - 1}.")
                joined = [
                    module["projection.weight"] @ torch.cat((
                        norm(embedded[i + k], module["embedding_norm.weight"]),
                        norm(states[i], module["state_norm.weight"]),
                    ))
                    for i in range(len(tokens) - k)
                ]  # fmt: skip
                states = block(joined, below(module, "block."))
                states = [norm(x, module["norm.weight"]) for x in states]
            for i, x in enumerate(states):
                if targets[i + k] != -100:
                    loss = -(weights["head.weight"] @ x).log_softmax(0)[targets[i + k]] / counted
                    main, further = (main, further + loss) if k else (main + loss, further)
    return main + weight / depth * further, main


@pytest.mark.parametrize("depth", [1, 2])
def test_objective_and_gradients_equal_the_equations(depth):
    model = spread(build(depth, loss_weight=0.7))
    tokens, targets = draw_tokens(2, 6), draw_tokens(2, 6, seed=2)
    targets[0, 3] = targets[1, 5] = -100
    objective, loss = model.objective(tokens, targets, progress=0.5)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected, expected_loss = reference_objective(
        weights, tokens.tolist(), targets.tolist(), depth, 0.7
    )
    # The rotary angles and the cross-entropy of the model are computed in float32.
    torch.testing.assert_close(objective.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
    objective.backward()
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("changed", range(7))
def test_module_k_at_position_i_sees_the_tokens_up_to_i_plus_k(changed):
    model, tokens = spread(build(3)), draw_tokens(1, 7)
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % VOCABULARY

    def states(sequence):
        return list(model.prediction.states(model.features(sequence), model.embedding(sequence)))

    for k, (before, after) in enumerate(zip(states(tokens), states(other), strict=True), 1):
        assert before.shape == (1, 7 - k, 16)
        moved = (before != after).any(dim=-1)[0]
        assert moved.tolist() == [i + k >= changed for i in range(7 - k)]


def test_modules_read_their_own_document_only():
    model = spread(build(2))
    tokens, targets = draw_tokens(1, 10), draw_tokens(1, 10, seed=2)
    documents = torch.tensor([[0] * 4 + [1] * 6])
    features, embedded = model.features(tokens), model.embedding(tokens)
    visible = (documents[:, :, None] == documents[:, None, :]).tril().unsqueeze(1)
    states = list(model.prediction.states(features, embedded, visible))
    # What comes before the second document reaches no state of it.
    changed = features.clone()
    changed[:, :4] += 1.0
    for depth, (before, after) in enumerate(
        zip(states, model.prediction.states(changed, embedded, visible), strict=True), 1
    ):
        assert torch.equal(before[:, 4:], after[:, 4:])
        assert not torch.allclose(before[:, : 4 - depth], after[:, : 4 - depth])
    plain, _ = model.objective(tokens, targets, 0.0)
    masked, _ = model.objective(tokens, targets, 0.0, documents)
    assert not torch.allclose(plain, masked)


def test_dropping_the_modules_leaves_the_main_model_as_it_is():
    trained, plain = spread(build(2)), build(None)
    tokens = draw_tokens(2, 9)
    state = trained.state_dict()
    assert any(name.startswith("prediction.") for name in state)
    plain.load_state_dict({n: w for n, w in state.items() if not n.startswith("prediction.")})
    assert torch.equal(plain(tokens), trained(tokens))


def test_a_seed_draws_the_same_main_model_with_and_without_prediction():
    plain, predicting = build(None, seed=3).state_dict(), build(2, seed=3).state_dict()
    for name, weight in plain.items():
        assert torch.equal(weight, predicting[name])


def test_matrices_of_the_modules_start_like_those_of_the_main_model():
    for name, parameter in build(2, seed=4).prediction.named_parameters():
        if parameter.ndim == 2:
            # 0.02, within four standard errors of a standard deviation.
            assert abs(parameter.std().item() / 0.02 - 1) < 4 / math.sqrt(2 * parameter.numel())
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), name


@pytest.mark.parametrize(
    ("late", "progress", "expected"),
    [(0.1, 0.0, 0.3), (0.1, 0.67, 0.3), (0.1, 0.68, 0.1), (0.0, 1.0, 0.0), (None, 1.0, 0.3)],
)
def test_the_weight_of_the_loss_falls_late_in_training(late, progress, expected):
    """DeepSeek-V3 trained 10 of its 14.8T tokens at 0.3, the rest at 0.1."""
    model = build(1, loss_weight=0.3, late_loss_weight=late, late_from=10 / 14.8)
    assert model.prediction.loss_weight(progress) == expected
    tokens, targets = draw_tokens(2, 5), draw_tokens(2, 5, seed=2)
    objective, loss = model.objective(tokens, targets, progress)
    added = expected * unweighted_loss(model, tokens, targets)
    torch.testing.assert_close(objective - loss, added, rtol=1e-5, atol=1e-6)


def unweighted_loss(model, tokens, targets):
    [state] = model.prediction.states(model.features(tokens), model.embedding(tokens))
    chosen = model.head(state).log_softmax(-1).gather(-1, targets[:, 1:, None])
    return (-chosen.sum() / targets.numel()).float()
