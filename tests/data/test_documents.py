"""Documents in windows of tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.documents import document_ids

END = 3
WINDOWS = st.integers(1, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, END), min_size=length, max_size=length), min_size=1, max_size=3
    )
)


def by_loop(window: list[int]) -> list[int]:
    ids, document = [], 0
    for token in window:
        ids.append(document)
        document += token == END
    return ids


@given(WINDOWS)
def test_ids_are_those_of_a_loop(windows):
    ids_BT = document_ids(torch.tensor(windows), END)
    assert ids_BT.tolist() == [by_loop(window) for window in windows]
