"""What the programs that run or train a model load, checked before hours of work."""

from __future__ import annotations

import os
from typing import Any

from absl import flags

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config, paths, vocabulary
from fastertransformer_tf.models import bert_compat, modeling
from fastertransformer_tf.programs import path_flags
from fastertransformer_tf.quantization import points
from fastertransformer_tf.training import settings
from fastertransformer_tf.training.options import TrainingOptions

# Flag to what the file is called beside a checkpoint.
_MODEL_FILES = {"vocab_file": bert_config.VOCAB_NAME, "bert_config_file": bert_config.CONFIG_NAME}


def complete_model_flags(flag_values: flags.FlagValues) -> None:
    """Sets what --init_checkpoint tells by itself, so that all that comes finds it in the flags.

    A folder becomes the prefix of its checkpoint. --vocab_file and --bert_config_file, where they
    are not given, become the files beside the checkpoint, and each is told. Without a checkpoint
    nothing is set.

    Raises:
      FileNotFoundError: There is no checkpoint beside which they could be.
      UserError: A folder has several, or there is no such file beside the checkpoint.
    """
    checkpoint = flag_values.init_checkpoint
    if not checkpoint:
        return
    missing = [flag for flag in _MODEL_FILES if not flag_values[flag].value]
    if missing or os.path.isdir(checkpoint):
        checkpoint = flag_values["init_checkpoint"].value = reading.prefix_of(checkpoint)
    for flag in missing:
        path = flag_values[flag].value = file_beside(checkpoint, flag)
        print(f"{flag}: {path} (beside --init_checkpoint)")


def file_beside(checkpoint: str, flag: str) -> str:
    """Returns the path of a model's file in the folder of its checkpoint.

    Args:
      checkpoint: Its prefix.
      flag: "vocab_file" or "bert_config_file".

    Raises:
      UserError: There is none.
    """
    path = os.path.join(os.path.dirname(checkpoint), _MODEL_FILES[flag])
    if not os.path.isfile(path):
        raise UserError(
            f"--init_checkpoint={checkpoint} has no {_MODEL_FILES[flag]} beside it: give --{flag}, "
            f"for {path} is not there"
        )
    return path


