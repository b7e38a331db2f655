"""Operations that scales by groups add to a matrix product which the tensor cores do not apply.

arXiv 2505.09343, section 3.1: partial sums over ``group`` products move to other registers, where
they are multiplied by the scales of both factors and added to the result.
"""

OPERATIONS_OF_MULTIPLY_ADD = 2


def scaling_operations(inner: int, group: int, columns_per_scale: int) -> float:
    """Return operations of scaling per element of the output.

    For every group a multiply-add to the result, and the product of both scales, which the columns
    that share a scale of the second factor share too.

    Args:
        inner: Products that are summed.
        group: Products that share scales.
        columns_per_scale: Columns of the second factor that share a scale.
    """
    groups = -(-inner // group)
    return groups * (OPERATIONS_OF_MULTIPLY_ADD + 1 / columns_per_scale)


def scaling_share(inner: int, group: int, columns_per_scale: int) -> float:
    """Return operations of scaling over those of the product, ``2 * inner`` per element."""
    product = OPERATIONS_OF_MULTIPLY_ADD * inner
    return scaling_operations(inner, group, columns_per_scale) / product


def scaling_time_share(share: float, rate_ratio: float, *, overlapped: bool) -> float:
    """Return the time that scaling adds, over that of the product alone.

    Args:
        share: Operations of scaling over those of the product.
        rate_ratio: Operations per second of the tensor cores over those of what scales.
        overlapped: Whether both work at the same time.
    """
    return max(0.0, share * rate_ratio - 1) if overlapped else share * rate_ratio
