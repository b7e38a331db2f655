"""Which documents the windows of a token stream hold.

Shape suffixes: B batch, T positions of a window.
"""

from torch import Tensor


def document_ids(tokens_BT: Tensor, end_of_text: int) -> Tensor:
    """Return which document of its window each token belongs to, counted from 0 (B x T, int64).

    A query may attend to the keys before it that have the same number; the token that ends a text
    is the last one of its document.
    """
    ends_BT = tokens_BT == end_of_text
    return ends_BT.cumsum(-1) - ends_BT.long()
