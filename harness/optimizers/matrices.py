"""How the dimensions of a parameter make matrices.

Two dimensions are a matrix. Three are a batch of matrices (count x rows x columns), such as the
experts of a mixture. Four and more are a convolution kernel, one matrix of shape (dimension 0,
rest). Muon's reference implementation (github.com/KellerJordan/Muon) draws the same line between
three and four; Dion (github.com/microsoft/dion) takes both for batches unless told to flatten both,
and torch.optim.Muon takes neither. The kernel of a Conv1d has three dimensions too, and nothing
tells it from a batch: it has to go to another optimizer.
"""

from torch import Tensor


def is_batch(tensor: Tensor) -> bool:
    """Return whether a parameter is a batch of matrices."""
    return tensor.ndim == 3


def as_matrices(tensor: Tensor) -> Tensor:
    """Return a parameter, or what has its shape, as rows x columns, or count x rows x columns.

    A view where the memory layout allows it.
    """
    return tensor if is_batch(tensor) else tensor.flatten(1)


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return what is one matrix each: views of the matrices of a batch, or ``tensor`` itself."""
    return tensor.unbind() if is_batch(tensor) else (tensor,)


def named_matrices(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return the matrices of a parameter by name: ``name``, or ``name[0]``, ``name[1]``, ..."""
    if not is_batch(tensor):
        return {name: as_matrices(tensor)}
    return {f"{name}[{place}]": matrix for place, matrix in enumerate(parts(tensor))}
