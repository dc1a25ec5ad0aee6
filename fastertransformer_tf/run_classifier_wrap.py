"""google-research BERT's run_classifier with a fast encoder: CoLA, MNLI, MRPC and XNLI.

Takes the flags of google's run_classifier.py and --floatx, --remove_padding, --int8_mode and
--allow_gemm_test. --do_train fine-tunes with TensorFlow's own transformer and saves checkpoints,
--do_eval writes eval_results.txt and --do_predict test_results.tsv, all in --output_dir;
--export_dir gets a SavedModel to serve.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags
from sklearn import metrics

from fastertransformer_tf import (
    bert_compat,
    checkpoint,
    checkpoint_io,
    modeling,
    runner,
    training,
)
from fastertransformer_tf import cli as cli_lib
from fastertransformer_tf.errors import UserError

_tf1 = tf.compat.v1
_OWNER = "fastertransformer_tf.run_classifier_wrap"
_REQUIRED = ("data_dir", "task_name", "vocab_file", "bert_config_file", "output_dir")
_HELP = runner.TPU_HELP | {
    "init_checkpoint": "Checkpoint to start from (--do_train) or to run; without it the latest one "
    "in --output_dir.",
    "task_name": "The task: cola, mnli, mrpc or xnli.",
    "output_dir": "The folder where results are written.",
    "do_train": "Fine-tune with TensorFlow's own transformer; checkpoints go to --output_dir, and "
    "the same command goes on after a kill.",
}


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    runner.define_encoder_flags(flag_values, _OWNER)
    runner.define_export_flag(flag_values, _OWNER)
    cli_lib.FlagDefiner(flag_values, _OWNER).string(
        "output_logits",
        None,
        "Also write the evaluated logits, float32 [examples, classes], to this .npy file.",
    )
    bert_compat.define_google_flags("run_classifier", flag_values, _OWNER, _HELP)


def processors() -> dict[str, Any]:
    """Returns google's task processors by lower-case task name."""
    module = bert_compat.run_classifier()
    return {
        "cola": module.ColaProcessor,
        "mnli": module.MnliProcessor,
        "mrpc": module.MrpcProcessor,
        "xnli": module.XnliProcessor,
    }


class Classifier(runner.Model):
    """A BERT classifier restored as constants; its inputs are `make_features`' arrays.

    Attributes:
      global_step: Training step of its checkpoint.
    """

    def __init__(
        self,
        config: Any,
        num_labels: int,
        checkpoint_path: str,
        options: modeling.EncoderOptions,
        session_config: Any = None,
    ) -> None:
        """Builds the graph with unknown batch size and length.

        Args:
          config: A BertConfig.
          num_labels: Number of classes, C.
          checkpoint_path: Prefix of the checkpoint.
          options: How the encoder is built.
          session_config: A ConfigProto; TensorFlow's defaults when None.

        Raises:
          FileNotFoundError: There is no such checkpoint.
          UserError: It does not fit the model.
        """
        source = checkpoint.Checkpoint(checkpoint_path)
        self.global_step = source.global_step()
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            inputs = {
                name: _tf1.placeholder(tf.int32, [None, None], name)
                for name in ("input_ids", "input_mask", "segment_ids")
            }
            inputs["label_ids"] = _tf1.placeholder(tf.int32, [None], "label_ids")
            with checkpoint.restored_constants(source, options.floatx):
                loss, per_example_loss, logits, probabilities = bert_compat.create_classifier_model(
                    config,
                    False,
                    inputs["input_ids"],
                    inputs["input_mask"],
                    inputs["segment_ids"],
                    inputs["label_ids"],
                    num_labels=num_labels,
                    use_one_hot_embeddings=False,
                )
        outputs = {
            "loss": loss,
            "per_example_loss": per_example_loss,
            "logits": logits,
            "probabilities": probabilities,
        }
        super().__init__(graph, inputs, outputs, session_config)


