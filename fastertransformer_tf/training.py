"""Fine-tunes BERT with TensorFlow's own transformer: AdamW, warm-up, dropout, checkpoints, resume.

The graph, the optimizer (Adam with weight decay 0.01, linear warm-up and decay, gradients clipped
to norm 1) and the checkpoint names are google-research BERT's (modeling.py, optimization.py,
run_classifier.py, run_squad.py). The op of this package has no gradient: it serves what was
trained here.

A training that was killed goes on from its last checkpoint when the same command is given again,
and ends with the very weights that it would have had: the order of batches and what dropout drops
are functions of the seed and the step, and everything else that counts is in the checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from fastertransformer_tf import bert_compat, checkpoint, checkpoint_io, modeling
from fastertransformer_tf.errors import UserError

# Features with one entry a token; their columns past the longest sequence of a batch are cut off.
_TOKEN_FEATURES = ("input_ids", "input_mask", "segment_ids")
_SETTINGS_FILE = "training.json"


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
      train_batch_size: Examples a step.
      num_train_steps: Steps in all.
      num_warmup_steps: Steps in which the learning rate rises from 0.
      learning_rate: Highest learning rate.
      save_checkpoints_steps: Steps from one checkpoint to the next; the last step always saves.
      seed: Of batch order, dropout and new variables.
      keep_checkpoints: Checkpoints that stay in the folder.
    """

    train_batch_size: int = 32
    num_train_steps: int = 1000
    num_warmup_steps: int = 100
    learning_rate: float = 5e-5
    save_checkpoints_steps: int = 1000
    seed: int = 12345
    keep_checkpoints: int = 5

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: One is out of range.
        """
        for name in ("train_batch_size", "num_train_steps", "save_checkpoints_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.num_warmup_steps <= self.num_train_steps:
            raise UserError(
                f"num_warmup_steps is {self.num_warmup_steps}, expected 0 to num_train_steps "
                f"{self.num_train_steps}"
            )
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}, expected more than 0")

    @classmethod
    def from_epochs(
        cls,
        num_examples: int,
        num_train_epochs: float,
        warmup_proportion: float,
        train_batch_size: int,
        **others: Any,
    ) -> TrainingOptions:
        """Counts steps as google's scripts do: examples / batch size * epochs, rounded down.

        Args:
          num_examples: Training examples.
          num_train_epochs: Passes over them.
          warmup_proportion: Part of the steps that are warm-up, 0 to 1.
          train_batch_size: Examples a step.
          **others: Other attributes.
        """
        steps = int(num_examples / max(1, train_batch_size) * num_train_epochs)
        if steps < 1:
            raise UserError(
                f"{num_examples} examples for {num_train_epochs} epochs make no step of "
                f"train_batch_size {train_batch_size}"
            )
        return cls(
            train_batch_size=train_batch_size,
            num_train_steps=steps,
            num_warmup_steps=int(steps * warmup_proportion),
            **others,
        )


def train(
    build_loss: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    output_dir: str | Path,
    *,
    init_checkpoint: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Trains until `options.num_train_steps`, from the last checkpoint of `output_dir` if any.

    Args:
      build_loss: Builds the training graph from int32 placeholders of `features`, [B,S] for
        input_ids, input_mask and segment_ids, [B] else, B and S unknown; returns the scalar loss.
      features: int arrays, one row an example; input_ids, input_mask and segment_ids are [E,S],
        input_mask with its ones first. Padding that a whole batch shares is cut off: it changes
        no result.
      options: See there.
      output_dir: Gets model.ckpt-STEP (with the optimizer's slots), `checkpoint`, training.json.
      init_checkpoint: Pre-trained weights; variables that it lacks are initialised at random.
      settings: What else, beside `options`, must be the same to resume, e.g. the task.

    Returns:
      Prefix of the last checkpoint.

    Raises:
      FileNotFoundError: There is no init_checkpoint.
      UserError: output_dir holds a training with other settings; init_checkpoint holds none of
        the variables; features differ in their number of rows.
      UserError: The loss is no finite number.
    """
    output_dir = Path(output_dir)
    num_examples = _num_rows(features)
    described = json.loads(
        json.dumps(asdict(options) | {"num_examples": num_examples} | dict(settings or {}))
    )
    last = tf.train.latest_checkpoint(str(output_dir))
    _check_settings(output_dir, described, resumed=last is not None)

    with tf.Graph().as_default():
        tf.set_random_seed(options.seed)
        inputs = {
            name: tf.placeholder(tf.int32, [None] * value.ndim, name=name)
            for name, value in features.items()
        }
        global_step, step_now = _create_global_step()
        with (
            modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)),
            bert_compat.dropout_seed(options.seed, step_now),
        ):
            loss = build_loss(inputs)
        if last is None and init_checkpoint is not None:
            _initialize_from(init_checkpoint)
        train_op = bert_compat.optimization().create_optimizer(
            loss,
            options.learning_rate,
            options.num_train_steps,
            options.num_warmup_steps,
            use_tpu=False,
        )
        saver = tf.train.Saver(max_to_keep=options.keep_checkpoints)
        with tf.Session() as session:
            if last is not None:
                saver.restore(session, last)
                saver.recover_last_checkpoints(
                    tf.train.get_checkpoint_state(str(output_dir)).all_model_checkpoint_paths
                )
                print(f"training goes on from {last}")
            else:
                session.run(tf.global_variables_initializer())
            step = int(session.run(global_step))
            batches = _batches(features, num_examples, options, step)
            with tqdm(
                total=options.num_train_steps, initial=step, desc="training", unit="step"
            ) as bar:
                while step < options.num_train_steps:
                    batch = next(batches)
                    feed = {inputs[name]: value for name, value in batch.items()}
                    _, value = session.run([train_op, loss], feed)
                    if not math.isfinite(value):
                        raise UserError(
                            f"the loss of step {step} is {value}: a smaller learning_rate than "
                            f"{options.learning_rate} may help"
                        )
                    step += 1
                    bar.set_postfix(loss=f"{value:.4f}", refresh=False)
                    bar.update()
                    if (
                        step % options.save_checkpoints_steps == 0
                        or step == options.num_train_steps
                    ):
                        # The files of a step are new ones, and `checkpoint` names them only when
                        # they are complete: a kill leaves the checkpoint before.
                        last = saver.save(
                            session, str(output_dir / "model.ckpt"), step, write_meta_graph=False
                        )
    assert last is not None
    return last


