"""google-research BERT's run_squad with a fast encoder: SQuAD v1.1 and v2.0.

Takes the flags of google's run_squad.py and --floatx, --remove_padding, --int8_mode and
--allow_gemm_test. --do_train fine-tunes with TensorFlow's own transformer and saves checkpoints in
--output_dir; --do_predict writes predictions.json and nbest_predictions.json there, for
--version_2_with_negative also null_odds.json. --export_dir gets a SavedModel to serve.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from absl import flags

from fastertransformer_tf import bert_compat, checkpoint, modeling, runner, squad, training
from fastertransformer_tf.errors import UserError

_tf1 = tf.compat.v1
_OWNER = "fastertransformer_tf.run_squad_wrap"
_REQUIRED = ("vocab_file", "bert_config_file", "output_dir")
_HELP = runner.TPU_HELP | {
    "init_checkpoint": "Checkpoint to start from (--do_train) or to run (--do_predict alone); "
    "without it the latest one in --output_dir.",
}


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    runner.define_encoder_flags(flag_values, _OWNER)
    runner.define_export_flag(flag_values, _OWNER)
    bert_compat.define_google_flags("run_squad", flag_values, _OWNER, _HELP)


def create_model(
    config: Any, input_ids: tf.Tensor, input_mask: tf.Tensor, segment_ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Builds BertModel and the SQuAD head in `floatx`, for inference; logits in float32.

    Source: google-research/bert run_squad.py, create_model; the same variables
    `cls/squad/output_weights` and `cls/squad/output_bias`.

    Args:
      config: A BertConfig.
      input_ids: int32 [B,S].
      input_mask: int32 [B,S], 1 for real tokens.
      segment_ids: int32 [B,S].

    Returns:
      start_logits and end_logits, float32 [B,S].
    """
    model = bert_compat.modeling().BertModel(
        config=config,
        is_training=False,
        input_ids=input_ids,
        input_mask=input_mask,
        token_type_ids=segment_ids,
        use_one_hot_embeddings=False,
    )
    hidden = model.get_sequence_output()
    weights = _tf1.get_variable("cls/squad/output_weights", [2, hidden.shape[-1]], hidden.dtype)
    bias = _tf1.get_variable("cls/squad/output_bias", [2], hidden.dtype)
    logits = tf.cast(tf.einsum("bsh,ch->cbs", hidden, weights), tf.float32)
    logits += tf.cast(bias, tf.float32)[:, tf.newaxis, tf.newaxis]
    return logits[0], logits[1]


class QuestionAnswerer(runner.Model):
    """A BERT with SQuAD head restored as constants.

    Its inputs are input_ids, input_mask, segment_ids, int32 [B,S]; its outputs start_logits and
    end_logits, float32 [B,S]: those of padding mean nothing.
    """

    def __init__(self, config: Any, checkpoint_path: str, options: modeling.EncoderOptions) -> None:
        """Builds the graph with unknown batch size and length.

        Args:
          config: A BertConfig.
          checkpoint_path: Prefix of a checkpoint in any float type; cast to `options.floatx`.
          options: How the encoder is built.

        Raises:
          FileNotFoundError: There is no such checkpoint.
          UserError: It does not fit the model.
        """
        with tf.Graph().as_default() as graph:
            inputs = {
                name: _tf1.placeholder(tf.int32, [None, None], name)
                for name in ("input_ids", "input_mask", "segment_ids")
            }
            with (
                modeling.encoder_options(options),
                checkpoint.restored_constants(checkpoint_path, options.floatx),
            ):
                start_logits, end_logits = create_model(config, *inputs.values())
        outputs = {"start_logits": start_logits, "end_logits": end_logits}
        super().__init__(graph, inputs, outputs)


def squad_options(values: flags.FlagValues) -> squad.SquadOptions:
    """Makes the options of parsed flags.

    Raises:
      UserError: A value is out of range.
    """
    names = squad.SquadOptions.__dataclass_fields__
    return squad.SquadOptions(**{name: getattr(values, name) for name in names})


def run(values: flags.FlagValues) -> dict[str, str]:
    """Runs the program with parsed flags.

    Returns:
      Question id to answer; empty without --do_predict.

    Raises:
      UserError: A flag is missing, wrong, or does not go with another.
      FileNotFoundError: A file is not there.
    """
    with bert_compat.bound_flags(values):
        runner.require_flags(values, _REQUIRED)
        encoder = runner.encoder_options(values)
        runner.check_training_flags(values)
        if not (values.do_train or values.do_predict or values.export_dir):
            raise UserError("nothing to do: give --do_train, --do_predict or --export_dir")
        runner.check_export_dir(values.export_dir)
        for job, file in (("do_train", "train_file"), ("do_predict", "predict_file")):
            if getattr(values, job):
                runner.require_flags(values, [file])
                runner.require_file(getattr(values, file), file)
        options = squad_options(values)
        config = runner.load_config(values.bert_config_file, values.max_seq_length)
        tokenizer = runner.load_tokenizer(values)
        runner.make_output_dir(values.output_dir)
        path = None
        if values.do_train:
            path = _train(values, config, tokenizer, options)
        if not (values.do_predict or values.export_dir):
            return {}
        path = path or checkpoint.choose_checkpoint(values.init_checkpoint, values.output_dir)
        answers: dict[str, str] = {}
        with QuestionAnswerer(config, path, encoder) as model:
            if values.do_predict:
                data = squad.load(values.predict_file, tokenizer, options, is_training=False)
                answers = _predict(values, model, data, options, encoder)
            if values.export_dir:
                model.export(values.export_dir, model.inputs, model.outputs)
        return answers


def _predict(
    values: flags.FlagValues,
    model: QuestionAnswerer,
    data: squad.SquadData,
    options: squad.SquadOptions,
    encoder: modeling.EncoderOptions,
) -> dict[str, str]:
    """Answers --predict_file and prints a table; returns question id to answer."""
    result = model.run(data.arrays, values.predict_batch_size, "predict")
    answers = squad.write_predictions(
        data,
        result.outputs["start_logits"],
        result.outputs["end_logits"],
        options,
        values.output_dir,
    )
    rows = {"questions": len(answers)}
    runner.report("SQuAD prediction", encoder, rows, result, values.predict_batch_size)
    return answers


def _train(
    values: flags.FlagValues, config: Any, tokenizer: Any, options: squad.SquadOptions
) -> str:
    """Fine-tunes on --train_file; returns the last checkpoint."""
    data = squad.load(values.train_file, tokenizer, options, is_training=True)
    return training.train(
        training.squad_loss(config),
        data.arrays,
        runner.training_options(values, len(data.examples)),
        values.output_dir,
        init_checkpoint=values.init_checkpoint,
        settings={
            "task": "squad",
            "max_seq_length": values.max_seq_length,
            "doc_stride": values.doc_stride,
            "version_2_with_negative": values.version_2_with_negative,
        },
    )


def cli() -> None:
    """The console entry point."""
    runner.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    cli()
