"""Orthogonalised momentum with two plug-in parts: a polynomial and an outlier filter.

Muon (Jordan's and Moonlight's form), ROOT (published and released form) and every ablation between
them are settings of this one class.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from harness.errors import closest
from harness.numerics.orthogonalization import SCHEDULES, Triple, orthogonalize, schedule
from harness.optimizers.outliers import clip_threshold, percentile_thresholds

MomentumForm = Literal["sum", "average"]
LearningRateScale = Literal["none", "original", "match_rms_adamw"]
ADANEWTON = "adanewton"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class OrthogonalizedMomentum(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of each weight matrix.

    Per matrix and step: momentum, Nesterov mix, outlier filter, orthogonalisation, decoupled weight
    decay with the unscaled learning rate, update. Tensors of more than two dimensions are taken as
    matrices of shape (dimension 0, rest). Matrices of equal shape are orthogonalised as one batch.

    References:
        - Muon: Keller Jordan, github.com/KellerJordan/Muon; Moonlight, arXiv 2502.16982.
        - ROOT: arXiv 2511.20626 and its released code, huawei-noah/noah-research, ROOT.

    Args:
        params: Parameters with at least two dimensions, or groups of them.
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
        dtype: Type in which to orthogonalise; None for the parameter's own.
        eps: Added to the norm by which a matrix is divided.

    Raises:
        ValueError: For an argument out of range, a parameter with fewer than two dimensions or a
            matrix shape without coefficients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
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
        _at_least(lr=lr, weight_decay=weight_decay, momentum=momentum, eps=eps)
        _one_of("momentum_form", momentum_form, get_args(MomentumForm))
        _one_of("learning_rate_scale", learning_rate_scale, get_args(LearningRateScale))
        _one_of("polynomial", polynomial, (*SCHEDULES, ADANEWTON))
        if dtype is not None:
            _one_of("dtype", dtype, tuple(DTYPES))
        if steps < 1:
            raise ValueError(f"steps: found {steps}, expected at least 1")
        if outlier_percentile is not None and not 0 < outlier_percentile < 1:
            raise ValueError(f"outlier_percentile: found {outlier_percentile}, expected 0 to 1")
        if outlier_percentile is not None and outlier_threshold is not None:
            raise ValueError("outlier_threshold and outlier_percentile exclude each other")
        if (polynomial == ADANEWTON) != (coefficients is not None):
            raise ValueError("coefficients go with polynomial 'adanewton', and only with it")
        self._coefficients = dict(coefficients or {})
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "momentum_form": momentum_form,
            "polynomial": polynomial,
            "steps": steps,
            "outlier_threshold": outlier_threshold,
            "outlier_percentile": outlier_percentile,
            "learning_rate_scale": learning_rate_scale,
            "dtype": dtype,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, each with at least two dimensions."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim < 2:
                raise ValueError(
                    f"found a parameter of shape {tuple(parameter.shape)}, expected at least two "
                    "dimensions; give vectors to another optimizer"
                )

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
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        directions = self._directions(group, parameters)
        by_shape: dict[Any, list[int]] = defaultdict(list)
        for index, parameter in enumerate(parameters):
            by_shape[parameter.shape, parameter.dtype, parameter.device].append(index)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for indices in by_shape.values():
            batch = torch.stack([directions[i].flatten(1) for i in indices])
            update = self._orthogonalize(group, batch)
            scale = _scale(group["learning_rate_scale"], *batch.shape[-2:])
            targets = [parameters[i] for i in indices]
            updates = [one.view_as(targets[0]).to(targets[0].dtype) for one in update]
            torch._foreach_add_(targets, updates, alpha=-group["lr"] * scale)

    def _directions(self, group: dict[str, Any], parameters: list[Tensor]) -> Sequence[Tensor]:
        """Update the momentum buffers and return what is to be orthogonalised."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        momentum = group["momentum"]
        if group["momentum_form"] == "average":
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            return (
                torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
            )
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        if group["nesterov"]:
            return torch._foreach_add(gradients, buffers, alpha=momentum)
        return buffers

    def _orthogonalize(self, group: dict[str, Any], batch: Tensor) -> Tensor:
        if group["outlier_percentile"] is not None:
            batch = clip_threshold(batch, percentile_thresholds(batch, group["outlier_percentile"]))
        elif group["outlier_threshold"] is not None:
            batch = clip_threshold(batch, group["outlier_threshold"])
        if group["dtype"] is not None:
            batch = batch.to(DTYPES[group["dtype"]])
        return orthogonalize(batch, self._triples(group, batch.shape), group["eps"])

    def _triples(self, group: dict[str, Any], shape: torch.Size) -> Sequence[Triple]:
        if group["polynomial"] != ADANEWTON:
            return schedule(group["polynomial"], group["steps"])
        key = (min(shape[-2:]), max(shape[-2:]))
        if key not in self._coefficients:
            raise ValueError(
                f"coefficients: none for matrices of {key[0]} x {key[1]}, expected a calibration "
                f"that covers them (found {sorted(self._coefficients)})"
            )
        return (self._coefficients[key],) * group["steps"]


def _scale(kind: LearningRateScale, rows: int, columns: int) -> float:
    if kind == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns)) if kind == "match_rms_adamw" else 1.0


def _at_least(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}: found {value}, expected at least 0")


def _one_of(name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"{name}: found '{value}'{closest(value, valid)}")