def classifier_loss(
    bert_config: Any, num_labels: int
) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """Cross-entropy of run_classifier.py's model, with dropout.

    Args:
      bert_config: bert-tensorflow's BertConfig.
      num_labels: Classes.

    Returns:
      `build_loss` for `train`; needs the feature label_ids [E].
    """

    def build(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return bert_compat.create_classifier_model(
            bert_config,
            True,
            inputs["input_ids"],
            inputs["input_mask"],
            inputs["segment_ids"],
            inputs["label_ids"],
            num_labels,
            False,
        )[0]

    return build


def squad_loss(bert_config: Any) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """Mean cross-entropy of start and end positions of run_squad.py's model, with dropout.

    Args:
      bert_config: bert-tensorflow's BertConfig.

    Returns:
      `build_loss` for `train`; needs the features start_positions and end_positions [E].
    """

    def build(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        logits = bert_compat.run_squad().create_model(
            bert_config,
            True,
            inputs["input_ids"],
            inputs["input_mask"],
            inputs["segment_ids"],
            False,
        )
        losses = [
            tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels=inputs[f"{part}_positions"], logits=part_logits
                )
            )
            for part, part_logits in zip(("start", "end"), logits, strict=True)
        ]
        return (losses[0] + losses[1]) / 2.0

    return build


def _num_rows(features: Mapping[str, np.ndarray]) -> int:
    rows = {name: len(value) for name, value in features.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ValueError(f"features have rows {rows}, expected the same number of at least 1")
    return next(iter(rows.values()))


def _check_settings(output_dir: Path, settings: Mapping[str, Any], *, resumed: bool) -> None:
    """Writes training.json, or compares it where a training is resumed."""
    path = output_dir / _SETTINGS_FILE
    if not resumed or not path.is_file():
        if resumed:
            raise UserError(
                f"{output_dir} holds a checkpoint that this program did not train (no "
                f"{_SETTINGS_FILE}); give another output_dir"
            )
        checkpoint_io.write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{name} {old.get(name)!r} (now {settings.get(name)!r})"
        for name in sorted(old.keys() | settings.keys())
        if old.get(name) != settings.get(name)
    ]
    if differing:
        raise UserError(
            f"{output_dir} holds a training with {', '.join(differing)}; give another output_dir "
            "or the same settings"
        )


def _create_global_step() -> tuple[tf.Variable, tf.Tensor]:
    """Creates the step's variable such that a session's run reads it once, before it is counted up.

    google's optimizer reads it in several places (learning rate, warm-up, counting) and orders none
    of them: with plain reads the learning rate may be that of this step or of the next.

    Returns:
      The variable, int64 [], and its value at the start of a run.
    """
    step = tf.get_variable(
        tf.GraphKeys.GLOBAL_STEP,
        [],
        tf.int64,
        tf.zeros_initializer(),
        trainable=False,
        collections=[tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.GLOBAL_STEP],
        caching_device="/cpu:0",
    )
    return step, step.value()


def _initialize_from(init_checkpoint: str) -> None:
    """Makes the trainable variables start from a checkpoint, those that it has."""
    checkpoint.Checkpoint(init_checkpoint)  # says what is wrong with it
    variables = tf.trainable_variables()
    assignment_map, found = bert_compat.modeling().get_assignment_map_from_checkpoint(
        variables, init_checkpoint
    )
    if not assignment_map:
        raise UserError(
            f"init_checkpoint {init_checkpoint} holds none of the model's {len(variables)} "
            f"variables, such as {variables[0].op.name}"
        )
    tf.train.init_from_checkpoint(init_checkpoint, assignment_map)
    new = [v.op.name for v in variables if v.name not in found]
    if new:
        print(f"initialised at random, not in {init_checkpoint}: {', '.join(new)}")


def _batches(
    features: Mapping[str, np.ndarray], num_examples: int, options: TrainingOptions, step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of `step` and after: epochs end to end, each in an order of its own."""
    order: dict[int, np.ndarray] = {}
    position = step * options.train_batch_size
    while True:
        rows = []
        for i in range(position, position + options.train_batch_size):
            epoch, row = divmod(i, num_examples)
            if epoch not in order:
                order = {
                    e: np.random.default_rng([options.seed, e]).permutation(num_examples)
                    for e in (*[e for e in order if e >= epoch - 1], epoch)
                }
            rows.append(order[epoch][row])
        position += options.train_batch_size
        batch = {name: value[rows] for name, value in features.items()}
        longest = max(1, int(batch["input_mask"].sum(axis=1).max()))
        for name in _TOKEN_FEATURES:
            batch[name] = batch[name][:, :longest]
        yield batch
