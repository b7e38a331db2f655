"""Which forward passes score a list of requests: no token is computed twice where that pays.

A request is a context and a continuation. Its inputs, all of its tokens but the last, are

* computed once for requests whose inputs begin alike to their end: the position that predicts
  " yes" also predicts " no", and a shorter answer is scored on the way through a longer one;
* split where rows part, if that pays: the tokens that the answers to one question share are
  computed once and cached, and only what differs is computed for each answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Rows are kept together if they share this much of each: a shorter common start saves less than
# padding the parts behind it to one length costs.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Request:
    """The inputs of the model and what it is asked about their ends.

    Attributes:
        inputs: Context and continuation but for the last token.
        targets: The continuation; target i is predicted at position ``first + i``.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def first(self) -> int:
        """Position that predicts the first target."""
        return len(self.inputs) - len(self.targets)


@dataclass(frozen=True)
class Row:
    """Inputs of the model, and the requests that they answer by their index."""

    inputs: tuple[int, ...]
    requests: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Rows that one pass computes, behind the starts that they share.

    Attributes:
        groups: Rows by the start that they share; in a batch with ``shared`` 0 any rows.
        shared: Length of the starts, the same in all groups.
    """

    groups: tuple[tuple[Row, ...], ...]
    shared: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, those of a group side by side."""
        return tuple(row for group in self.groups for row in group)

    @property
    def positions(self) -> int:
        """Positions that are computed, with padding."""
        longest = max(len(row.inputs) for row in self.rows)
        return self.shared * len(self.groups) + (longest - self.shared) * len(self.rows)


@dataclass(frozen=True)
class _Group:
    rows: tuple[Row, ...]
    shared: int


def make_request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
    """Return a request, cut from the left to ``max_length`` inputs as lm-eval's ``HFLM`` does.

    Raises:
        ValueError: If there is no context or no continuation, or the continuation alone is too
            long.
    """
    if not context or not 0 < len(continuation) <= max_length:
        raise ValueError(f"found a context of {len(context)} tokens and a continuation of "
                         f"{len(continuation)}, expected one token or more each and a "
                         f"continuation of at most {max_length}")  # fmt: skip
    tokens = (*context, *continuation)[-(max_length + 1) :]
    return Request(tokens[:-1], tuple(continuation))


def plan_passes(requests: Sequence[Request], batch_size: int) -> list[Batch]:
    """Return batches that answer every request once.

    Of two plans it is that with fewer positions: rows sorted by length, or starts computed once.

    Args:
        requests: What is asked.
        batch_size: Most rows of a batch.
    """
    rows = _rows(requests)
    plain = [Batch((tuple(part),), 0) for part in _sorted_parts(rows, batch_size)]
    groups = _groups(rows, requests, batch_size)
    alone = [group.rows[0] for group in groups if len(group.rows) == 1]
    shared = [Batch((tuple(part),), 0) for part in _sorted_parts(alone, batch_size)]
    shared += _shared(sorted((g for g in groups if len(g.rows) > 1), key=_by_size), batch_size)
    return min(plain, shared, key=lambda batches: sum(batch.positions for batch in batches))


def _sorted_parts(rows: Iterable[Row], size: int) -> list[list[Row]]:
    # The longest first: what does not fit into memory fails at once.
    ordered = sorted(rows, key=lambda row: (-len(row.inputs), row.inputs))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _rows(requests: Sequence[Request]) -> list[Row]:
    """Return rows in the order of their tokens, none of which is the beginning of another."""
    order = sorted(range(len(requests)), key=lambda index: requests[index].inputs)
    rows: list[Row] = []
    members: list[int] = []
    for place, index in enumerate(order):
        members.append(index)
        inputs = requests[index].inputs
        # Whatever begins with these inputs comes next in the order of tokens.
        following = requests[order[place + 1]].inputs if place + 1 < len(order) else ()
        if following[: len(inputs)] != inputs:
            rows.append(Row(inputs, tuple(members)))
            members = []
    return rows


def _groups(rows: Sequence[Row], requests: Sequence[Request], size: int) -> list[_Group]:
    """Return neighbours in the order of tokens together where they share enough."""
    groups: list[_Group] = []
    for row in rows:
        # What is asked about a position needs its state, so it is never in the shared start.
        limit = min(requests[index].first for index in row.requests)
        if groups and len(groups[-1].rows) < size:
            last = groups[-1]
            first = last.rows[0].inputs
            shared = min(last.shared, limit, _common(first, row.inputs))
            if shared >= LEAST_SHARE * max(len(first), len(row.inputs)):
                groups[-1] = _Group((*last.rows, row), shared)
                continue
        groups.append(_Group((row,), limit))
    return groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _by_size(group: _Group) -> tuple[int, int, tuple[int, ...]]:
    """Groups of about the same start lie together, and among those the longest remainders."""
    longest = max(len(row.inputs) for row in group.rows) - group.shared
    return -(group.shared // 4), -longest, group.rows[0].inputs


def _shared(groups: Sequence[_Group], size: int) -> list[Batch]:
    batches: list[Batch] = []
    part: list[_Group] = []
    for group in groups:
        if part and sum(len(other.rows) for other in (*part, group)) > size:
            batches.append(_batch(part))
            part = []
        part.append(group)
    return [*batches, _batch(part)] if part else batches


def _batch(groups: Sequence[_Group]) -> Batch:
    # The shortest start serves all; the few tokens behind it are computed for every row.
    return Batch(tuple(group.rows for group in groups), min(group.shared for group in groups))
