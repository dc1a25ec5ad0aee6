"""Runs MRPC's dev set by run_classifier_wrap's model: TensorFlow's transformer against the op.

All run in this process over the whole set, in rounds, in another order every time; every logit is
compared first. Writes JSON.

  python -m benchmarks.mrpc_end_to_end --data=../shared/data
"""

import pathlib

import numpy as np
from absl import app, flags

from benchmarks import report
from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import classification, profiling

_DATA = flags.DEFINE_string(
    "data",
    str(report.RESULTS.parents[2] / "shared" / "data"),
    "Folder with glue_data/MRPC and minilm_mrpc (vocab.txt, bert_config.json, a checkpoint).",
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Prefix; default: the latest of minilm_mrpc.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Sequences in a batch.", 1)
_SEQ = flags.DEFINE_integer("max_seq_length", 128, "Padded length.", 3)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Passes of each contestant over the set.", 1)
_MODES = flags.DEFINE_list("floatx", "float32", "Types of the op; TensorFlow's is float32.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the result goes.")


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    data = pathlib.Path(_DATA.value)
    model_dir = data / "minilm_mrpc"
    values = flags.FlagValues()
    classification.define_flags(values)
    path = _CHECKPOINT.value or _find_checkpoint(model_dir)
    arguments = {
        "init_checkpoint": path,
        "data_dir": data / "glue_data" / "MRPC",
        "task_name": "mrpc",
        "vocab_file": model_dir / "vocab.txt",
        "bert_config_file": model_dir / "bert_config.json",
        "output_dir": _OUTPUT_DIR.value,
        "max_seq_length": _SEQ.value,
        "do_eval": "true",
    }
    values(["mrpc_end_to_end", *(f"--{name}={value}" for name, value in arguments.items())])
    contestants = {"tensorflow float32": modeling.EncoderOptions(use_tensorflow=True)}
    for floatx in _MODES.value:
        for remove in (False, True):
            name = f"op {floatx}" + (" remove_padding" if remove else "")
            contestants[name] = modeling.EncoderOptions(floatx=floatx, remove_padding=remove)
    with google_bert.bound_flags(values):
        job = classification.prepare(values)
        features = job.features("dev")
        models = {
            name: job.classifier(reading.Checkpoint(path), options)
            for name, options in contestants.items()
        }
    result = {
        **report.header(),
        "batch_size": _BATCH.value,
        "max_seq_length": _SEQ.value,
        "real_token_share": round(float(features["input_mask"].mean()), 4),
        "contestants": {},
    }
    speeds: dict[str, list[float]] = {name: [] for name in models}
    expected, order = None, np.random.default_rng(1)
    for turn in range(_ROUNDS.value + 1):
        for name in order.permutation(list(models)) if turn else list(models):
            model = models[name]
            done = model.run(features, _BATCH.value, name)
            if turn:
                speeds[name].append(done.examples_per_second)
                continue
            # The first pass warms up and checks.
            logits = done.outputs["logits"]
            expected = logits if expected is None else expected
            floatx = contestants[name].floatx
            result["contestants"][name] = {
                "accuracy": float(classification.evaluate(
                    job.task, features["label_ids"], done
                )["eval_accuracy"]),
                "largest_logit_difference": float(np.abs(logits - expected).max()),
                "relative_error": profiling.check_agreement(expected, logits, floatx),
            }  # fmt: skip
    base = float(np.median(speeds["tensorflow float32"]))
    for name, values_ in speeds.items():
        median = float(np.median(values_))
        result["contestants"][name] |= {
            "examples_per_second": round(median, 1),
            "times_tensorflow": round(median / base, 2),
            "passes": np.round(values_, 1).tolist(),
        }
    for model in models.values():
        model.session.close()
    columns = ("accuracy", "largest_logit_difference", "examples_per_second", "times_tensorflow")
    rows = ([name, *(c[key] for key in columns)] for name, c in result["contestants"].items())
    print(report.markdown_table(["contestant", *columns], rows))
    output = report.result_path("mrpc_end_to_end", "json", _OUTPUT_DIR.value)
    report.write_json(output, result)
    print(f"Written: {output}")


def _find_checkpoint(folder: pathlib.Path) -> str:
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} has {len(found)} checkpoints, expected 1: --checkpoint")
    return str(found[0].with_suffix(""))


if __name__ == "__main__":
    app.run(main)
