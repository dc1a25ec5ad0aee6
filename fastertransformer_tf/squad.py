"""SQuAD features and answers: what run_squad_wrap does before and after the model.

Reading, windows and n-best selection are bert-tensorflow's run_squad; this module feeds them so
that logits of padding never take part, files appear whole, and a question of SQuAD 2 whose n best
starts and ends hold no span of the document is answered all the same.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from fastertransformer_tf import bert_compat, checkpoint_io
from fastertransformer_tf.errors import UserError

PREDICTIONS_FILE = "predictions.json"
NBEST_FILE = "nbest_predictions.json"
NULL_ODDS_FILE = "null_odds.json"


@dataclass(frozen=True)
class SquadOptions:
    """How SQuAD is cut into windows and answered; names and defaults of run_squad.py's flags."""

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    n_best_size: int = 20
    max_answer_length: int = 30
    do_lower_case: bool = True
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0
    verbose_logging: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: One is out of range.
        """
        for name in ("doc_stride", "max_query_length", "n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.max_seq_length <= self.max_query_length + 3:
            raise UserError(
                f"max_seq_length is {self.max_seq_length}, expected more than max_query_length "
                f"{self.max_query_length} + 3"
            )


@dataclass(frozen=True)
class SquadData:
    """Questions and their windows.

    Attributes:
      examples: run_squad.SquadExample, one a question.
      features: run_squad.InputFeatures, one a window.
      arrays: input_ids, input_mask, segment_ids [E,S] int32, E windows; for training also
        start_positions and end_positions [E].
    """

    examples: Sequence[Any]
    features: Sequence[Any]
    arrays: Mapping[str, np.ndarray]


def load(
    file: str | Path, tokenizer: Any, options: SquadOptions, *, is_training: bool, seed: int = 12345
) -> SquadData:
    """Reads a SQuAD file and cuts its paragraphs into windows.

    Args:
      file: SQuAD v1.1 or v2.0 JSON.
      tokenizer: bert-tensorflow's FullTokenizer.
      options: See there.
      is_training: With answers; questions in random order, as in run_squad.py.
      seed: Of that order.

    Raises:
      FileNotFoundError: There is no such file.
      UserError: It is not JSON of SQuAD's form, or holds no question.
    """
    run_squad = bert_compat.run_squad()
    if not Path(file).is_file():
        raise FileNotFoundError(f"SQuAD file {file} does not exist")
    with _module_flags(options):
        try:
            examples = run_squad.read_squad_examples(str(file), is_training)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{file} is not a SQuAD file: {error!r}") from error
    if not examples:
        raise UserError(f"{file} holds no question")
    if is_training:
        np.random.default_rng(seed).shuffle(examples)
    features: list[Any] = []
    run_squad.convert_examples_to_features(
        examples=tqdm(examples, desc="tokenizing", unit="question"),
        tokenizer=tokenizer,
        max_seq_length=options.max_seq_length,
        doc_stride=options.doc_stride,
        max_query_length=options.max_query_length,
        is_training=is_training,
        output_fn=features.append,
    )
    names = ["input_ids", "input_mask", "segment_ids"]
    if is_training:
        names += ["start_position", "end_position"]
    arrays = {name: np.array([getattr(f, name) for f in features], np.int32) for name in names}
    for part in ("start", "end") if is_training else ():
        arrays[f"{part}_positions"] = arrays.pop(f"{part}_position")
    return SquadData(examples, features, arrays)


def write_predictions(
    data: SquadData,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    options: SquadOptions,
    output_dir: str | Path,
) -> dict[str, str]:
    """Chooses the answers and writes predictions.json, nbest_predictions.json, null_odds.json.

    The logits of a window are cut to its true length first: what the model says about padding
    (and with padding removed there is nothing it could say) never takes part.

    Args:
      data: The questions and windows.
      start_logits: [E,S] float, one row a window of `data`.
      end_logits: [E,S].
      options: See there. null_odds.json is written with version_2_with_negative only.
      output_dir: Gets the files, each by a rename.

    Returns:
      Question id to answer.

    Raises:
      UserError: The logits are not [E,S], or not finite where they count.
    """
    shape = data.arrays["input_ids"].shape
    for name, logits in (("start_logits", start_logits), ("end_logits", end_logits)):
        if logits.shape != shape:
            raise ValueError(f"{name} is {list(logits.shape)}, expected {list(shape)}")
    run_squad = bert_compat.run_squad()
    results: dict[int, Any] = {}
    for feature, starts, ends in zip(data.features, start_logits, end_logits, strict=True):
        length = len(feature.tokens)
        starts, ends = starts[:length].astype(np.float64), ends[:length].astype(np.float64)
        if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
            raise UserError(f"window {feature.unique_id} has logits that are not finite")
        results[feature.unique_id] = run_squad.RawResult(
            feature.unique_id, starts.tolist(), ends.tolist()
        )

    windows = defaultdict(list)
    for feature in data.features:
        windows[feature.example_index].append(feature)
    everything = list(range(len(data.examples)))
    # run_squad stops with an AttributeError where SQuAD 2 leaves no span but the empty one among
    # the n best of a question: such questions look at every position instead.
    wide = [
        i
        for i in everything
        if options.version_2_with_negative and not _has_span(windows[i], results, options)
    ]
    contents = _select(data, windows, results, options, sorted(set(everything) - set(wide)))
    if wide:
        for content, more in zip(
            contents,
            _select(data, windows, results, options, wide, all_positions=True),
            strict=True,
        ):
            content.update(more)
    predictions, nbest, null_odds = contents
    for entries in nbest.values():
        del entries[options.n_best_size + 1 :]
    output_dir = Path(output_dir)
    files = {PREDICTIONS_FILE: predictions, NBEST_FILE: nbest}
    if options.version_2_with_negative:
        files[NULL_ODDS_FILE] = null_odds
    for name, content in files.items():
        checkpoint_io.write_text(output_dir / name, json.dumps(content, indent=4) + "\n")
    return predictions


def _select(
    data: SquadData,
    windows: Mapping[int, Sequence[Any]],
    results: Mapping[int, Any],
    options: SquadOptions,
    indices: Sequence[int],
    *,
    all_positions: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Runs run_squad.write_predictions on some questions; returns what its files hold."""
    run_squad = bert_compat.run_squad()
    features = []
    for new_index, i in enumerate(indices):
        for window in windows[i]:
            feature = run_squad.InputFeatures(**vars(window) | {"example_index": new_index})
            features.append(feature)
    with tempfile.TemporaryDirectory() as folder, _module_flags(options):
        paths = [
            str(Path(folder) / name) for name in (PREDICTIONS_FILE, NBEST_FILE, NULL_ODDS_FILE)
        ]
        run_squad.write_predictions(
            tqdm([data.examples[i] for i in indices], desc="answers", unit="question"),
            features,
            list(results.values()),
            options.max_seq_length if all_positions else options.n_best_size,
            options.max_answer_length,
            options.do_lower_case,
            *paths,
        )
        contents = [
            json.loads(Path(p).read_text(encoding="utf-8")) if Path(p).exists() else {}
            for p in paths
        ]
    return contents[0], contents[1], contents[2]


def _has_span(windows: Sequence[Any], results: Mapping[int, Any], options: SquadOptions) -> bool:
    """Whether the n best starts and ends of a question's windows make a span of the document."""
    for window in windows:
        result = results[window.unique_id]
        starts, ends = (
            # Stable and descending, as run_squad sorts.
            np.argsort(-np.array(logits), kind="stable")[: options.n_best_size]
            for logits in (result.start_logits, result.end_logits)
        )
        inside = [int(s) for s in starts if window.token_is_max_context.get(int(s), False)]
        ending = [int(e) for e in ends if int(e) in window.token_to_orig_map]
        if any(0 <= e - s < options.max_answer_length for s in inside for e in ending):
            return True
    return False


@contextlib.contextmanager
def _module_flags(options: SquadOptions) -> Iterator[None]:
    """Gives run_squad's functions the flags that they read."""
    values = flags.FlagValues()
    for name in ("version_2_with_negative", "verbose_logging"):
        flags.DEFINE_bool(name, getattr(options, name), "", flag_values=values)
    flags.DEFINE_float(
        "null_score_diff_threshold", options.null_score_diff_threshold, "", flag_values=values
    )
    values.mark_as_parsed()
    with bert_compat.bound_flags(values):
        yield
