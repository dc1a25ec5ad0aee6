r"""Reads vocabularies as google-research/bert does: the id of a token is the number of its line.

bert-tensorflow 1.0.4 numbers the distinct tokens instead, so that a blank or repeated line shifts
every later id. Free of TensorFlow.
"""

from __future__ import annotations

import collections
import os

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files

# What google's programs put around and in place of words.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def load(path: str | os.PathLike[str]) -> collections.OrderedDict[str, int]:
    r"""Reads a vocabulary.

    Source: google-research/bert tokenization.py, load_vocab. Each line, ended by \n or \r\n, counts
    whatever it holds. The blanks around a token do not belong to it. Of lines with the same token
    the last gives the id, as in that function.

    Returns:
      Token to id.

    Raises:
      OSError: It cannot be read.
      UserError: It is not UTF-8.
    """
    vocab: collections.OrderedDict[str, int] = collections.OrderedDict()
    for number, line in enumerate(text_files.read_lines(path)):
        vocab[line.strip()] = number
    return vocab


def check(vocab: dict[str, int], vocab_size: int, path: str) -> None:
    """Checks a vocabulary against a model.

    Args:
      vocab: Token to id.
      vocab_size: Of the model: rows of its embedding table.
      path: Where it is from.

    Raises:
      UserError: It lacks a special token, or has a token beyond the model's embeddings.
    """
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise UserError(
            f"{path} has no {', '.join(missing)}, expected a BERT vocabulary, one token a line"
        )
    last = max(number for token, number in vocab.items() if token)
    if last >= vocab_size:
        raise UserError(
            f"{path} has {last + 1} tokens, expected at most the model's vocab_size, {vocab_size}"
        )
