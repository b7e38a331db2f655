"""Single bits of stored floating-point words: their names, and how one is flipped.

A word holds, from its highest bit, ``sign``, ``exponent_7`` down to ``exponent_0`` (the higher, the
larger: 2^(2^i) times) and ``mantissa_1``, ``mantissa_2`` and so on, of weight 2^-i. A bfloat16 word
is the upper half of a float32 word, so names mean the same in both.
"""

import torch
from torch import Tensor

EXPONENT_BITS = 8
MANTISSA_BITS = {torch.float32: 23, torch.bfloat16: 7}
_WORD = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def bit_names(dtype: torch.dtype) -> list[str]:
    """Return the names of all bits of a word, the highest first.

    Raises:
        ValueError: If the type is neither float32 nor bfloat16.
    """
    if dtype not in MANTISSA_BITS:
        raise ValueError(f"found {dtype}, expected float32 or bfloat16")
    exponent = [f"exponent_{index}" for index in reversed(range(EXPONENT_BITS))]
    return ["sign", *exponent, *(f"mantissa_{i}" for i in range(1, MANTISSA_BITS[dtype] + 1))]


def flip_bit_(values: Tensor, index: int, bit: str) -> None:
    """Flip one bit of one value in place, as a fault of the memory would: autograd sees nothing.

    Args:
        values: float32 or bfloat16, of any shape and strides.
        index: Of the value, in the order of ``flatten``.
        bit: Of ``bit_names``.

    Raises:
        ValueError: If the type has no such bit.
    """
    names = bit_names(values.dtype)
    if bit not in names:
        raise ValueError(f"bit: found '{bit}', expected one of {names[0]} to {names[-1]} for "
                         f"{values.dtype}")  # fmt: skip
    words = values.data.view(_WORD[values.dtype])
    place = torch.unravel_index(torch.tensor(index), values.shape)
    # The highest bit alone is the smallest negative integer of the word.
    mask = -(1 << (len(names) - 1)) if bit == "sign" else 1 << (len(names) - 1 - names.index(bit))
    words[place] ^= mask
