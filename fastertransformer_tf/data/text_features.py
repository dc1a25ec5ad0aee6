"""Texts and pairs of texts to token ids, on all cores, by Hugging Face's `tokenizers`.

The same ids as google-research/bert tokenization.py and run_classifier.py give. `tokenizers` gives
each token the number of its line in the vocabulary, as google's code does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import vocabulary
from fastertransformer_tf.models import bert_compat

Text = str | tuple[str, str]
# Of a model.
INPUTS = ("input_ids", "input_mask", "segment_ids")

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
        encoded = iter(self._tokenizer.encode_batch_fast(parts, add_special_tokens=False))
        truncate = bert_compat.run_classifier()._truncate_seq_pair
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


def arrays(rows: Sequence[TokenRow]) -> dict[str, Any]:
    """Pads rows to the longest: int32 input_ids, input_mask and segment_ids, [rows, S]."""
    longest = max(len(row.ids) for row in rows)
    result = {name: np.zeros((len(rows), longest), np.int32) for name in INPUTS}
    for place, row in enumerate(rows):
        length = len(row.ids)
        result["input_ids"][place, :length] = row.ids
        result["input_mask"][place, :length] = 1
        result["segment_ids"][place, row.first : length] = 1
    return result
