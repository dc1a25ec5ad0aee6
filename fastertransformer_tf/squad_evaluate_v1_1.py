"""Scores SQuAD v1.1 predictions by the official rules: DATASET PREDICTIONS.

DATASET is a SQuAD v1.1 JSON file, PREDICTIONS a JSON object from question id to answer text, as
run_squad writes it. Prints {"exact_match": x, "f1": y}, both in percent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import cli


def main() -> None:
    """Entry point of the console script, also `python -m fastertransformer_tf....`."""
    # Here `cli` has told where absl is missing.
    from fastertransformer_tf.data.squad_scores import evaluate_files

    def run(argv: Sequence[str]) -> None:
        if len(argv) != 3:
            raise UserError(f"{len(argv) - 1} arguments given, expected DATASET PREDICTIONS")
        print(json.dumps(evaluate_files(argv[1], argv[2])))

    cli.run_program(run, __doc__, [__name__])


if __name__ == "__main__":
    main()
