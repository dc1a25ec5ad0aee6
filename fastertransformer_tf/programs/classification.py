"""Trains, evaluates, runs and exports a BERT for whole texts: run_classifier_wrap."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from fastertransformer_tf import google_bert, spec
from fastertransformer_tf.checkpoints import reading, restoring
from fastertransformer_tf.data import glue, glue_features, glue_metrics
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic
from fastertransformer_tf.models import heads, modeling
from fastertransformer_tf.programs import (
    batch_runs,
    calibration,
    checked_inputs,
    cli,
    fine_tuning,
    inference,
    model_flags,
    path_flags,
    reports,
)
from fastertransformer_tf.training import tasks
from fastertransformer_tf.training.folder import TrainingFolder

_tf1 = tf.compat.v1
_OWNER = "fastertransformer_tf.run_classifier_wrap"
_REQUIRED = ("data_dir", "task_name", "vocab_file", "bert_config_file", "output_dir")
_PATHS = (
    "data_dir",
    "vocab_file",
    "bert_config_file",
    "output_dir",
    "init_checkpoint",
    "teacher",
    "export_dir",
    "output_logits",
)
# Flags of own tasks alone.
_OWN_TASK = ("labels", "text_a_column", "text_b_column", "label_column")
_POSITIVE = (
    "train_batch_size",
    "eval_batch_size",
    "predict_batch_size",
    "save_checkpoints_steps",
)
_HELP = (
    model_flags.TPU_HELP
    | model_flags.MODEL_HELP
    | {
        "task_name": f"The task: {', '.join(glue.TASKS)}; mnli-mm is MNLI with the mismatched dev "
        f"and test sets. {glue.TSV}: an own one of --labels, with train.tsv, dev.tsv and test.tsv, "
        "whose first lines name the columns.",
        "output_dir": "The folder where results are written.",
        "do_train": "Fine-tune, with --if_quant for int8; checkpoints go to --output_dir, and the "
        "same command goes on after a kill.",
    }
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    model_flags.define_encoder_flags(flag_values, _OWNER)
    model_flags.define_export_flag(flag_values, _OWNER)
    calibration.define_flags(flag_values, _OWNER)
    fine_tuning.define_flags(flag_values, _OWNER)
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string(
        "output_logits",
        None,
        "Also write the evaluated logits, float32 [examples, classes], to this .npy file.",
    )
    own = f"--task_name={glue.TSV}:"
    define.string(
        "labels", None, f"{own} the labels in the order of the model's outputs, commas between."
    )
    define.string(
        "text_a_column", "text_a", f"{own} the column of the text, or of the first of two."
    )
    define.string(
        "text_b_column",
        None,
        f"{own} the column of the second text; default: text_b, where a file has one of that name.",
    )
    define.string(
        "label_column", "label", f"{own} the column of the label, in train.tsv and dev.tsv."
    )
    google_bert.define_google_flags("run_classifier", flag_values, _OWNER, _HELP)


class Classifier(inference.Model):
    """A BERT with run_classifier.py's head restored from a checkpoint.

    Its inputs are `glue_features`' arrays; its outputs loss, per_example_loss, logits and, of a
    classification, probabilities.

    Attributes:
      global_step: Training step of its checkpoint.
    """

    def __init__(
        self,
        config: Any,
        num_labels: int,
        source: reading.Checkpoint | str,
        options: modeling.EncoderOptions,
        session_config: Any = None,
        *,
        is_regression: bool = False,
    ) -> None:
        """Builds the graph with unknown batch size and length.

        Args:
          config: A BertConfig.
          num_labels: Outputs of the head, C.
          source: The checkpoint or its prefix.
          options: How the encoder is built.
          session_config: A ConfigProto; that of `sessions.session_config` when None.
          is_regression: The one output is the number that is asked for.

        Raises:
          FileNotFoundError: There is no such checkpoint.
          UserError: It does not fit the model.
        """
        if isinstance(source, str):
            source = reading.Checkpoint(source)
        self.global_step = source.global_step()
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            inputs = {
                name: _tf1.placeholder(tf.int32, [None, None], name) for name in spec.MODEL_INPUTS
            }
            labels = tf.float32 if is_regression else tf.int32
            inputs["label_ids"] = _tf1.placeholder(labels, [None], "label_ids")
            outputs_of = heads.value_outputs if is_regression else heads.class_outputs
            with restoring.restored_variables(source, options.floatx) as restored:
                logits = heads.sequence_logits(
                    config,
                    False,
                    inputs["input_ids"],
                    inputs["input_mask"],
                    inputs["segment_ids"],
                    num_labels,
                )
                outputs = outputs_of(logits, inputs["label_ids"])
        super().__init__(graph, inputs, outputs, restored, session_config)


def evaluate(task: glue.Task, label_ids: np.ndarray, run: batch_runs.BatchRun) -> dict[str, Any]:
    """Computes what google's program does, and the task's metrics in GLUE.

    Args:
      task: Its metrics.
      label_ids: int32 [examples], or float32 the numbers of a regression.
      run: With logits, per_example_loss and loss.

    Returns:
      eval_METRIC of each of the task's metrics, eval_loss (mean over examples) and loss (mean over
      batches).
    """
    found = glue_metrics.evaluate(task, label_ids, run.outputs["logits"])
    result = {f"eval_{name}": np.float32(value) for name, value in found.items()}
    result["eval_loss"] = np.float32(run.outputs["per_example_loss"].mean(dtype=np.float64))
    result["loss"] = np.float32(run.outputs["loss"].mean(dtype=np.float64))
    return result


@dataclasses.dataclass
class Job:
    """What training, evaluation and prediction share: the checked command line.

    Attributes:
      values: The parsed flags.
      task: Its labels, files and metrics.
      config: The BertConfig.
      tokenizer: The FullTokenizer.
      options: How the encoder is built.
      source: The checkpoint to run, or for a training to start from.
      examples: "train", "dev" and "test", as the flags ask, to the examples.
    """

    values: flags.FlagValues
    task: glue.Task
    config: Any
    tokenizer: Any
    options: modeling.EncoderOptions
    source: reading.Checkpoint | None
    examples: dict[str, list[Any]]

    def features(self, which: str) -> dict[str, np.ndarray]:
        """Tokenizes one of the sets of examples; see `glue_features.make_features`."""
        return self.tokenized(self.examples[which])

    def classifier(
        self,
        source: reading.Checkpoint,
        options: modeling.EncoderOptions,
        session_config: Any = None,
    ) -> Classifier:
        """Builds the task's model; see `Classifier`."""
        return Classifier(
            self.config,
            self.task.num_outputs,
            source,
            options,
            session_config,
            is_regression=self.task.is_regression,
        )

    def tokenized(self, examples: list[Any]) -> dict[str, np.ndarray]:
        """Tokenizes examples; see `glue_features.make_features`."""
        return glue_features.make_features(
            examples, self.task.get_labels(), self.values.max_seq_length, self.tokenizer
        )


