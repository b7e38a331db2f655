"""Orthogonalised momentum with two plug-in parts: a polynomial and an outlier filter.

Muon (Jordan's and Moonlight's form), ROOT (published and released form) and every ablation between
them are settings of this one class.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from harness.errors import closest
from harness.numerics.mixed_precision import SMALLEST_SIDE, orthogonalize_bfloat16
from harness.numerics.orthogonalization import SCHEDULES, Triple, orthogonalize, schedule
from harness.optimizers.matrices import as_matrices, parts
from harness.optimizers.outliers import clip_, percentile_threshold

MomentumForm = Literal["sum", "average"]
LearningRateScale = Literal["none", "original", "match_rms_adamw"]
ADANEWTON = "adanewton"
# Entries of matrices that one batch on a CPU has, or more if that is less than one for each core.
CACHED = 2**20
# Entries that keep a GPU busy. It works on a quarter of what has one shape at a time, but on no
# fewer than these: an iteration takes several times the memory of its matrices.
BUSY = 2**25
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class OrthogonalizedMomentum(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of each weight matrix.

    Per matrix and step: momentum, Nesterov mix, outlier filter, orthogonalisation, decoupled weight
    decay with the unscaled learning rate, update. A tensor of three dimensions is a batch of
    matrices (count x rows x columns), each of which steps as if it were a parameter of its own:
    clipped at its own percentile, calibrated and scaled by its own shape. One of four or more is a
    convolution kernel, a single matrix of shape (dimension 0, rest). The kernel of a Conv1d would
    be taken for a batch: give it to another optimizer. Matrices of equal shape are worked on
    together, so a step needs memory for a few such batches beside the momentum; on a CPU, of a few
    matrices.

    References:
        - Muon: Keller Jordan, github.com/KellerJordan/Muon; Moonlight, arXiv 2502.16982.
        - ROOT: arXiv 2511.20626 and its released code, huawei-noah/noah-research, ROOT.

    Args:
        params: Parameters with at least two dimensions, or groups of them. Groups may override
            every argument below.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Decay of the momentum buffer.
        nesterov: Whether the update mixes the gradient with the new buffer.
        momentum_form: ``sum`` (buf = momentum * buf + g; ROOT, Moonlight) or ``average``
            (buf = momentum * buf + (1 - momentum) * g; Jordan).
        polynomial: A name of ``SCHEDULES``, or ``adanewton``: one triple per matrix shape.
        steps: Newton-Schulz steps.
        coefficients: For ``adanewton``: triples by (smaller, larger) side of the matrix.
        outlier_threshold: Clip entries of the matrix at this absolute value.
        outlier_percentile: Clip entries at this quantile of absolute values, per matrix and step.
        learning_rate_scale: Factor by shape: ``none``; ``original``, sqrt(max(1, rows / columns));
            ``match_rms_adamw``, 0.2 sqrt(max(rows, columns)).
        dtype: Type of the products that orthogonalise; None for the parameter's own. Products in
            ``bfloat16`` keep the update within 1e-2 of the exact polynomial (1.5e-2 where all
            singular values are the same or a few entries hold most of the matrix).
        eps: Added to the norm by which a matrix is divided.

    Raises:
        ValueError: For an argument out of range, a parameter that is not a real matrix or a matrix
            shape without coefficients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        momentum_form: MomentumForm = "sum",
        polynomial: str = "muon",
        steps: int = 5,
        coefficients: Mapping[tuple[int, int], Triple] | None = None,
        outlier_threshold: float | None = None,
        outlier_percentile: float | None = None,
        learning_rate_scale: LearningRateScale = "match_rms_adamw",
        dtype: str | None = "bfloat16",
        eps: float = 1e-7,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_form": momentum_form,
            "polynomial": polynomial,
            "steps": steps,
            # In the groups, so that a saved state goes on with the coefficients it was made with.
            "coefficients": None if coefficients is None else dict(coefficients),
            "outlier_threshold": outlier_threshold,
            "outlier_percentile": outlier_percentile,
            "learning_rate_scale": learning_rate_scale,
            "dtype": dtype,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, each a real tensor with at least two dimensions.

        Raises:
            ValueError: If a parameter or an option of the group is not as the class says.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_options(group)
            for parameter in group["params"]:
                _check_parameter(group, parameter)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch declares two overloads
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Evaluates the model again and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            batches: dict[Any, list[_Matrix]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    for matrix in self._matrices(parameter, parameter.grad):
                        weight = matrix.weight
                        batches[weight.shape, weight.dtype, weight.device].append(matrix)
            for matrices in batches.values():
                for some in _chunks(matrices):
                    _step_together(group, some)
        return loss

    @torch.no_grad()
    def direction(self, parameter: Tensor) -> Tensor:
        """Return what the last step orthogonalised, before the outlier filter.

        Args:
            parameter: One of the optimizer's, with the gradient of that step still in place.

        Returns:
            A matrix (rows x columns), of a batch all of them (count x rows x columns).
        """
        [group] = [g for g in self.param_groups if any(p is parameter for p in g["params"])]
        buffer, gradient = self.state[parameter]["momentum_buffer"], parameter.grad
        assert gradient is not None, "the gradient of the last step was cleared"
        return as_matrices(_mixed(group, [gradient], [buffer])[0])

    def _matrices(self, parameter: Tensor, gradient: Tensor) -> Iterator["_Matrix"]:
        """Yield the matrices of a parameter, whose first step makes its momentum buffer."""
        if gradient.is_sparse:
            raise ValueError("found a sparse gradient, expected dense ones")
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(
                parameter, memory_format=torch.contiguous_format
            )
        tensors = (parameter, gradient, state["momentum_buffer"])
        for views in zip(*map(parts, tensors), strict=True):
            yield _Matrix(*views)


class _Matrix(NamedTuple):
    """What a step needs of one matrix: a whole parameter, or views of one in a batch."""

    weight: Tensor
    gradient: Tensor
    buffer: Tensor


def _step_together(group: Mapping[str, Any], matrices: list[_Matrix]) -> None:
    """Take the step of matrices of one shape."""
    weights, gradients, buffers = (list(views) for views in zip(*matrices, strict=True))
    if group["momentum_form"] == "average":
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
    else:
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
    directions = _mixed(group, gradients, buffers).flatten(2)
    rows, columns = directions.shape[1:]
    updates = _orthogonalized(group, directions)
    lr = float(group["lr"])
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
    scale = _scale(group["learning_rate_scale"], rows, columns)
    matching = [update.view_as(weights[0]).to(weights[0].dtype) for update in updates]
    torch._foreach_add_(weights, matching, alpha=-lr * scale)


def _mixed(group: Mapping[str, Any], gradients: list[Tensor], buffers: list[Tensor]) -> Tensor:
    """Return the batch that a step orthogonalises, given its gradients and new buffers."""
    if not group["nesterov"]:
        return torch.stack(buffers)
    batch = torch.stack(gradients)
    if group["momentum_form"] == "average":
        torch._foreach_lerp_(list(batch), buffers, group["momentum"])
    else:
        torch._foreach_add_(list(batch), buffers, alpha=group["momentum"])
    return batch


def _chunks(matrices: list[_Matrix]) -> Iterator[list[_Matrix]]:
    """Yield what is worked on together: on a CPU as much as its caches hold, on each core alike."""
    first = matrices[0].weight
    size = len(matrices)
    if first.device.type != "cpu":
        size = math.ceil(size / min(4, max(1, size * first.numel() // BUSY)))
    elif min(first.flatten(1).shape) >= SMALLEST_SIDE:
        cores = torch.get_num_threads()
        size = cores * math.ceil(CACHED / (cores * first.numel()))
    for start in range(0, len(matrices), size):
        yield matrices[start : start + size]


def _orthogonalized(group: Mapping[str, Any], batch: Tensor) -> Tensor:
    """Return the filtered and orthogonalised matrices of ``batch``, which may be overwritten."""
    triples = _triples(group, batch.shape[1:])
    if group["outlier_percentile"] is not None:
        for matrix in batch:
            clip_(matrix, percentile_threshold(matrix, group["outlier_percentile"]))
    elif group["outlier_threshold"] is not None:
        clip_(batch, group["outlier_threshold"])
    if group["dtype"] == "bfloat16":
        return orthogonalize_bfloat16(batch.float(), triples, group["eps"])
    if group["dtype"] is not None:
        batch = batch.to(DTYPES[group["dtype"]])
    return orthogonalize(batch, triples, group["eps"])


def _triples(group: Mapping[str, Any], shape: Sequence[int]) -> Sequence[Triple]:
    if group["polynomial"] != ADANEWTON:
        return schedule(group["polynomial"], group["steps"])
    key = (min(shape), max(shape))
    if key not in group["coefficients"]:
        raise ValueError(
            f"coefficients: none for matrices of {key[0]} x {key[1]}, expected a calibration "
            f"that covers them (found {sorted(group['coefficients'])})"
        )
    return (group["coefficients"][key],) * group["steps"]


def _scale(kind: LearningRateScale, rows: int, columns: int) -> float:
    if kind == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns)) if kind == "match_rms_adamw" else 1.0


def _check_options(group: Mapping[str, Any]) -> None:
    for name in ("lr", "weight_decay", "momentum", "eps"):
        if not group[name] >= 0:
            raise ValueError(f"{name}: found {group[name]}, expected at least 0")
    _one_of("momentum_form", group["momentum_form"], get_args(MomentumForm))
    _one_of("learning_rate_scale", group["learning_rate_scale"], get_args(LearningRateScale))
    _one_of("polynomial", group["polynomial"], (*SCHEDULES, ADANEWTON))
    if group["dtype"] is not None:
        _one_of("dtype", group["dtype"], tuple(DTYPES))
    if group["steps"] < 1:
        raise ValueError(f"steps: found {group['steps']}, expected at least 1")
    threshold, percentile = group["outlier_threshold"], group["outlier_percentile"]
    if percentile is not None and not 0 < percentile < 1:
        raise ValueError(f"outlier_percentile: found {percentile}, expected 0 to 1")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"outlier_threshold: found {threshold}, expected more than 0")
    if percentile is not None and threshold is not None:
        raise ValueError("outlier_threshold and outlier_percentile exclude each other")
    if (group["polynomial"] == ADANEWTON) != (group["coefficients"] is not None):
        raise ValueError("coefficients go with polynomial 'adanewton', and only with it")


def _check_parameter(group: Mapping[str, Any], parameter: Tensor) -> None:
    shape = tuple(parameter.shape)
    if parameter.ndim < 2:
        raise ValueError(
            f"found a parameter of shape {shape}, expected at least two dimensions; give vectors "
            "to another optimizer"
        )
    if not parameter.is_floating_point():
        raise ValueError(
            f"found a parameter of shape {shape} and type {parameter.dtype}, expected real numbers"
        )
    _triples(group, as_matrices(parameter).shape[-2:])


def _one_of(name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"{name}: found '{value}'{closest(value, valid)}")