def make_features(
    examples: list[Any], labels: list[str], max_seq_length: int, tokenizer: Any
) -> dict[str, np.ndarray]:
    """Tokenizes examples as google's program does.

    Args:
      examples: google's InputExample objects.
      labels: The task's labels, in order.
      max_seq_length: S; longer pairs are cut, shorter ones padded.
      tokenizer: A FullTokenizer.

    Returns:
      int32 arrays input_ids, input_mask, segment_ids [examples, S] and label_ids [examples].

    Raises:
      UserError: An example has a label that the task has not.
    """
    unknown = sorted({str(e.label) for e in examples} - set(labels))
    if unknown:
        raise UserError(f"the data has the labels {unknown}, expected {labels}")
    features = bert_compat.run_classifier().convert_examples_to_features(
        examples, labels, max_seq_length, tokenizer
    )
    arrays = {
        name: np.array([getattr(f, name) for f in features], np.int32)
        for name in ("input_ids", "input_mask", "segment_ids")
    }
    arrays["label_ids"] = np.array([f.label_id for f in features], np.int32)
    return arrays


def evaluate(task: str, label_ids: np.ndarray, run: runner.BatchRun) -> dict[str, Any]:
    """Computes google's metrics, and the task's own in GLUE.

    Args:
      task: Lower-case task name.
      label_ids: int32 [examples].
      run: With logits, per_example_loss and loss.

    Returns:
      eval_accuracy, eval_loss (mean over examples), loss (mean over batches), for mrpc eval_f1
      (of class 1), for cola eval_mcc (Matthews correlation).
    """
    predictions = run.outputs["logits"].argmax(axis=-1)
    result = {
        "eval_accuracy": np.float32(metrics.accuracy_score(label_ids, predictions)),
        "eval_loss": np.float32(run.outputs["per_example_loss"].mean(dtype=np.float64)),
        "loss": np.float32(run.outputs["loss"].mean(dtype=np.float64)),
    }
    if task == "mrpc":
        result["eval_f1"] = np.float32(metrics.f1_score(label_ids, predictions))
    if task == "cola":
        result["eval_mcc"] = np.float32(metrics.matthews_corrcoef(label_ids, predictions))
    return result


@dataclasses.dataclass
class Job:
    """What training, evaluation and prediction share: the checked command line.

    Attributes:
      values: The parsed flags.
      task: Lower-case task name.
      processor: google's processor of the task.
      labels: Its labels.
      config: The BertConfig.
      tokenizer: The FullTokenizer.
      options: How the encoder is built.
    """

    values: flags.FlagValues
    task: str
    processor: Any
    labels: list[str]
    config: Any
    tokenizer: Any
    options: modeling.EncoderOptions


def prepare(values: flags.FlagValues) -> Job:
    """Checks the command line and loads what it names.

    Raises:
      UserError: A flag is missing, wrong, or not in this version.
      FileNotFoundError: A file is not there.
    """
    runner.require_flags(values, _REQUIRED)
    options = runner.encoder_options(values)
    runner.check_training_flags(values)
    if not (values.do_train or values.do_eval or values.do_predict or values.export_dir):
        raise UserError("nothing to do: give --do_train, --do_eval, --do_predict or --export_dir")
    runner.check_export_dir(values.export_dir)
    for name in ("eval_batch_size", "predict_batch_size"):
        if getattr(values, name) < 1:
            raise UserError(f"--{name}={getattr(values, name)}, expected at least 1")
    if values.max_seq_length < 3:
        raise UserError(
            f"--max_seq_length={values.max_seq_length}, expected at least 3: [CLS] and two [SEP]"
        )
    if values.output_logits and not values.do_eval:
        raise UserError("--output_logits needs --do_eval")
    task = values.task_name.lower()
    if task not in processors():
        raise UserError(f"--task_name={values.task_name}, expected {', '.join(processors())}")
    if not tf.io.gfile.isdir(values.data_dir):
        raise FileNotFoundError(f"--data_dir={values.data_dir} is not a folder")
    config = runner.load_config(values.bert_config_file, values.max_seq_length)
    tokenizer = runner.load_tokenizer(values)
    runner.make_output_dir(values.output_dir)
    processor = processors()[task]()
    return Job(
        values=values,
        task=task,
        processor=processor,
        labels=processor.get_labels(),
        config=config,
        tokenizer=tokenizer,
        options=options,
    )


