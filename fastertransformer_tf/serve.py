"""Serves a BERT classifier over HTTP with Ray Serve, in batches filled by tokens.

POST /score takes {"texts": [...]} or {"pairs": [[first, second], ...]}; GET /healthz and /metrics
tell how it is. Needs the extra `scale`.
"""

from __future__ import annotations

from fastertransformer_tf.programs import cli


def main() -> None:
    """The console entry point."""
    cli.run_module_program(
        "fastertransformer_tf.scaleout.serving", __doc__, ["fastertransformer_tf.serve"]
    )


if __name__ == "__main__":
    main()
