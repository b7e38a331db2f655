"""Exceptions that the command line understands, and the search for what a user meant."""

from collections.abc import Iterable
from difflib import get_close_matches

# Valid names that a message lists at most.
LISTED = 20


class UserError(ValueError):
    """A mistake in the user's input: configuration, data, files or hardware.

    The message is one line that names the file and key, what was found, what was expected and,
    where there is one, the closest valid name. The command line prints it without a traceback.
    """


class Interrupted(Exception):
    """A signal asked the process to stop; what was running has saved its state."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def closest(name: str, valid: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the valid name nearest to ``name``, else the valid names.

    Args:
        name: What was found.
        valid: What would have been accepted.
    """
    candidates = sorted(valid)
    matches = get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not matches:
        folded = {candidate.casefold(): candidate for candidate in candidates}
        found = get_close_matches(name.casefold(), folded, n=1, cutoff=0.8)
        matches = [folded[one] for one in found]
    if matches:
        return f" (did you mean '{matches[0]}'?)"
    shown = ", ".join(candidates[:LISTED])
    more = f" and {len(candidates) - LISTED} more" if len(candidates) > LISTED else ""
    return f" (valid: {shown}{more})"