def prepare(values: flags.FlagValues) -> Job:
    """Checks the command line, loads what it names and reads all the data.

    Whatever can be found wrong is found here, before hours of work.

    Raises:
      UserError: A flag is missing, wrong, or not in this version; a file is not as expected.
      OSError: A file is not there or cannot be read.
    """
    options, task = _check_flags(values)
    config = checked_inputs.load_config(values.bert_config_file, values.max_seq_length, options)
    tokenizer = checked_inputs.load_tokenizer(values, config)
    examples = {which: task.examples(values.data_dir, which) for which in _needed_sets(values)}
    if task.is_pair or _are_pairs(examples, values.data_dir):
        checked_inputs.check_segments(config, values.bert_config_file)
    if values.do_train:
        checked_inputs.training_options(values, len(examples["train"]))
    source = checked_inputs.check_model(values, config)
    fine_tuning.check(values, config)
    path_flags.make_output_dir(values.output_dir)
    return Job(
        values=values,
        task=task,
        config=config,
        tokenizer=tokenizer,
        options=options,
        source=source,
        examples=examples,
    )


def _are_pairs(examples: Mapping[str, list[Any]], data_dir: str) -> bool:
    """Whether the examples are pairs of texts.

    Raises:
      UserError: Those of one set are, and those of another are not.
    """
    has_pairs = {which: found[0].text_b is not None for which, found in examples.items()}
    if len(set(has_pairs.values())) > 1:
        of_each = ", ".join(
            f"{which} has {'pairs' if pairs else 'single texts'}"
            for which, pairs in has_pairs.items()
        )
        raise UserError(f"--data_dir={data_dir}: {of_each}, expected the same of all sets")
    return any(has_pairs.values())


def _task(values: flags.FlagValues) -> glue.Task:
    """Finds the task, or makes the own one.

    Raises:
      UserError: There is no such task, or flags of own ones are wrong, or given with another.
    """
    name = values.task_name.lower()
    if name == glue.TSV:
        cli.require_flags(values, ["labels"])
        return glue.tsv_task(
            values.labels.split(","),
            values.text_a_column,
            values.text_b_column or None,
            values.label_column,
        )
    if name not in glue.TASKS:
        raise UserError(
            f"--task_name={values.task_name}, expected {', '.join(glue.TASKS)}, {glue.TSV}"
        )
    for flag in _OWN_TASK:
        if values[flag].present:
            raise UserError(f"--{flag} is of --task_name={glue.TSV}, but --task_name={name}")
    return glue.TASKS[name]


def _needed_sets(values: flags.FlagValues) -> list[str]:
    """Which sets of examples the flags ask for."""
    needed = []
    if values.do_train or values.do_calib:
        needed.append(glue.TRAIN)
    if values.do_eval:
        needed.append(glue.DEV)
    if values.do_predict:
        needed.append(glue.TEST)
    return needed


