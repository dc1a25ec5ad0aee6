"""Times BERT with TensorFlow's own encoder against the op over the dev set of a GLUE task.

The logits of every batch are compared first; where they disagree nothing is reported. Takes the
flags of run_classifier_wrap and those of profile_transformer_inference.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.programs.profile_classifier",
        __doc__,
        ["fastertransformer_tf.profile_bert_inference", "fastertransformer_tf.run_classifier_wrap"],
    )


if __name__ == "__main__":
    main()
