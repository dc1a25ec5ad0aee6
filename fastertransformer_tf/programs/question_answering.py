"""Trains, runs and exports a BERT for SQuAD: run_squad_wrap."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from fastertransformer_tf import google_bert, spec
from fastertransformer_tf.checkpoints import reading, restoring
from fastertransformer_tf.data import squad_answers, squad_files, squad_scores, squad_windows
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import heads, modeling
from fastertransformer_tf.programs import (
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
_OWNER = "fastertransformer_tf.run_squad_wrap"
_REQUIRED = ("vocab_file", "bert_config_file", "output_dir")
_PATHS = (*_REQUIRED, "init_checkpoint", "teacher", "train_file", "predict_file", "export_dir")
_POSITIVE = ("train_batch_size", "predict_batch_size", "save_checkpoints_steps")
_HELP = model_flags.TPU_HELP | model_flags.MODEL_HELP


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    model_flags.define_encoder_flags(flag_values, _OWNER)
    model_flags.define_export_flag(flag_values, _OWNER)
    calibration.define_flags(flag_values, _OWNER)
    fine_tuning.define_flags(flag_values, _OWNER)
    google_bert.define_google_flags("run_squad", flag_values, _OWNER, _HELP)


class QuestionAnswerer(inference.Model):
    """A BERT with SQuAD head restored from a checkpoint.

    Its inputs are input_ids, input_mask, segment_ids, int32 [B,S]; its outputs start_logits and
    end_logits, float32 [B,S]: those of padding mean nothing.
    """

    def __init__(
        self,
        config: Any,
        source: reading.Checkpoint | str,
        options: modeling.EncoderOptions,
    ) -> None:
        """Builds the graph with unknown batch size and length.

        Args:
          config: A BertConfig.
          source: A checkpoint, or its prefix, in any float type; cast to `options.floatx`.
          options: How the encoder is built.

        Raises:
          FileNotFoundError: There is no such checkpoint.
          UserError: It does not fit the model.
        """
        with tf.Graph().as_default() as graph:
            inputs = {
                name: _tf1.placeholder(tf.int32, [None, None], name) for name in spec.MODEL_INPUTS
            }
            with (
                modeling.encoder_options(options),
                restoring.restored_variables(source, options.floatx) as restored,
            ):
                start_logits, end_logits = heads.span(config, *inputs.values())
        outputs = {"start_logits": start_logits, "end_logits": end_logits}
        super().__init__(graph, inputs, outputs, restored)


def squad_options(values: flags.FlagValues) -> squad_files.SquadOptions:
    """Makes the options of parsed flags.

    Raises:
      UserError: A value is out of range.
    """
    names = squad_files.SquadOptions.__dataclass_fields__
    return squad_files.SquadOptions(**{name: getattr(values, name) for name in names})


def run(values: flags.FlagValues) -> dict[str, str]:
    """Runs the program with parsed flags.

    Returns:
      Question id to answer; empty without --do_predict.

    Raises:
      UserError: A flag is missing, wrong, or does not go with another.
      FileNotFoundError: A file is not there.
    """
    with google_bert.bound_flags(values):
        job = prepare(values)
        source = job.source
        if values.do_train:
            source = reading.Checkpoint(_train(job))
        if values.do_calib:
            assert source is not None
            calibrated = reading.Checkpoint(_calibrate(job, source))
            source = calibrated if values.if_quant else source
        if not (values.do_predict or values.export_dir):
            return {}
        assert source is not None
        if values.if_quant:
            job.encoder = calibration.simulated_encoder(source, calibration.options(values))
        answers: dict[str, str] = {}
        with QuestionAnswerer(job.config, source, job.encoder) as model:
            if values.do_predict:
                answers = _predict(job, model)
            if values.export_dir:
                model.export(values.export_dir, model.inputs, model.outputs)
        return answers


@dataclasses.dataclass
class Job:
    """The checked command line.

    Attributes:
      values: The parsed flags.
      options: How SQuAD is cut into windows and answered.
      encoder: How the encoder is built.
      config: The BertConfig.
      tokenizer: The FullTokenizer.
      source: The checkpoint to run, or for a training to start from.
      questions: "train_file" and "predict_file", as the flags ask, to examples and how many were
        left out.
    """

    values: flags.FlagValues
    options: squad_files.SquadOptions
    encoder: modeling.EncoderOptions
    config: Any
    tokenizer: Any
    source: reading.Checkpoint | None
    questions: dict[str, tuple[list[Any], int]]

    def windows(self, file: str) -> squad_windows.SquadData:
        """Cuts the paragraphs of "train_file" or "predict_file" into windows."""
        return squad_windows.make_windows(
            *self.questions[file],
            self.tokenizer,
            self.options,
            is_training=file == "train_file",
        )


def prepare(values: flags.FlagValues) -> Job:
    """Checks the command line, loads what it names and reads all questions.

    Whatever can be found wrong is found here, before hours of work.

    Raises:
      UserError: A flag is missing, wrong, or does not go with another; a file is not as expected.
      OSError: A file is not there or cannot be read.
    """
    path_flags.check_paths(values, _PATHS)
    checked_inputs.complete_model_flags(values)
    cli.require_flags(values, _REQUIRED)
    encoder = checked_inputs.encoder_options(values)
    checked_inputs.check_training_flags(values)
    if not any((values.do_train, values.do_calib, values.do_predict, values.export_dir)):
        raise UserError("nothing to do: give --do_train, --do_calib, --do_predict or --export_dir")
    model_flags.require_positive(values, _POSITIVE)
    calibration.options(values)
    files = ["train_file"] if values.do_train or values.do_calib else []
    files += ["predict_file"] if values.do_predict else []
    cli.require_flags(values, files)
    for file in files:
        path_flags.require_file(getattr(values, file), file)
    path_flags.check_export_dir(values.export_dir)
    options = squad_options(values)
    config = checked_inputs.load_config(values.bert_config_file, values.max_seq_length, encoder)
    checked_inputs.check_segments(config, values.bert_config_file)
    tokenizer = checked_inputs.load_tokenizer(values, config)
    questions = {
        file: squad_files.read_examples(
            getattr(values, file), options, is_training=file == "train_file"
        )
        for file in files
    }
    if values.do_train:
        checked_inputs.training_options(values, len(questions["train_file"][0]))
    source = checked_inputs.check_model(values, config)
    fine_tuning.check(values, config)
    path_flags.make_output_dir(values.output_dir)
    return Job(values, options, encoder, config, tokenizer, source, questions)


def _predict(job: Job, model: QuestionAnswerer) -> dict[str, str]:
    """Answers --predict_file and prints a table; returns question id to answer."""
    values = job.values
    data = job.windows("predict_file")
    if not data.windows:  # All paragraphs are blank.
        nothing = np.zeros(data.arrays["input_ids"].shape, np.float32)
        return squad_answers.write_predictions(
            data, nothing, nothing, job.options, values.output_dir
        )
    result = model.run(data.arrays, values.predict_batch_size, "predict")
    answers = squad_answers.write_predictions(
        data,
        result.outputs["start_logits"],
        result.outputs["end_logits"],
        job.options,
        values.output_dir,
    )
    rows: dict[str, object] = {"questions": len(answers)}
    rows |= squad_scores.known_scores(values.predict_file, answers, job.options, values.output_dir)
    reports.report(
        "SQuAD prediction",
        reports.encoder_name(job.encoder),
        rows,
        result,
        values.predict_batch_size,
    )
    return answers


def _calibrate(job: Job, source: reading.Checkpoint) -> str:
    """Calibrates a checkpoint on --train_file; returns the prefix of the new one."""
    questions, dropped = job.questions["train_file"]
    data = squad_windows.make_windows(
        calibration.choose_examples(questions, job.values),
        dropped,
        job.tokenizer,
        job.options,
        is_training=True,
    )

    def build(source: reading.Checkpoint, encoder: modeling.EncoderOptions) -> inference.Model:
        return QuestionAnswerer(job.config, source, encoder)

    return calibration.calibrate(build, source, data.arrays, job.values)


def _train(job: Job) -> str:
    """Fine-tunes on --train_file; returns the last checkpoint."""
    values = job.values
    with TrainingFolder(values.output_dir) as folder:
        data = job.windows("train_file")
        config = fine_tuning.training_config(values, job.config)
        return fine_tuning.run(
            values,
            config,
            tasks.squad(config),
            data.arrays,
            len(data.examples),
            folder,
            {
                "task": "squad",
                "doc_stride": values.doc_stride,
                "max_query_length": values.max_query_length,
                "version_2_with_negative": values.version_2_with_negative,
            },
        )
