"""The exception of a user's mistake, which the programs answer with one sentence."""

from __future__ import annotations

from collections.abc import Iterable

# More than this of a list does not help a reader.
_MOST_LISTED = 10


class UserError(ValueError):
    """What a user gave is wrong: a flag, a file, a line of it, a value.

    The message is complete: it names the thing (the file and the line, the flag, the variable),
    says what it is and what is expected. Any other exception that leaves a program is a fault of
    the program.
    """


def listed(faults: Iterable[str]) -> str:
    """Joins sentences to one line; of many only the first, and how many more there are."""
    faults = list(faults)
    more = len(faults) - _MOST_LISTED
    return "; ".join(faults[:_MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
