r"""Evaluates a BERT on a GLUE task in PyTorch: transformers, its TorchScript, or the op.

  python sample/pytorch/run_glue.py --model_name_or_path=minilm_mrpc --task_name=mrpc \
    --data_dir=glue_data/MRPC --output_dir=out --do_eval --model_type=thsext --remove_padding

The model is a Hugging Face folder or a checkpoint of TensorFlow. Examples, features and metrics are
those of run_classifier_wrap.
"""

import os
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import transformers
from absl import flags

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "torch_ops"), str(REPOSITORY / "sample/pytorch")]
import bert_programs  # noqa: E402

from fastertransformer_tf.data import glue, glue_features, glue_metrics  # noqa: E402
from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_tf.files import atomic  # noqa: E402
from fastertransformer_tf.programs import batch_runs, cli, reports  # noqa: E402
from fastertransformer_tf.quantization import calibrating  # noqa: E402

_OWNER = "run_glue"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    bert_programs.define_flags(flag_values, _OWNER)
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string("task_name", None, f"The task: {', '.join(glue.TASKS)}.")
    define.boolean("do_eval", "Evaluate the dev set.")
    define.integer("max_seq_length", 128, "Tokens at most; longer pairs are cut.", minimum=3)


def evaluate(task: glue.Task, engine: bert_programs.Engine, features: Any, batch_size: int) -> Any:
    """Runs the dev set; returns the metrics and the loss by name, and the run."""
    inputs = [features[name] for name in bert_programs.INPUTS]
    run = batch_runs.run_batches(engine, inputs, batch_size, "eval")
    logits = run.outputs["logits"]
    labels = features["label_ids"]
    results: dict[str, Any] = glue_metrics.evaluate(task, labels, logits)
    scores = torch.from_numpy(logits)
    if task.is_regression:
        loss = torch.nn.functional.mse_loss(scores[:, 0], torch.from_numpy(labels))
    else:
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels).long())
    return {**results, "loss": float(loss)}, run


def run(values: flags.FlagValues) -> dict[str, float]:
    """Runs the program with parsed flags.

    Returns:
      The metrics and the loss; nothing without --do_eval.

    Raises:
      UserError: A flag is missing, wrong, or does not go with another; a file is not as expected.
    """
    cli.require_flags(values, ("task_name", "data_dir"))
    if not (values.do_eval or values.do_calib):
        raise UserError("nothing to do: give --do_calib or --do_eval")
    name = values.task_name.lower()
    if name not in glue.TASKS:
        raise UserError(f"--task_name={values.task_name}, expected {', '.join(glue.TASKS)}")
    task = glue.TASKS[name]
    for which in [glue.TRAIN] * values.do_calib + [glue.DEV] * values.do_eval:
        task.require(which)
    loaded = bert_programs.load(values, transformers.BertForSequenceClassification)
    outputs = loaded.model.config.num_labels
    if outputs != task.num_outputs:
        raise UserError(
            f"{values.model_name_or_path} has {outputs} outputs, expected {task.num_outputs} of "
            f"--task_name={task.name}"
        )

    def features(examples: list[Any]) -> dict[str, np.ndarray]:
        return glue_features.make_features(
            examples, task.get_labels(), values.max_seq_length, loaded.tokenizer
        )

    if values.do_calib:
        count = values.calib_batch * values.train_batch_size
        examples = task.examples(values.data_dir, glue.TRAIN)
        bert_programs.calibrate(loaded, features(calibrating.choose_examples(examples, count)))
    if not values.do_eval:
        return {}
    dev = features(task.examples(values.data_dir, glue.DEV))
    engine = bert_programs.Engine(loaded, ["logits"])
    results, timed = evaluate(task, engine, dev, values.per_gpu_eval_batch_size)
    text = "".join(f"{name} = {value!s}\n" for name, value in sorted(results.items()))
    atomic.write_text(os.path.join(values.output_dir, "eval_results.txt"), text)
    rows = {glue_metrics.TITLES.get(name, name): value for name, value in results.items()}
    title = f"{task.name.upper()} evaluation"
    batch_size = values.per_gpu_eval_batch_size
    reports.report(title, bert_programs.describe(values), rows, timed, batch_size)
    return results


if __name__ == "__main__":
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])