def _check_flags(values: flags.FlagValues) -> tuple[modeling.EncoderOptions, glue.Task]:
    """Checks what the flags say by themselves; returns how the encoder is built, and the task."""
    path_flags.check_paths(values, _PATHS)
    checked_inputs.complete_model_flags(values)
    cli.require_flags(values, _REQUIRED)
    options = checked_inputs.encoder_options(values)
    checked_inputs.check_training_flags(values)
    if not any((values.do_train, values.do_calib, values.do_eval, values.do_predict)):
        if not values.export_dir:
            raise UserError(
                "nothing to do: give --do_train, --do_calib, --do_eval, --do_predict or "
                "--export_dir"
            )
    calibration.options(values)
    model_flags.require_positive(values, _POSITIVE)
    if values.max_seq_length < 3:
        raise UserError(
            f"--max_seq_length={values.max_seq_length}, expected at least 3: [CLS] and two [SEP]"
        )
    task = _task(values)
    for which in _needed_sets(values):
        task.require(which)
    if not os.path.isdir(values.data_dir):
        raise FileNotFoundError(f"--data_dir={values.data_dir} is not a folder")
    if values.output_logits:
        if not values.do_eval:
            raise UserError("--output_logits needs --do_eval")
        path_flags.check_output_file(values.output_logits, "output_logits")
    path_flags.check_export_dir(values.export_dir)
    return options, task


def run_eval(job: Job, model: Classifier) -> dict[str, Any]:
    """Evaluates the dev set, writes eval_results.txt and prints a table.

    Returns:
      The metrics, as in the file.
    """
    values = job.values
    features = job.features("dev")
    run = model.run(features, values.eval_batch_size, "eval")
    result = evaluate(job.task, features["label_ids"], run)
    result["global_step"] = model.global_step
    text = "".join(f"{key} = {result[key]!s}\n" for key in sorted(result))
    atomic.write_text(os.path.join(values.output_dir, "eval_results.txt"), text)
    if values.output_logits:
        with atomic.atomic_path(values.output_logits) as path, path.open("wb") as file:
            np.save(file, run.outputs["logits"])
    rows: dict[str, object] = {
        glue_metrics.TITLES[name]: result[f"eval_{name}"] for name in job.task.metrics
    }
    rows["loss"] = result["eval_loss"]
    title = f"{job.task.name.upper()} evaluation"
    reports.report(title, reports.encoder_name(job.options), rows, run, values.eval_batch_size)
    return result


def run_predict(job: Job, model: Classifier) -> np.ndarray:
    """Predicts the test set, writes test_results.tsv and prints a table.

    Returns:
      What is in the file, float32 [examples, C]: probabilities, or a regression's numbers.
    """
    values = job.values
    run = model.run(job.features("test"), values.predict_batch_size, "predict")
    predicted = run.outputs["logits" if job.task.is_regression else "probabilities"]
    text = "".join("\t".join(str(p) for p in row) + "\n" for row in predicted)
    atomic.write_text(os.path.join(values.output_dir, "test_results.tsv"), text)
    title = f"{job.task.name.upper()} prediction"
    reports.report(title, reports.encoder_name(job.options), {}, run, values.predict_batch_size)
    return predicted


def run_train(job: Job) -> str:
    """Fine-tunes on the train set; returns the last checkpoint."""
    values = job.values
    with TrainingFolder(values.output_dir) as folder:
        features = job.features("train")
        config = fine_tuning.training_config(values, job.config)
        task = (
            tasks.regression(config)
            if job.task.is_regression
            else tasks.classifier(config, job.task.num_outputs)
        )
        return fine_tuning.run(
            values,
            config,
            task,
            features,
            len(features["label_ids"]),
            folder,
            {"task": job.task.name},
        )


def run_calib(job: Job, source: reading.Checkpoint) -> str:
    """Calibrates a checkpoint on the train set; returns the prefix of the new one."""
    features = job.tokenized(calibration.choose_examples(job.examples["train"], job.values))
    return calibration.calibrate(job.classifier, source, features, job.values)


def run(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the program with parsed flags.

    Returns:
      The metrics of the evaluation; empty without --do_eval.

    Raises:
      UserError: A flag is missing, wrong, or not in this version.
      FileNotFoundError: A file is not there.
    """
    with google_bert.bound_flags(values):
        job = prepare(values)
        result: dict[str, Any] = {}
        if values.do_train:
            source = reading.Checkpoint(run_train(job))
        else:
            assert job.source is not None
            source = job.source
        if values.do_calib:
            calibrated = reading.Checkpoint(run_calib(job, source))
            source = calibrated if values.if_quant else source
        if not (values.do_eval or values.do_predict or values.export_dir):
            return result
        if values.if_quant:
            job.options = calibration.simulated_encoder(source, calibration.options(values))
        with job.classifier(source, job.options) as model:
            if values.do_eval:
                result = run_eval(job, model)
            if values.do_predict:
                run_predict(job, model)
            if values.export_dir:
                names = spec.MODEL_INPUTS
                outputs = [n for n in ("logits", "probabilities") if n in model.outputs]
                model.export(values.export_dir, names, outputs)
        return result
