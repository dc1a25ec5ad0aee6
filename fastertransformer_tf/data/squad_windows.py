"""Cuts the paragraphs of SQuAD's questions into windows, by bert-tensorflow's run_squad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastertransformer_tf import google_bert
from fastertransformer_tf.data.squad_files import SquadOptions, read_examples
from fastertransformer_tf.errors import UserError


@dataclass(frozen=True)
class Window:
    """What decoding needs of one window of a paragraph; small, for there may be a million.

    Attributes:
      example_index: Its question.
      length: Tokens, with [CLS] and [SEP].
      doc_start: Position of the first token of the paragraph: the question comes before.
      orig_words: int32 [D], of each token of the paragraph in the window the word it belongs to.
      max_context: bool [D], whether no other window has more context around the token.
    """

    example_index: int
    length: int
    doc_start: int
    orig_words: np.ndarray
    max_context: np.ndarray


@dataclass(frozen=True)
class SquadData:
    """Questions and their windows.

    Attributes:
      examples: run_squad.SquadExample, one a question.
      windows: One a row of the arrays; empty for training, which does not need them.
      arrays: input_ids, input_mask, segment_ids [E,S] int32, E windows; for training also
        start_positions and end_positions [E].
      num_dropped: Training questions left out, since their answer is not in the paragraph.
      tokens: Of each id.
    """

    examples: Sequence[Any]
    windows: Sequence[Window]
    arrays: Mapping[str, np.ndarray]
    num_dropped: int
    tokens: Mapping[int, str]


def load(
    file: str | Path, tokenizer: Any, options: SquadOptions, *, is_training: bool, seed: int = 12345
) -> SquadData:
    """Reads a SQuAD file and cuts its paragraphs into windows; see `read_examples`."""
    examples, dropped = read_examples(file, options, is_training=is_training)
    return make_windows(examples, dropped, tokenizer, options, is_training=is_training, seed=seed)


def make_windows(
    examples: list[Any],
    num_dropped: int,
    tokenizer: Any,
    options: SquadOptions,
    *,
    is_training: bool,
    seed: int = 12345,
) -> SquadData:
    """Cuts the paragraphs of questions into windows.

    Args:
      examples: What `read_examples` returned.
      num_dropped: The same.
      tokenizer: bert-tensorflow's FullTokenizer.
      options: See there.
      is_training: Questions in random order, as in run_squad.py.
      seed: Of that order.

    Raises:
      UserError: There is no window to train on.
    """
    if is_training:
        if num_dropped:
            print(
                f"{num_dropped} of {num_dropped + len(examples)} questions are left out of "
                "training: their answer is not in the paragraph where answer_start says"
            )
        examples = list(examples)
        np.random.default_rng(seed).shuffle(examples)  # type: ignore[arg-type]
    windows: list[Window] = []
    rows: list[np.ndarray] = []
    positions: list[tuple[int, int]] = []

    def keep(feature: Any) -> None:
        # google's object of lists and dicts takes 60 KB; this, 3 KB.
        window = _window(feature, for_decoding=not is_training)
        rows.append(np.array(feature.input_ids[: window.length], np.int32))
        if is_training:
            positions.append((feature.start_position, feature.end_position))
        windows.append(window)

    google_bert.run_squad().convert_examples_to_features(
        examples=tqdm(examples, desc="tokenizing", unit="question"),
        tokenizer=tokenizer,
        max_seq_length=options.max_seq_length,
        doc_stride=options.doc_stride,
        max_query_length=options.max_query_length,
        is_training=is_training,
        output_fn=keep,
    )
    arrays = _arrays(rows, windows, options.max_seq_length)
    if is_training:
        if not rows:
            raise UserError("no question has a paragraph with words: there is nothing to train on")
        starts, ends = np.array(positions, np.int32).T
        arrays |= {"start_positions": starts, "end_positions": ends}
    return SquadData(
        examples, () if is_training else windows, arrays, num_dropped, tokenizer.inv_vocab
    )


def _window(feature: Any, *, for_decoding: bool) -> Window:
    first = next(iter(feature.token_to_orig_map))
    places = list(feature.token_to_orig_map) if for_decoding else []  # In order, without a gap.
    return Window(
        feature.example_index,
        len(feature.tokens),
        first,
        np.array([feature.token_to_orig_map[p] for p in places], np.int32),
        np.array([feature.token_is_max_context[p] for p in places], bool),
    )


def _arrays(
    rows: list[np.ndarray], windows: list[Window], max_seq_length: int
) -> dict[str, np.ndarray]:
    """Pads the ids of windows and tells real tokens and the paragraph's from the others."""
    ids = np.zeros((len(rows), max_seq_length), np.int32)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    places = np.arange(max_seq_length)
    lengths = np.array([w.length for w in windows], np.int32).reshape(-1, 1)
    starts = np.array([w.doc_start for w in windows], np.int32).reshape(-1, 1)
    mask = (places < lengths).astype(np.int32)
    return {
        "input_ids": ids,
        "input_mask": mask,
        "segment_ids": mask * (places >= starts).astype(np.int32),
    }
