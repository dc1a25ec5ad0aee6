"""Scores SQuAD v2.0 predictions by the official rules: DATASET PREDICTIONS.

DATASET is a SQuAD v2.0 JSON file, PREDICTIONS a JSON object from question id to answer text, as
run_squad_wrap --version_2_with_negative writes it. Prints the official metrics: exact and f1 in
percent, of all questions, of those with an answer (HasAns_...) and of those without (NoAns_...);
with --na_prob_file also the best of each over all thresholds, and the threshold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import cli

if TYPE_CHECKING:
    from absl import flags

_OWNER = "fastertransformer_tf.squad_evaluate_v2_0"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string(
        "na_prob_file",
        None,
        "JSON object from question id to how likely it has no answer: null_odds.json.",
    )
    define.number(
        "na_prob_thresh",
        1.0,
        "Questions with more in --na_prob_file are taken for such without an answer.",
        -1e30,
        1e30,
    )


def main() -> None:
    """Entry point of the console script, also `python -m fastertransformer_tf....`."""
    # Here `cli` has told where absl is missing.
    from absl import flags

    from fastertransformer_tf.data.squad_scores import evaluate_v2_files

    def run(argv: Sequence[str]) -> None:
        if len(argv) != 3:
            raise UserError(f"{len(argv) - 1} arguments given, expected DATASET PREDICTIONS")
        values = flags.FLAGS
        if values["na_prob_thresh"].present and not values.na_prob_file:
            raise UserError("--na_prob_thresh needs --na_prob_file")
        scores = evaluate_v2_files(
            argv[1], argv[2], values.na_prob_file or None, values.na_prob_thresh
        )
        print(json.dumps(scores, indent=2))

    cli.run_program(run, __doc__, [_OWNER], define_flags)


if __name__ == "__main__":
    main()