def _examples(job: Job, which: str) -> list[Any]:
    """Reads the "train", "dev" or "test" examples.

    Raises:
      UserError: A file of the task is missing or empty.
    """
    try:
        examples = getattr(job.processor, f"get_{which}_examples")(job.values.data_dir)
    except tf.errors.NotFoundError as error:
        raise UserError(
            f"--data_dir={job.values.data_dir} has no {which} data of {job.task}: {error.message}"
        ) from error
    if not examples:
        raise UserError(f"the {which} data of {job.task} in {job.values.data_dir} is empty")
    return examples


def run_eval(job: Job, model: Classifier) -> dict[str, Any]:
    """Evaluates the dev set, writes eval_results.txt and prints a table.

    Returns:
      The metrics, as in the file.
    """
    values = job.values
    features = make_features(
        _examples(job, "dev"), job.labels, values.max_seq_length, job.tokenizer
    )
    run = model.run(features, values.eval_batch_size, "eval")
    result = evaluate(job.task, features["label_ids"], run)
    result["global_step"] = model.global_step
    text = "".join(f"{key} = {result[key]!s}\n" for key in sorted(result))
    checkpoint_io.write_text(os.path.join(values.output_dir, "eval_results.txt"), text)
    if values.output_logits:
        with checkpoint_io.atomic_path(values.output_logits) as path, path.open("wb") as file:
            np.save(file, run.outputs["logits"])
    rows: dict[str, object] = {"accuracy": result["eval_accuracy"]}
    rows |= {
        label: result[key]
        for key, label in (("eval_f1", "F1"), ("eval_mcc", "Matthews correlation"))
        if key in result
    }
    rows["loss"] = result["eval_loss"]
    title = f"{job.task.upper()} evaluation"
    runner.report(title, job.options, rows, run, values.eval_batch_size)
    return result


def run_predict(job: Job, model: Classifier) -> np.ndarray:
    """Predicts the test set, writes test_results.tsv and prints a table.

    Returns:
      Probabilities, float32 [examples, C].
    """
    values = job.values
    features = make_features(
        _examples(job, "test"), job.labels, values.max_seq_length, job.tokenizer
    )
    run = model.run(features, values.predict_batch_size, "predict")
    probabilities = run.outputs["probabilities"]
    text = "".join("\t".join(str(p) for p in row) + "\n" for row in probabilities)
    checkpoint_io.write_text(os.path.join(values.output_dir, "test_results.tsv"), text)
    title = f"{job.task.upper()} prediction"
    runner.report(title, job.options, {}, run, values.predict_batch_size)
    return probabilities


def run_train(job: Job) -> str:
    """Fine-tunes on the train set; returns the last checkpoint."""
    values = job.values
    features = make_features(
        _examples(job, "train"), job.labels, values.max_seq_length, job.tokenizer
    )
    return training.train(
        training.classifier_loss(job.config, len(job.labels)),
        features,
        runner.training_options(values, len(features["label_ids"])),
        values.output_dir,
        init_checkpoint=values.init_checkpoint,
        settings={"task": job.task, "max_seq_length": values.max_seq_length},
    )


def run(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the program with parsed flags.

    Returns:
      The metrics of the evaluation; empty without --do_eval.

    Raises:
      UserError: A flag is missing, wrong, or not in this version.
      FileNotFoundError: A file is not there.
    """
    with bert_compat.bound_flags(values):
        job = prepare(values)
        result: dict[str, Any] = {}
        if values.do_train:
            path = run_train(job)
            if not (values.do_eval or values.do_predict or values.export_dir):
                return result
        else:
            path = checkpoint.choose_checkpoint(values.init_checkpoint, values.output_dir)
        with Classifier(job.config, len(job.labels), path, job.options) as model:
            if values.do_eval:
                result = run_eval(job, model)
            if values.do_predict:
                run_predict(job, model)
            if values.export_dir:
                names = ("input_ids", "input_mask", "segment_ids")
                model.export(values.export_dir, names, ("logits", "probabilities"))
        return result


def cli() -> None:
    """The console entry point."""
    runner.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    cli()
