"""Muon and ROOT against torch, float64 singular values and a trajectory worked out by hand."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.numerics.orthogonalization import (
    MUON,
    SCHEDULES,
    orthogonalize,
    schedule,
)
from harness.optimizers import OrthogonalizedMomentum, orthogonalized_momentum
from harness.optimizers.outliers import clip_, percentile_threshold

SHAPES = [(8, 8), (6, 15), (15, 6), (1, 9), (9, 1)]


def parameters(seed: int, shapes=SHAPES, dtype=torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes
    ]


def gradients(targets: list, step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for target in targets:
        target.grad = torch.randn(target.shape, generator=generator).to(target.dtype)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon_follows_torch_step_by_step(scale, nesterov):
    ours, theirs = parameters(0), parameters(0)
    common = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    # torch's momentum is an average.
    mine = OrthogonalizedMomentum(
        ours, momentum_form="average", learning_rate_scale=scale, **common
    )
    reference = torch.optim.Muon(theirs, adjust_lr_fn=scale, **common)
    for step in range(8):
        gradients(ours, step)
        gradients(theirs, step)
        mine.step()
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            # bfloat16 iterations in another order of operations: 8 bits of mantissa.
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.002)


def exact_trajectory(
    weight, gradients_, *, lr, decay, momentum, triple, scale,
    form="sum", nesterov=True, percentile=None,
):  # fmt: skip
    """Muon and ROOT written out in float64 NumPy from their descriptions."""
    buffer = np.zeros_like(weight)
    for gradient in gradients_:
        if form == "sum":
            buffer = momentum * buffer + gradient
            mixed = gradient + momentum * buffer if nesterov else buffer
        else:
            buffer = momentum * buffer + (1 - momentum) * gradient
            mixed = (1 - momentum) * gradient + momentum * buffer if nesterov else buffer
        if percentile is not None:
            ordered = np.sort(np.abs(mixed).ravel())
            position = percentile * (ordered.size - 1)
            below = int(np.floor(position))
            above = min(below + 1, ordered.size - 1)
            eps = ordered[below] + (position - below) * (ordered[above] - ordered[below]) + 1e-9
            outliers = np.sign(mixed) * np.maximum(np.abs(mixed) - eps, 0)
            mixed = mixed - outliers
        x = mixed.T if mixed.shape[0] > mixed.shape[1] else mixed
        x = x / (np.linalg.norm(x) + 1e-7)
        a, b, c = triple
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        update = x.T if mixed.shape[0] > mixed.shape[1] else x
        weight = weight * (1 - lr * decay)
        weight = weight - lr * scale * update
    return weight


# The forms of the algorithm: what the class is told, and what the description says.
FORMS = {
    "ROOT, released": (
        {"polynomial": "adanewton", "outlier_percentile": 0.9, "weight_decay": 0.1},
        {"percentile": 0.9, "decay": 0.1, "scale": "rms"},
    ),
    "ROOT, published": (
        {"polynomial": "adanewton", "outlier_percentile": 0.9, "weight_decay": 0.0,
         "nesterov": False, "learning_rate_scale": "none"},
        {"percentile": 0.9, "decay": 0.0, "scale": "none", "nesterov": False},
    ),
    "Muon, Moonlight": ({"weight_decay": 0.1}, {"decay": 0.1, "scale": "rms"}),
    "Muon, Jordan": (
        {"weight_decay": 0.01, "momentum_form": "average", "learning_rate_scale": "original"},
        {"decay": 0.01, "scale": "original", "form": "average"},
    ),
}  # fmt: skip
SCALES = {
    "rms": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "none": lambda rows, columns: 1.0,
}


@pytest.mark.parametrize("shape", [(12, 12), (7, 20), (20, 7)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_follows_its_description(form, shape):
    arguments, description = FORMS[form]
    triple = (2.9, -3.8, 1.86) if "polynomial" in arguments else MUON
    if triple != MUON:
        arguments = arguments | {"coefficients": {(min(shape), max(shape)): triple}}
    [weight] = parameters(1, [shape], torch.float64)
    start = weight.detach().numpy().copy()
    generator = np.random.default_rng(5)
    drawn = [generator.standard_t(2, shape) for _ in range(6)]
    optimizer = OrthogonalizedMomentum([weight], lr=0.01, momentum=0.95, dtype=None, **arguments)
    for gradient in drawn:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    scale = SCALES[description["scale"]](*shape)
    expected = exact_trajectory(start, drawn, lr=0.01, momentum=0.95, triple=triple,
                                **description | {"scale": scale})  # fmt: skip
    # The threshold is taken in float32, as in the released code.
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 20), (20, 7)])
@pytest.mark.parametrize("form", FORMS)
def test_every_matrix_of_a_batch_follows_the_description_alone(form, shape):
    arguments, description = FORMS[form]
    triple = (2.9, -3.8, 1.86) if "polynomial" in arguments else MUON
    if triple != MUON:
        # By the shape of a matrix, not of the batch.
        arguments = arguments | {"coefficients": {(7, 20): triple}}
    [experts] = parameters(1, [(3, *shape)], torch.float64)
    start = experts.detach().numpy().copy()
    drawn = np.random.default_rng(5).standard_t(2, (6, 3, *shape))
    # Scales of their own, one expert that no token reaches at some steps, and one at the first.
    drawn *= np.array([1.0, 100.0, 0.01])[:, None, None]
    drawn[[0, 4], 1], drawn[2, 2] = 0, 0
    optimizer = OrthogonalizedMomentum([experts], lr=0.01, momentum=0.95, dtype=None, **arguments)
    for gradient in drawn:
        experts.grad = torch.from_numpy(gradient)
        optimizer.step()
    scale = SCALES[description["scale"]](*shape)
    for place, matrix in enumerate(start):
        expected = exact_trajectory(matrix, drawn[:, place], lr=0.01, momentum=0.95, triple=triple,
                                    **description | {"scale": scale})  # fmt: skip
        np.testing.assert_allclose(experts[place].detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("products", ["bfloat16", "float32", None])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 6, 15), (4, 9, 5), (2, 256, 260)])
def test_a_batch_steps_bit_for_bit_as_its_matrices_would(shape, form, products, weights):
    [experts, dense] = parameters(2, [shape, shape[1:]], weights)
    separate = [torch.nn.Parameter(one.detach().clone()) for one in (*experts, dense)]
    arguments = {"lr": 0.05, "dtype": products} | FORMS[form][0]
    if "polynomial" in arguments:
        arguments["coefficients"] = {tuple(sorted(shape[1:])): (2.9, -3.8, 1.86)}
    optimizers = [OrthogonalizedMomentum(given, **arguments)
                  for given in ([experts, dense], separate)]  # fmt: skip
    for step in range(2):
        gradients([experts, dense], step)
        for one, gradient in zip(separate, (*experts.grad, dense.grad), strict=True):
            one.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(separate, (*experts, dense), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("products", ["bfloat16", "float32", None])
@pytest.mark.parametrize("shape", [(3, 6, 15), (3, 256, 260)])
def test_a_zero_matrix_in_a_batch_only_decays(shape, products):
    [experts] = parameters(3, [shape])
    before = experts.detach().clone()
    experts.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    experts.grad[1] = 0
    OrthogonalizedMomentum(
        [experts], lr=0.1, weight_decay=0.5, outlier_percentile=0.9, dtype=products
    ).step()
    torch.testing.assert_close(experts[1].detach(), before[1] * 0.95, rtol=1e-6, atol=0)
    moved = (experts - before * 0.95).detach()
    # Muon's polynomial leaves singular values between 0.6 and 1.2.
    size = 0.1 * 0.2 * max(shape) ** 0.5 * min(shape[1:]) ** 0.5
    for place in (0, 2):
        assert 0.6 * size < moved[place].norm() < 1.2 * size


def test_experts_of_all_layers_are_orthogonalised_together(monkeypatch):
    layers = parameters(4, [(3, 6, 15), (3, 6, 15), (2, 6, 15), (6, 15)])
    gradients(layers, 0)
    counts = []
    orthogonalize = orthogonalized_momentum.orthogonalize_bfloat16

    def counting(batch, *arguments):
        counts.append(len(batch))
        return orthogonalize(batch, *arguments)

    monkeypatch.setattr(orthogonalized_momentum, "orthogonalize_bfloat16", counting)
    OrthogonalizedMomentum(layers).step()
    assert counts == [3 + 3 + 2 + 1]


def test_a_step_on_a_batch_is_seen_by_autograd():
    """Weights that a backward pass still needs must not change unnoticed."""
    [experts] = parameters(5, [(3, 4, 6)])
    loss = experts.square().sum()
    experts.grad = torch.ones_like(experts)
    OrthogonalizedMomentum([experts]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("shape", [(5, 5), (4, 11), (11, 4), (1, 6)])
def test_iterations_map_singular_values_and_keep_the_vectors(name, shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    triples = schedule(name, 5)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    mapped = values / values.norm()
    for a, b, c in triples:
        mapped = a * mapped + b * mapped**3 + c * mapped**5
    expected = left @ torch.diag(mapped) @ right
    found = orthogonalize(matrix[None], triples, eps=0.0)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_many_classic_steps_give_the_polar_factor():
    matrix = torch.randn(3, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, schedule("quintic", 30))
    torch.testing.assert_close(found, left @ right, rtol=1e-8, atol=1e-8)


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_without_a_filter_the_scale_of_gradients_does_not_matter(seed, factor):
    updates = []
    for scale in (1.0, factor):
        [weight] = parameters(seed, [(5, 7)], torch.float64)
        optimizer = OrthogonalizedMomentum([weight], lr=0.1, dtype=None, eps=0.0)
        generator = torch.Generator().manual_seed(seed)
        weight.grad = scale * torch.randn(5, 7, dtype=torch.float64, generator=generator)
        optimizer.step()
        updates.append(weight.detach().clone())
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-7, atol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.05, 0.99), st.integers(1, 6), st.integers(1, 40))
def test_percentile_equals_torch_quantile(seed, percentile, rows, columns):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    before = matrix.clone()
    expected = matrix.abs().flatten().quantile(percentile)
    torch.testing.assert_close(percentile_threshold(matrix, percentile), expected + 1e-9)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("percentile", [0.001, 0.5, 0.9, 0.99, 0.99999])
@pytest.mark.parametrize("kind", ["normal", "cauchy", "equal", "few", "columns", "ascending"])
def test_percentile_of_large_matrices_equals_numpy_quantile(kind, percentile):
    """Where a sample narrows the search, and where it misleads."""
    rows, columns = 300, 512
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=generator)
    if kind == "cauchy":
        matrix = torch.empty(rows, columns).cauchy_(generator=generator)
    elif kind == "equal":
        matrix = torch.ones(rows, columns)
    elif kind == "few":
        matrix = (matrix * 2).round()
    elif kind == "columns":
        matrix = matrix * torch.logspace(0, 3, columns)
    elif kind == "ascending":
        matrix = torch.arange(rows * columns).float().view(rows, columns)
    # torch.quantile finds its place among so many values in float32, a few places off.
    expected = np.quantile(matrix.abs().double().numpy(), percentile) + 1e-9
    assert percentile_threshold(matrix, percentile).item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 3))
def test_what_soft_thresholding_leaves_is_the_clamp(seed, eps):
    matrix = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    outliers = matrix.sign() * (matrix.abs() - eps).clamp_min(0)
    kept = matrix - outliers
    clip_(matrix, eps)
    torch.testing.assert_close(matrix, kept)


def test_convolution_kernels_are_taken_as_matrices():
    kernel = torch.nn.Parameter(torch.randn(6, 3, 2, 2))
    flat = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(6, 3, 2, 2)
    kernel.grad, flat.grad = gradient, gradient.flatten(1)
    for parameter in (kernel, flat):
        OrthogonalizedMomentum([parameter], lr=0.1).step()
    assert torch.equal(kernel.detach().flatten(1), flat.detach())


def test_missing_and_zero_gradients():
    idle, zero = parameters(4, [(4, 4), (4, 4)])
    before = idle.detach().clone(), zero.detach().clone()
    zero.grad = torch.zeros(4, 4)
    OrthogonalizedMomentum([idle, zero], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(idle, before[0])
    torch.testing.assert_close(zero, before[1] * 0.95)


def test_a_saved_state_goes_on_exactly():
    ours, again = (parameters(6, [*SHAPES, (3, 6, 15)]) for _ in range(2))
    first = OrthogonalizedMomentum(ours, lr=0.05, outlier_percentile=0.8)
    for step in range(3):
        gradients(ours, step)
        first.step()
    second = OrthogonalizedMomentum(again, lr=0.05, outlier_percentile=0.8)
    second.load_state_dict(deepcopy(first.state_dict()))
    for one, other in zip(ours, again, strict=True):
        other.data.copy_(one.data)
    for optimizer, targets in ((first, ours), (second, again)):
        gradients(targets, 9)
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


def test_copies_and_pickles_keep_the_coefficients():
    [weight] = parameters(7, [(4, 6)])
    arguments = {"polynomial": "adanewton", "coefficients": {(4, 6): (2.9, -3.8, 1.86)}}
    optimizer = OrthogonalizedMomentum([weight], lr=0.05, **arguments)
    again = pickle.loads(pickle.dumps(optimizer))
    [copied] = again.param_groups[0]["params"]
    for target, stepper in ((weight, optimizer), (copied, again)):
        gradients([target], 0)
        stepper.step()
    assert torch.equal(weight, copied)


def test_groups_have_options_of_their_own_and_schedules_move_their_rates():
    first, second = parameters(8, [(4, 6), (4, 6)])
    before = second.detach().clone()
    optimizer = OrthogonalizedMomentum(
        [{"params": [first]}, {"params": [second], "lr": 0.5, "weight_decay": 0.2}], lr=0.1
    )
    schedule_ = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.25]
    second.grad = torch.zeros(4, 6)
    optimizer.step()
    schedule_.step()
    torch.testing.assert_close(second.detach(), before * (1 - 0.25 * 0.2))


def test_a_closure_is_evaluated_with_gradients():
    [weight] = parameters(9, [(3, 5)])
    optimizer = OrthogonalizedMomentum([weight], lr=torch.tensor(0.1))

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]


def test_the_order_of_parameters_and_their_company_do_not_matter():
    alone = parameters(10, [(6, 9)])
    crowd = parameters(10, [(6, 9), (9, 6), (6, 9), (3, 3)])
    for targets in (alone, crowd):
        optimizer = OrthogonalizedMomentum(targets, lr=0.1, outlier_percentile=0.9, dtype=None)
        generator = torch.Generator().manual_seed(3)
        for target in targets:
            target.grad = torch.randn(target.shape, generator=generator)
        optimizer.step()
    torch.testing.assert_close(alone[0], crowd[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"polynomial": "moun"}, "polynomial: found 'moun'.*'muon'"),
        ({"polynomial": "adanewton"}, "coefficients go with polynomial 'adanewton'"),
        ({"steps": 0}, "steps: found 0, expected at least 1"),
        ({"outlier_percentile": 90}, "outlier_percentile: found 90"),
        ({"outlier_threshold": 0.0}, "outlier_threshold: found 0.0, expected more than 0"),
        ({"outlier_threshold": 1.0, "outlier_percentile": 0.9}, "exclude each other"),
        ({"lr": -1.0}, "lr: found -1.0"),
        ({"dtype": "float8"}, "dtype: found 'float8'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalizedMomentum(parameters(0), **arguments)


def test_a_bad_group_is_refused_and_leaves_the_optimizer_as_it_was():
    optimizer = OrthogonalizedMomentum(parameters(0))
    with pytest.raises(ValueError, match="momentum_form: found 'ema'"):
        optimizer.add_param_group({"params": parameters(1), "momentum_form": "ema"})
    assert len(optimizer.param_groups) == 1


def test_what_is_not_a_real_dense_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(5,\), expected at least two"):
        OrthogonalizedMomentum([torch.nn.Parameter(torch.zeros(5))])
    with pytest.raises(ValueError, match="expected real numbers"):
        OrthogonalizedMomentum([torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))])
    [weight] = parameters(0, [(4, 6)])
    with pytest.raises(ValueError, match=r"none for matrices of 4 x 6"):
        OrthogonalizedMomentum([weight], polynomial="adanewton", coefficients={(1, 2): MUON})
    [experts] = parameters(0, [(3, 6, 4)])
    with pytest.raises(ValueError, match=r"none for matrices of 4 x 6"):
        OrthogonalizedMomentum([experts], polynomial="adanewton", coefficients={(3, 24): MUON})
    weight.grad = torch.ones(4, 6).to_sparse()
    with pytest.raises(ValueError, match="sparse gradient"):
        OrthogonalizedMomentum([weight]).step()
