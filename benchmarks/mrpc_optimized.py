"""MRPC's dev set from text to labels: bert-tensorflow's SavedModel against what ft_optimize makes.

The source is exported by bert-tensorflow's own graph (tests/google_graphs.py). Each pass tokenizes
every pair with google's tokenizer and runs the signature in batches padded to --max_seq_length;
passes of all contestants come in turn, in another order every time. Writes JSON and Markdown.

  python -m benchmarks.mrpc_optimized --data=../shared/data
"""

import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import report
from fastertransformer_tf import google_bert
from fastertransformer_tf.data import glue
from fastertransformer_tf.rewriting import optimizer

_ROOT = report.RESULTS.parents[1]
_DATA = flags.DEFINE_string(
    "data", str(_ROOT.parent / "shared" / "data"), "Folder with glue_data/MRPC and minilm_mrpc."
)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Pairs in a batch.", 1)
_SEQ = flags.DEFINE_integer("max_seq_length", 128, "Padded length.", 3)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Passes of each contestant over the set.", 1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the result goes.")
_KEYS = ("input_ids", "input_mask", "segment_ids")
_CONTESTANTS: dict[str, dict[str, Any]] = {
    "source, TensorFlow": {},
    "optimized": {"remove_padding": False},
    "optimized, padding removed": {"remove_padding": True},
}
# google's function logs the examples below number 5.
_NO_LOG = 5
_tf1 = tf.compat.v1


class _Served:
    """A SavedModel in a session of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        with tf.Graph().as_default() as graph:
            self._session = _tf1.Session(graph=graph)
            meta = _tf1.saved_model.load(self._session, ["serve"], str(folder))
        signature = meta.signature_def["serving_default"]
        self._inputs = {key: signature.inputs[key].name for key in _KEYS}
        self._logits = signature.outputs["logits"].name

    def label(self, examples: list[Any], labels: list[str], tokenizer: Any) -> np.ndarray:
        """Tokenizes and runs all pairs; returns their logits."""
        convert = google_bert.run_classifier().convert_single_example
        found = []
        for begin in range(0, len(examples), _BATCH.value):
            rows = [
                convert(_NO_LOG, example, labels, _SEQ.value, tokenizer)
                for example in examples[begin : begin + _BATCH.value]
            ]
            feeds = {
                name: np.array([getattr(row, key) for row in rows], np.int32)
                for key, name in self._inputs.items()
            }
            found.append(self._session.run(self._logits, feeds))
        return np.concatenate(found)


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    sys.path.insert(0, str(_ROOT / "tests"))
    import google_graphs

    data = pathlib.Path(_DATA.value)
    model = data / "minilm_mrpc"
    task = glue.TASKS["mrpc"]
    labels, examples = task.get_labels(), task.examples(str(data / "glue_data" / "MRPC"), "dev")
    tokenizer = google_bert.tokenization().FullTokenizer(str(model / "vocab.txt"), True)
    expected_labels = np.array([labels.index(example.label) for example in examples])
    result: dict[str, Any] = {
        **report.header(),
        "tensorflow": tf.__version__,
        "batch_size": _BATCH.value,
        "max_seq_length": _SEQ.value,
        "examples": len(examples),
        "contestants": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source"
        google_graphs.export_classifier(model / "model.ckpt", model / "bert_config.json", source)
        served = {}
        for index, (name, options) in enumerate(_CONTESTANTS.items()):
            place = pathlib.Path(folder) / str(index) if options else source
            if options:
                optimizer.optimize(source, place, write_report=False, **options)
            served[name] = _Served(place)
        seconds: dict[str, list[float]] = {name: [] for name in served}
        order, expected = np.random.default_rng(1), None
        for turn in range(_ROUNDS.value + 1):
            for name in order.permutation(list(served)) if turn else list(served):
                begin = time.perf_counter()
                logits = served[name].label(examples, labels, tokenizer)
                if turn:
                    seconds[name].append(time.perf_counter() - begin)
                    continue
                # The first pass warms up and checks.
                expected = logits if expected is None else expected
                result["contestants"][name] = {
                    "accuracy": float(np.mean(logits.argmax(-1) == expected_labels)),
                    "largest_logit_difference": float(np.abs(logits - expected).max()),
                }
    base = float(np.median(seconds["source, TensorFlow"]))
    for name, values in seconds.items():
        median = float(np.median(values))
        result["contestants"][name] |= {
            "examples_per_second": round(len(examples) / median, 1),
            "times_source": round(base / median, 2),
            "seconds": np.round(values, 3).tolist(),
        }
    columns = ("accuracy", "largest_logit_difference", "examples_per_second", "times_source")
    rows = [[name, *(c[key] for key in columns)] for name, c in result["contestants"].items()]
    table = report.markdown_table(["contestant", *columns], rows)
    print(table)
    output = report.result_path("mrpc_optimized", "json", _OUTPUT_DIR.value)
    report.write_json(output, result)
    text = (
        f"# MRPC's dev set from text to labels, {len(examples)} pairs, batch {_BATCH.value}, "
        f"length {_SEQ.value}\n\nbert-tensorflow's SavedModel and what ft_optimize makes of it "
        f"(float32), tokenizing by google's tokenizer included; medians of {_ROUNDS.value} "
        f"passes.\n\n{report.describe_header(result)}\n{table}"
    )
    report.write_text(output.with_suffix(".md"), text)
    print(f"Written: {output}")


if __name__ == "__main__":
    app.run(main)
