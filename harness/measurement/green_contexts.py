"""CUDA green contexts: kernels confined to some multiprocessors (SMs), with no change to the GPU.

Drivers hand SMs out in groups, on Hopper of eight, so that a context may have another number than
was asked for (CUDA driver API, "Green Contexts"). Torch does not say which; the driver does.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.cuda.green_contexts import GreenContext

Budget = Callable[[], AbstractContextManager[None]]

# `cuda.h`: CU_DEV_RESOURCE_TYPE_SM, and where the union of `CUdevResource` begins. More bytes than
# the structure has are lent to the driver, because it grew with CUDA 13.
SM_RESOURCE, UNION_OFFSET, RESOURCE_BYTES = 1, 96, 1024


def green_budgets(counts: Sequence[int], total: int, device: torch.device) -> dict[int, Budget]:
    """Return what confines kernels to some SMs, by their number as the driver gives it; and all.

    Args:
        counts: Wanted numbers of SMs; the driver rounds them to its groups.
        total: SMs of the device.
        device: A CUDA device.

    Raises:
        RuntimeError: If torch or the driver has no green contexts, or the driver is not understood.
        OSError: If there is no driver library.
    """
    # A green context needs the primary one, which the first tensor makes.
    torch.zeros(1, device=device)
    found = current_multiprocessors()
    if found != total:
        raise RuntimeError(f"the driver says that a whole GPU of {total} SMs has {found}")
    budgets: dict[int, Budget] = {total: nullcontext}
    index = torch.cuda.current_device() if device.index is None else device.index
    for count in counts:
        budget = partial(_confined, GreenContext.create(num_sms=count, device_id=index))
        with budget():
            budgets.setdefault(current_multiprocessors(), budget)
    return budgets


@contextmanager
def _confined(context: Any) -> Iterator[None]:
    context.set_context()
    try:
        yield
    finally:
        context.pop_context()


def current_multiprocessors() -> int:
    """Return the SMs of this thread's CUDA context: ``cuCtxGetDevResource``.

    Raises:
        OSError: If there is no driver library.
        RuntimeError: If the driver does not know the question or refuses it.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    if not hasattr(driver, "cuCtxGetDevResource"):
        raise RuntimeError("the driver is older than CUDA 12.4 and has no green contexts")
    context = ctypes.c_void_p()
    resource = ctypes.create_string_buffer(RESOURCE_BYTES)
    status = driver.cuCtxGetCurrent(ctypes.byref(context))
    status = status or driver.cuCtxGetDevResource(context, resource, SM_RESOURCE)
    if status:
        raise RuntimeError(f"the driver does not tell the SMs of a context: CUDA error {status}")
    return ctypes.c_uint.from_buffer(resource, UNION_OFFSET).value
