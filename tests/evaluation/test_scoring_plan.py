"""Laws of the plans by which requests are scored, whatever is asked."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluation.completion import similar_lengths
from harness.evaluation.scoring_plan import LEAST_SHARE, make_request, plan_passes

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8)
# Few tokens and common starts, so that there is much to share.
questions = st.lists(
    st.tuples(st.sampled_from([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0], [2] * 9]), tokens, tokens),
    min_size=1,
    max_size=12,
)


@given(questions=questions, batch_size=st.integers(1, 6), window=st.integers(8, 20))
def test_every_request_is_answered_once_from_its_own_inputs(questions, batch_size, window):
    requests = [make_request([*start, *a], b, window) for start, a, b in questions]
    batches = plan_passes(requests, batch_size)
    answered = [index for batch in batches for row in batch.rows for index in row.requests]
    assert sorted(answered) == list(range(len(requests)))
    for batch in batches:
        assert 1 <= len(batch.rows) <= batch_size
        for row in batch.rows:
            for index in row.requests:
                request = requests[index]
                assert row.inputs[: len(request.inputs)] == request.inputs
                # What is asked about is not in the shared start.
                assert request.first >= batch.shared


@given(questions=questions, batch_size=st.integers(1, 6))
def test_what_is_shared_is_equal_and_never_costs_more(questions, batch_size):
    requests = [make_request([*start, *a], b, 99) for start, a, b in questions]
    batches = plan_passes(requests, batch_size)
    for batch in batches:
        for group in batch.groups if batch.shared else ():
            assert len({row.inputs[: batch.shared] for row in group}) == 1
    alone = sorted({request.inputs for request in requests}, key=len, reverse=True)
    parts = [alone[i : i + batch_size] for i in range(0, len(alone), batch_size)]
    assert sum(b.positions for b in batches) <= sum(len(p) * len(p[0]) for p in parts)


def test_choices_of_one_token_take_one_row():
    requests = [make_request([1, 2, 3], [answer], 99) for answer in range(5)]
    [batch] = plan_passes(requests, 8)
    assert [row.inputs for row in batch.rows] == [(1, 2, 3)]


def test_an_answer_that_begins_another_needs_no_row():
    requests = [make_request([1, 2], answer, 99) for answer in ([3], [3, 4], [3, 4, 5])]
    [batch] = plan_passes(requests, 8)
    assert [row.inputs for row in batch.rows] == [(1, 2, 3, 4)]


def test_a_long_context_is_computed_once():
    context = list(range(100, 150))
    requests = [make_request(context, [answer, 7, 8, 9], 99) for answer in range(4)]
    [batch] = plan_passes(requests, 8)
    # Its last token predicts the answers and stays with them.
    assert batch.shared == 49
    assert batch.positions == 49 + 4 * 4


def test_what_is_asked_about_is_not_in_the_shared_start():
    start = list(range(12))
    longer = make_request(start, [20, 21, 22], 99)
    # Eleven equal tokens, but its second half is what is asked about.
    shorter = make_request(start[:8], [*start[8:], 30, 31], 99)
    [batch] = plan_passes([longer, shorter], 8)
    assert batch.shared == shorter.first == 7


def test_a_short_context_is_not_shared():
    requests = [make_request([1, 2], [answer] * 20, 99) for answer in range(4)]
    [batch] = plan_passes(requests, 8)
    assert LEAST_SHARE > 1 / 21
    assert batch.shared == 0


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], []), ([1], [1] * 6)])
def test_what_cannot_be_asked_is_refused(context, continuation):
    with pytest.raises(ValueError, match=r"expected one token or more each .* at most 5"):
        make_request(context, continuation, 5)


@given(
    lengths=st.lists(st.integers(1, 60), max_size=7),
    new_tokens=st.integers(1, 20),
    size=st.integers(1, 4),
)
def test_batches_of_similar_lengths_hold_every_row_once(lengths, new_tokens, size):
    parts = list(similar_lengths(lengths, new_tokens, size))
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    for part in parts:
        found = [lengths[index] for index in part]
        assert 1 <= len(part) <= size
        assert found == sorted(found, reverse=True)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7), new_tokens=st.integers(1, 20))
def test_no_other_parting_takes_fewer_passes(lengths, new_tokens):
    ordered = sorted(lengths)

    def passes(cuts):
        edges = [0, *cuts, len(ordered)]
        return sum(ordered[b - 1] - ordered[a] + new_tokens for a, b in pairwise(edges))

    places = range(1, len(ordered))
    best = min(passes(c) for n in range(len(ordered)) for c in combinations(places, n))
    parts = similar_lengths(lengths, new_tokens, len(lengths))
    assert sum(lengths[p[0]] - lengths[p[-1]] + new_tokens for p in parts) == best
