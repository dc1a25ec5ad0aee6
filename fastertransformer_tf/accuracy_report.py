"""Table and plot of what float types and int8 cost and bring: MRPC and SQuAD.

Evaluates a model's checkpoints by the op, each with padding computed and removed: the float one in
--float_types, and int8 ones, as ckpt_quantization writes them, that were calibrated (--mrpc_ptq1,
...: the number is the int8_mode), trained for int8 (--mrpc_qat1, ...) and trained with a teacher
(--mrpc_distilled1, ...). Writes accuracy_report.md, .json and .png to --output_dir: accuracy or
exact match and F1, examples/s, size. Rows whose checkpoint is not given are left out, and the table
says so. What has been measured is kept in --output_dir/cells: the same command goes on after a
kill, and measures only what is new.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.programs.accuracy", __doc__, ["fastertransformer_tf.accuracy_report"]
    )


if __name__ == "__main__":
    main()
