"""--do_train of the runners: in float32 or as int8 computes, from labels and from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config
from fastertransformer_tf.programs import calibration, checked_inputs, cli
from fastertransformer_tf.quantization import points, quantizers, ranges
from fastertransformer_tf.training import loop
from fastertransformer_tf.training.folder import TrainingFolder
from fastertransformer_tf.training.tasks import Task
from fastertransformer_tf.training.teacher import Distillation


def define_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of training that google's programs have not.

    Args:
      flag_values: Where to define them.
      owner: Name of the program's module, under which --help finds them.
    """
    define = cli.FlagDefiner(flag_values, owner)
    define.integer(
        "seed", 12345, "--do_train: of the order of batches, dropout and new weights.", minimum=0
    )
    define.boolean(
        "mixed_precision",
        "--do_train: compute the encoder in bfloat16, for GPUs that multiply it faster; weights, "
        "optimizer, softmax, layer norms and losses stay float32.",
    )
    define.boolean(
        "dropout",
        "--do_train: drop as bert_config.json says; --nodropout takes its two probabilities for 0, "
        "which a student needs that shall be as its teacher.",
        default=True,
    )
    define.boolean("distillation", "--do_train: learn from the logits of --teacher, too.")
    define.string(
        "teacher",
        None,
        "--distillation: a float checkpoint of the same task and --bert_config_file, such as the "
        "fine-tuned one that was calibrated: its prefix, or a folder.",
    )
    define.number(
        "distillation_loss_scale",
        10000.0,
        "--distillation: what is added to the loss of the labels is this times the divergence "
        "from the teacher.",
        0.0,
        1e30,
    )
    for name, of in (("hidden_states", "outputs"), ("attention", "attention scores")):
        define.string(
            f"distill_{name}",
            None,
            f"--distillation: layers whose {of} are compared with the teacher's, too: numbers from "
            f"1 with commas between, or all{', 0 for the embeddings' * (of == 'outputs')}.",
        )
        define.number(
            f"{name}_loss_scale",
            1.0,
            f"--distill_{name}: what the mean of their squared errors is multiplied with.",
            0.0,
            1e30,
        )


def check(values: flags.FlagValues, config: Any) -> None:
    """Checks the flags of a training, and the checkpoints that they name, before any work.

    Args:
      values: The program's parsed flags.
      config: The BertConfig.

    Raises:
      UserError: Flags that do not go together, or a checkpoint that is not as needed.
      FileNotFoundError: There is no such checkpoint.
    """
    for name, needed in (
        ("mixed_precision", "do_train"),
        ("distillation", "do_train"),
        ("teacher", "distillation"),
        ("distill_hidden_states", "distillation"),
        ("distill_attention", "distillation"),
    ):
        if values[name].value and not values[needed].value:
            raise UserError(f"--{name} needs --{needed}")
    if not values.dropout and not values.do_train:
        raise UserError("--nodropout needs --do_train: nothing is dropped without it")
    if values.distillation and not values.teacher:
        raise UserError("--distillation needs --teacher")
    if values.do_train and values.if_quant and not values.init_checkpoint:
        raise UserError(
            "--do_train --if_quant needs --init_checkpoint, one that --do_calib calibrated"
        )
    _quantizers(values, config)
    _distillation(values, config)


