"""google-research BERT's run_squad with a fast encoder: SQuAD v1.1 and v2.0.

Takes the flags of google's run_squad.py and --floatx, --remove_padding, --int8_mode and
--allow_gemm_test. --do_train fine-tunes, with --if_quant as int8 computes and with --distillation
from a teacher, too, and saves checkpoints in --output_dir; --do_predict writes predictions.json and
nbest_predictions.json there, for --version_2_with_negative also null_odds.json. --export_dir gets a
SavedModel to serve.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.programs.question_answering",
        __doc__,
        ["fastertransformer_tf.run_squad_wrap"],
    )


if __name__ == "__main__":
    main()