def encoder_options(flag_values: flags.FlagValues) -> modeling.EncoderOptions:
    """Makes the options of parsed flags.

    Raises:
      UserError: A combination that does not go together.
    """
    if flag_values.use_tensorflow_transformer and flag_values.allow_gemm_test:
        raise UserError(
            "--allow_gemm_test is of the op, but --use_tensorflow_transformer was asked for: leave "
            "one of the two out"
        )
    try:
        return modeling.EncoderOptions(
            floatx=flag_values.floatx,
            remove_padding=flag_values.remove_padding,
            int8_mode=flag_values.int8_mode,
            fp8_mode=flag_values.fp8_mode,
            allow_gemm_test=flag_values.allow_gemm_test,
            use_tensorflow=flag_values.use_tensorflow_transformer,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def refuse_tpu(flag_values: flags.FlagValues) -> None:
    """Refuses --use_tpu.

    Raises:
      UserError: It is true.
    """
    if flag_values.use_tpu:
        raise UserError("--use_tpu=true: there is no TPU support, expected false")


def check_training_flags(flag_values: flags.FlagValues) -> None:
    """Refuses flags of google's programs that nothing here can follow.

    --remove_padding and the other flags of the op are no matter of training, which TensorFlow's own
    transformer does; what comes after it in the same run follows them.

    Raises:
      UserError: --use_tpu, or --do_train in another type than float32.
    """
    refuse_tpu(flag_values)
    if flag_values.do_train and flag_values.floatx != "float32":
        raise UserError(
            f"--do_train trains float32 weights, but --floatx={flag_values.floatx}: leave it out, "
            "--mixed_precision computes in bfloat16, and run the checkpoint in another type then"
        )


def training_options(flag_values: flags.FlagValues, num_examples: int) -> TrainingOptions:
    """Makes the options of a training over `num_examples` of google's flags.

    Raises:
      UserError: A value is out of range.
    """
    return TrainingOptions.from_epochs(
        num_examples,
        flag_values.num_train_epochs,
        flag_values.warmup_proportion,
        flag_values.train_batch_size,
        learning_rate=flag_values.learning_rate,
        save_checkpoints_steps=flag_values.save_checkpoints_steps,
        seed=flag_values.seed,
        mixed_precision=flag_values.mixed_precision,
    )


def training_settings(flag_values: flags.FlagValues, config: Any) -> dict[str, Any]:
    """What changes a training's result beside its options, data and first checkpoint.

    The data are compared as arrays; vocabulary and case are told apart for the message.
    """
    return {
        "max_seq_length": flag_values.max_seq_length,
        "do_lower_case": flag_values.do_lower_case,
        "warmup_proportion": flag_values.warmup_proportion,
        "vocab_file": settings.file_hash(flag_values.vocab_file),
        **{f"bert_config {key}": value for key, value in sorted(vars(config).items())},
    }


def load_tokenizer(flag_values: flags.FlagValues, config: Any) -> Any:
    """`make_tokenizer` by a program's parsed flags."""
    return make_tokenizer(
        flag_values.vocab_file, flag_values.do_lower_case, flag_values.init_checkpoint, config
    )


def make_tokenizer(
    vocab_file: str, do_lower_case: bool, init_checkpoint: str | None, config: Any
) -> Any:
    """Makes google's FullTokenizer.

    Args:
      vocab_file: The vocabulary.
      do_lower_case: Whether it is of lower case.
      init_checkpoint: The checkpoint whose name may say which case it needs; None for none.
      config: The BertConfig that the ids are for.

    Raises:
      FileNotFoundError: There is no such vocabulary.
      UserError: It is no vocabulary of the model, or the case does not go with what the
        checkpoint's name says.
    """
    path_flags.require_file(vocab_file, "vocab_file")
    tokenization = google_bert.tokenization()
    try:
        tokenization.validate_case_matches_checkpoint(do_lower_case, init_checkpoint)
    except ValueError as error:
        raise UserError(
            f"--do_lower_case={str(do_lower_case).lower()} does not go with --init_checkpoint="
            f"{init_checkpoint}: google's model of that name needs "
            f"{'false' if do_lower_case else 'true'}"
        ) from error
    tokenizer = tokenization.FullTokenizer(vocab_file, do_lower_case)
    vocabulary.check(tokenizer.vocab, config.vocab_size, f"--vocab_file={vocab_file}")
    return tokenizer


def load_config(
    path: str, max_seq_length: int, options: modeling.EncoderOptions | None = None
) -> Any:
    """Reads bert_config.json and checks it against the sequence length and the encoder.

    Args:
      path: The file.
      max_seq_length: Tokens of a sequence.
      options: The encoder that is to run it; None: not checked.

    Returns:
      A BertConfig.

    Raises:
      FileNotFoundError: It is not there.
      UserError: It is no BERT configuration, max_seq_length does not fit, or the op has not its
        activation.
    """
    path_flags.require_file(path, "bert_config_file")
    config = bert_compat.modeling().BertConfig.from_dict(bert_config.load(path))
    if not 1 <= max_seq_length <= config.max_position_embeddings:
        raise UserError(
            f"--max_seq_length={max_seq_length}, expected 1 to {config.max_position_embeddings}: "
            "the position embeddings of the model"
        )
    if options is not None and not options.use_tensorflow:
        try:
            modeling.op_activation(config.hidden_act)
        except ValueError as error:
            raise UserError(f"--bert_config_file={path}: {error}") from error
    return config


def check_model(flag_values: flags.FlagValues, config: Any) -> reading.Checkpoint | None:
    """Opens the checkpoint that a program starts from or runs, before anything else is done.

    Args:
      flag_values: The program's parsed flags; with do_train it starts from --init_checkpoint.
      config: The BertConfig.

    Returns:
      The checkpoint; None where a training starts from random weights.

    Raises:
      OSError: There is none.
      UserError: It cannot be used, or its embeddings are not of the configuration's sizes.
    """
    path = flag_values.init_checkpoint
    if not flag_values.do_train:
        path = reading.choose_checkpoint(path, flag_values.output_dir)
    else:
        paths.refuse_pattern(flag_values.output_dir)
    if not path:
        return None
    source = reading.Checkpoint(path)
    check_quantization(
        source, flag_values.int8_mode, flag_values.fp8_mode, is_trained=flag_values.do_train
    )
    bert_config.check_embeddings(
        vars(config), source.shapes, flag_values.bert_config_file, source.path
    )
    return source


def check_quantization(
    source: reading.Checkpoint, int8_mode: int, fp8_mode: int = 0, *, is_trained: bool = False
) -> None:
    """Refuses --int8_mode or --fp8_mode with a float checkpoint and a quantized one without them.

    Args:
      source: The checkpoint.
      int8_mode: 0 for a float model, and with fp8_mode.
      fp8_mode: 0 or 1.
      is_trained: Whether it is to be trained, which an int8 one cannot be.

    Raises:
      UserError: Saying which of the two to change.
    """
    is_quantized = points.FORMAT_VARIABLE in source.shapes
    mode = f"--int8_mode={int8_mode}" if int8_mode else f"--fp8_mode={fp8_mode}"
    if (int8_mode or fp8_mode) and (is_trained or not is_quantized):
        what = "trains a float" if is_trained else "found a float"
        raise UserError(
            f"{mode} {what} checkpoint, {source.path}: calibrate it with "
            "--do_calib, and run what ckpt_quantization makes of it"
        )
    if is_quantized and not (int8_mode or fp8_mode):
        raise UserError(
            f"checkpoint {source.path} is quantized, expected a float one, or --int8_mode=1 or 2"
        )
    if is_quantized and int(source.load(points.FORMAT_VARIABLE)) != points.FORMAT:
        raise UserError(
            f"checkpoint {source.path}: {points.FORMAT_VARIABLE} is "
            f"{int(source.load(points.FORMAT_VARIABLE))}, expected {points.FORMAT}: it is of "
            "another version of this package"
        )


def check_segments(config: Any, bert_config_file: str) -> None:
    """Refuses a model that cannot tell two texts apart, for data of two texts.

    google's lookup is a product with a one-hot matrix: it would leave the embedding out.

    Raises:
      UserError: It has fewer than two token types.
    """
    if config.type_vocab_size < 2:
        raise UserError(
            f"{bert_config_file}: type_vocab_size is {config.type_vocab_size}, expected at least 2 "
            "for pairs of texts"
        )
