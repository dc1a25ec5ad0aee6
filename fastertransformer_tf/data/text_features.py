"""Texts and pairs of texts to token ids, on all cores, by Hugging Face's `tokenizers`.

The same ids as google-research/bert tokenization.py and run_classifier.py give. `tokenizers` gives
each token the number of its line in the vocabulary, as google's code does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from fastertransformer_tf import google_bert, spec
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import vocabulary

Text = str | tuple[str, str]

# google's: a longer word is unknown.
_LONGEST_WORD = 200


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """One text or pair.

    Attributes:
      ids: Token ids, [CLS] and [SEP] among them.
      first: How many of them belong to segment 0.
    """

    ids: list[int]
    first: int

    def __len__(self) -> int:
        """Returns the number of tokens."""
        return len(self.ids)


class TextTokenizer:
    """google's WordPiece tokenizer over many texts at once."""

    def __init__(self, vocab_file: str, do_lower_case: bool, vocab_size: int) -> None:
        """Reads a vocabulary.

        Args:
          vocab_file: One token a line.
          do_lower_case: Whether texts are lower-cased and stripped of accents.
          vocab_size: Of the model.

        Raises:
          OSError: The file cannot be read.
          UserError: It is no vocabulary of the model.
        """
        vocab = vocabulary.load(vocab_file)
        vocabulary.check(vocab, vocab_size, vocab_file)
        pieces = models.WordPiece(
            dict(vocab), unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD
        )
        self._tokenizer = tokenizers.Tokenizer(pieces)
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=do_lower_case)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._cls, self._sep = vocab["[CLS]"], vocab["[SEP]"]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Returns the words and pieces of ids that `rows` gave."""
        found: list[str] = [self._tokenizer.id_to_token(number) for number in ids]  # type: ignore[misc]
        return found

    def rows(self, texts: Sequence[Text], max_seq_length: int) -> list[TokenRow]:
        """Tokenizes texts, cut as google's run_classifier cuts them: the longer of a pair first.

        Args:
          texts: Strings, or pairs of strings.
          max_seq_length: Tokens at most, at least 3.

        Raises:
          UserError: An element is neither; its place is named.
        """
        parts: list[str] = []
        for place, text in enumerate(texts):
            pair = text if isinstance(text, (tuple, list)) else (text,)
            if not 1 <= len(pair) <= 2 or not all(isinstance(part, str) for part in pair):
                raise UserError(f"text {place} is {text!r:.80}, expected a string or two of them")
            parts.extend(pair)
        try:
            encoded = iter(self._tokenizer.encode_batch_fast(parts, add_special_tokens=False))
        except (TypeError, UnicodeError):
            places = (place for place, text in enumerate(texts) if not _is_unicode(text))
            raise UserError(
                f"text {next(places)} has half of a surrogate pair, expected Unicode"
            ) from None
        truncate = google_bert.run_classifier()._truncate_seq_pair
        result = []
        for text in texts:
            first = next(encoded).ids
            second = [] if isinstance(text, str) or len(text) == 1 else next(encoded).ids
            if second:
                truncate(first, second, max_seq_length - 3)
            else:
                del first[max_seq_length - 2 :]
            ids = [self._cls, *first, self._sep]
            # As google: a second text of no token, or cut to none, has no [SEP].
            tail = [*second, self._sep] if second else []
            result.append(TokenRow([*ids, *tail], len(ids)))
        return result


def _is_unicode(text: Text) -> bool:
    """Whether a text or pair can be written as UTF-8, as half of a surrogate pair cannot."""
    try:
        "".join(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def batches(
    lengths: Sequence[int], most_tokens: int, most_rows: int | None = None
) -> Iterator[list[int]]:
    """Deals texts to batches: longest first, so that memory is taken once and little is padding.

    Args:
      lengths: Tokens of each text.
      most_tokens: Tokens of a batch at most, padded to its longest; a longer text is alone.
      most_rows: Texts of a batch at most; None: no limit.

    Yields:
      Places in `lengths`, each once.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    begin = 0
    while begin < len(order):
        count = max(1, most_tokens // lengths[order[begin]])
        if most_rows is not None:
            count = min(count, most_rows)
        yield order[begin : begin + count]
        begin += count


def arrays(rows: Sequence[TokenRow]) -> dict[str, Any]:
    """Pads rows to the longest: int32 input_ids, input_mask and segment_ids, [rows, S]."""
    longest = max(map(len, rows))
    result = {name: np.zeros((len(rows), longest), np.int32) for name in spec.MODEL_INPUTS}
    for place, row in enumerate(rows):
        length = len(row)
        result["input_ids"][place, :length] = row.ids
        result["input_mask"][place, :length] = 1
        result["segment_ids"][place, row.first : length] = 1
    return result
