"""google-research BERT's run_classifier with a fast encoder: GLUE's tasks and XNLI.

Takes the flags of google's run_classifier.py and --floatx, --remove_padding, --int8_mode and
--allow_gemm_test. --do_train fine-tunes, with --if_quant as int8 computes and with --distillation
from a teacher, too, and saves checkpoints; --do_eval writes eval_results.txt and --do_predict
test_results.tsv, all in --output_dir; --export_dir gets a SavedModel to serve.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.programs.classification",
        __doc__,
        ["fastertransformer_tf.run_classifier_wrap"],
    )


if __name__ == "__main__":
    main()
