"""Scores a table of texts, or of pairs, with a BERT classifier on all processors or GPUs.

Reads JSONL, CSV or Parquet; Ray Data deals the work, on this machine or, with --address, on a
cluster. A run that was killed is gone on with by the same command. Needs the extra `scale`.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.scaleout.batch_scoring",
        __doc__,
        ["fastertransformer_tf.batch_scoring"],
    )


if __name__ == "__main__":
    main()
