"""google-research BERT's extract_features with a fast encoder: what layers make of each token.

Takes the flags of google's extract_features.py and --floatx, --remove_padding, --int8_mode and
--allow_gemm_test. A line of --input_file is a text, or two with " ||| " between. The line of the
same number in --output_file is a JSON object: {"linex_index": the number, from 0, "features":
[{"token": ..., "layers": [{"index": -1, "values": [...]}, ...]}, ...]}.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.programs.feature_extraction",
        __doc__,
        ["fastertransformer_tf.extract_features"],
    )


if __name__ == "__main__":
    main()
