"""Deals texts of any lengths to batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence


def batches_of_tokens(
    lengths: Sequence[int], most_tokens: int, most_rows: int | None = None
) -> list[list[int]]:
    """Deals texts to batches of similar lengths.

    Args:
      lengths: Tokens of each text.
      most_tokens: Tokens of a batch at most, padded to its longest; a longer text is alone.
      most_rows: Texts of a batch at most; None: as many as the tokens let in.

    Returns:
      Batches of indices into `lengths`, each index once; the longest first, so that what is too
      large for the memory is found at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        last = batches[-1] if batches else None
        # Sorted: the first of a batch is its longest.
        if (
            last is None
            or len(last) == most_rows
            or lengths[last[0]] * (len(last) + 1) > most_tokens
        ):
            batches.append([index])
        else:
            last.append(index)
    return batches