def training_config(values: flags.FlagValues, config: Any) -> Any:
    """Returns the BertConfig to train with: the given one, or with --nodropout a changed copy."""
    if values.dropout:
        return config
    config = copy.deepcopy(config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config


def _quantizers(values: flags.FlagValues, config: Any) -> quantizers.Quantizers | None:
    """Makes what rounds, by the ranges of --init_checkpoint; None for a float training.

    A training that is resumed has them in its own checkpoint, with the same values: another
    --init_checkpoint is refused.

    Raises:
      UserError: It has no ranges, unusable ones, or an encoder of other sizes.
    """
    if not (values.do_train and values.if_quant):
        return None
    source = reading.Checkpoint(values.init_checkpoint)
    tensors = calibration.kernels_and_ranges(source)
    amax = ranges.point_ranges(tensors)
    sizes = ranges.model_sizes(tensors)
    have = (sizes.layers, sizes.hidden, sizes.inner)
    expected = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    if have != expected:
        raise UserError(
            f"{values.bert_config_file} and {source.path} do not go together: num_hidden_layers, "
            f"hidden_size and intermediate_size are {expected}, in the checkpoint {have}"
        )
    return quantizers.Quantizers(amax, points.QUANT_MODES[values.quant_mode])


def _distillation(values: flags.FlagValues, config: Any) -> Distillation | None:
    """Opens the teacher.

    Raises:
      UserError: It is an int8 one, or of other sizes.
    """
    if not values.distillation:
        return None
    source = reading.Checkpoint(values.teacher)
    if points.FORMAT_VARIABLE in source.shapes:
        raise UserError(f"--teacher: {source.path} is quantized, expected a float checkpoint")
    bert_config.check_embeddings(vars(config), source.shapes, values.bert_config_file, source.path)
    num_layers = config.num_hidden_layers
    return Distillation(
        source,
        values.distillation_loss_scale,
        hidden_states=_layers("distill_hidden_states", values, 0, num_layers),
        hidden_states_scale=values.hidden_states_loss_scale,
        attention=_layers("distill_attention", values, 1, num_layers),
        attention_scale=values.attention_loss_scale,
    )


def _layers(name: str, values: flags.FlagValues, first: int, last: int) -> tuple[int, ...]:
    """Reads a flag of layer numbers; without it there are none, `all` are 1 to the last.

    Raises:
      UserError: It is no list of different numbers from `first` to `last`.
    """
    text = values[name].value or ""
    if text == "all":
        return tuple(range(1, last + 1))
    parts = text.split(",") if text else []
    layers = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    if len(set(layers)) != len(parts) or not all(first <= layer <= last for layer in layers):
        raise UserError(
            f"--{name}={text}, expected all, or different layers from {first} to {last} with "
            "commas between"
        )
    return tuple(sorted(layers))


def run(
    values: flags.FlagValues,
    config: Any,
    task: Task,
    features: Mapping[str, np.ndarray],
    num_examples: int,
    folder: TrainingFolder,
    settings: Mapping[str, Any],
) -> str:
    """Trains as the flags say.

    Args:
      values: The program's parsed flags.
      config: The BertConfig, that of `training_config`.
      task: What is trained.
      features: See `loop.train`.
      num_examples: Of which the steps of an epoch are counted.
      folder: The opened --output_dir.
      settings: What else must be the same to go on.

    Returns:
      The prefix of the last checkpoint.
    """
    distillation = _distillation(values, config)
    return loop.train(
        task,
        features,
        checked_inputs.training_options(values, num_examples),
        folder,
        init_checkpoint=values.init_checkpoint,
        settings=checked_inputs.training_settings(values, config)
        | _settings(values, distillation)
        | dict(settings),
        quantizers=_quantizers(values, config),
        distillation=distillation,
    )


def _settings(values: flags.FlagValues, distillation: Distillation | None) -> dict[str, Any]:
    """What of these flags changes the result; nothing where they are off, as before them."""
    result: dict[str, Any] = {}
    if values.if_quant:
        result["quant_mode"] = values.quant_mode
    if distillation is not None:
        result["teacher"] = f"sha256:{distillation.teacher.content_hash()[:16]}"
        result["distillation_loss_scale"] = distillation.loss_scale
        for name in ("hidden_states", "attention"):
            if getattr(distillation, name):
                result[f"distill_{name}"] = list(getattr(distillation, name))
                result[f"{name}_loss_scale"] = getattr(distillation, f"{name}_scale")
    return result
