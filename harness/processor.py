"""What a process that trains or measures on a CPU sets once."""

import ctypes

import torch

# Options of glibc's mallopt(3) and the largest values that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER_TRIM, _LARGEST_BLOCK = 2**31 - 1, 32 * 2**20


def set_up_processor(threads: int) -> None:
    """Compute on ``threads`` CPU threads, in memory that stays with the process."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make the C library keep what tensors free for the next ones.

    glibc hands large blocks back to the system, which clears their pages one by one when the next
    step asks for them again. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
