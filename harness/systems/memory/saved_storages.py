"""The storages that autograd saves in a forward pass, and what they are to the layers.

Kernels are those of a GPU, whatever the device: RMSNorm keeps its input and one float32 per row.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

# What a saved tensor is to the layer that made or reads it. Decides whether it can be computed
# again cheaply, and in how few bits it may be stored.
Role = Literal[
    "norm_output", "attention_input", "attention_output", "swiglu_input", "swiglu_output",
    "linear_input", "expert_output", "other",
]  # fmt: skip


@dataclass
class Storage:
    """A storage that autograd keeps.

    Attributes:
        module: Path of the module that saved it first.
        shape: Of the tensor that was saved.
        itemsize: Bytes of one of its values.
    """

    storage: torch.UntypedStorage
    module: str
    shape: torch.Size
    itemsize: int


def count(
    model: nn.Module, forward: Callable[[], object]
) -> tuple[dict[int, Storage], dict[int, Role]]:
    """Run ``forward`` and return the storages that autograd saved, and what they are.

    Args:
        model: Its parameters are left out, and its modules tell who saved a storage first.
        forward: A forward pass through ``model``; its result is kept until all is counted.
    """
    watch = _Watch(parameter.untyped_storage() for parameter in model.parameters())
    saved: dict[int, Storage] = {}
    path = [""]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in watch.parameters:
            found = Storage(storage, path[-1], tensor.shape, tensor.itemsize)
            saved.setdefault(id(storage), found)
        return tensor

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(
                lambda _module, _inputs, name=name: path.append(name)).remove)  # fmt: skip
            stack.callback(module.register_forward_hook(
                lambda _module, _inputs, _output: path.pop() and None).remove)  # fmt: skip
        stack.enter_context(watch)
        stack.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))
        kept = forward()
    del kept
    return saved, watch.roles


class _Watch(TorchFunctionMode):
    """Notes what functions read and return, and stands in for two that need a GPU or values.

    Attributes:
        parameters: Storages of parameters and of their copies, by identity.
        roles: Of other storages, by identity.
    """

    def __init__(self, parameters: Iterable[torch.UntypedStorage]) -> None:
        super().__init__()
        # An identity is that of a storage only as long as the storage lives.
        self.alive = list(parameters)
        self.parameters = {id(storage) for storage in self.alive}
        self.roles: dict[int, Role] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or what stands in for it."""
        kwargs = kwargs or {}
        if func is torch.searchsorted and kwargs.get("out_int32"):
            return _even_ends(*args)
        if func is F.rms_norm:
            result = _fused_norm(*args, **kwargs)
            self._name(result, "norm_output")
            return result
        result = func(*args, **kwargs)
        self._note(func, args, result)
        return result

    def _note(self, func: Any, args: Any, result: Any) -> None:
        if func is F.scaled_dot_product_attention:
            for tensor in args[:3]:
                self._name(tensor, "attention_input")
            self._name(result, "attention_output")
        elif func is F.silu:
            self._name(args[0], "swiglu_input")
            self._name(result, "swiglu_output")
        elif func in (torch.mul, torch.Tensor.mul, torch.Tensor.__mul__):
            self._product(args, result)
        elif func is F.linear:
            self._name(args[0], "linear_input")
        elif func in (torch.Tensor.to, torch.Tensor.float):
            self._copy(args[0], result)

    def _product(self, factors: Any, result: Tensor) -> None:
        """Follow SwiGLU through the product of its two halves."""
        tensors = [factor for factor in factors if isinstance(factor, Tensor)]
        if any(self._role(tensor) == "swiglu_output" for tensor in tensors):
            for tensor in tensors:
                self._name(tensor, "swiglu_input")
            self._name(result, "swiglu_output")

    def _copy(self, original: Tensor, result: Tensor) -> None:
        if id(original.untyped_storage()) in self.parameters:
            self.alive.append(result.untyped_storage())
            self.parameters.add(id(self.alive[-1]))
        elif self._role(original) == "norm_output":
            self._name(result, "norm_output")

    def _name(self, tensor: Tensor, role: Role) -> None:
        """Give a storage its role; the first one stays, unless it is only that of an input."""
        storage = tensor.untyped_storage()
        if self._role(tensor) in (None, "linear_input"):
            self.alive.append(storage)
            self.roles[id(storage)] = role

    def _role(self, tensor: Tensor) -> Role | None:
        return self.roles.get(id(tensor.untyped_storage()))


class _FusedNorm(torch.autograd.Function):
    """RMSNorm as CUDA's kernel keeps it: its input and one float32 per row."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None
    ) -> Tensor:
        rows = x.new_empty(x.shape[: -len(shape)], dtype=torch.float32)
        ctx.save_for_backward(x, weight, rows)
        return torch.empty_like(x)


def _fused_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return cast(Tensor, _FusedNorm.apply(x, shape, weight, eps))


def _even_ends(experts_A: Tensor, every_E: Tensor) -> Tensor:
    """Return where each expert's rows end if all have equally many: fake tensors have no values."""
    with unset_fake_temporarily():
        every = torch.arange(1, every_E.numel() + 1)
        return (every * experts_A.numel() // every_E.numel()).int()
