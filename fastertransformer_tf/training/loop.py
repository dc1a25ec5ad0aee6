"""Fine-tunes BERT, in float32 or as int8 will compute it: AdamW, dropout, checkpoints, resume.

The graph, the optimizer (Adam with weight decay 0.01, linear warm-up and decay, gradients clipped
to norm 1) and the checkpoint names are google-research BERT's (modeling.py, optimization.py,
run_classifier.py, run_squad.py). The op of this package has no gradient: what is trained is the
encoder of `models.point_encoder`, and the op serves it.

A training that was killed goes on from its last checkpoint when the same command is given again,
and ends with the very weights that it would have had: the order of batches and what dropout drops
are functions of the seed and the step, and everything else that counts is in the checkpoint. What
changes the result is written to training.json, and a command with something else is refused. As
with google's scripts, more epochs go on from the last checkpoint, the learning rate then following
the new number of steps.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.quantization.quantizers import Quantizers
from fastertransformer_tf.training import batches
from fastertransformer_tf.training.events import Events
from fastertransformer_tf.training.folder import TrainingFolder
from fastertransformer_tf.training.graph import TrainingGraph
from fastertransformer_tf.training.options import TrainingOptions
from fastertransformer_tf.training.settings import all_settings
from fastertransformer_tf.training.tasks import Task
from fastertransformer_tf.training.teacher import Distillation, Teacher


def train(
    task: Task,
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    folder: TrainingFolder,
    *,
    init_checkpoint: str | None = None,
    settings: Mapping[str, Any] | None = None,
    quantizers: Quantizers | None = None,
    distillation: Distillation | None = None,
) -> str:
    """Trains until `options.num_train_steps`, from the last checkpoint of the folder if any.

    Args:
      task: Builds the training graph from placeholders of `features`, [B,S] for input_ids,
        input_mask and segment_ids, [B] else, B and S unknown.
      features: int32 arrays, float32 those of a regression's numbers, one row an example;
        input_ids, input_mask and segment_ids are [E,S], input_mask with its ones first. Padding
        that a whole batch shares is cut off.
      options: See there.
      folder: Open. Gets model.ckpt-STEP (with the optimizer's slots), `checkpoint`, training.json
        and TensorBoard's events.
      init_checkpoint: Pre-trained weights; variables that it lacks are initialised at random.
      settings: What else, beside `options`, the features and the checkpoint's content, must be the
        same to resume, e.g. the task.
      quantizers: Round the encoder's tensors, by the ranges of the first checkpoint. They are saved
        with the weights.
      distillation: Learn from a teacher, too.

    Returns:
      Prefix of the last checkpoint.

    Raises:
      FileNotFoundError: There is no init_checkpoint.
      UserError: The folder holds a training with other settings; init_checkpoint does not fit the
        model or holds none of its variables; the disk is too small; or the training diverges: its
        loss or a weight is no finite number.
      ValueError: The features differ in their number of rows.
    """
    source = reading.Checkpoint(init_checkpoint) if init_checkpoint else None
    described = all_settings(features, options, source, settings or {})
    folder.check_settings(described)
    if folder.last is not None:
        print(f"training goes on from {folder.last}")
        source = reading.Checkpoint(folder.last)
    with contextlib.ExitStack() as stack:
        teacher = None
        if distillation is not None:
            teacher = stack.enter_context(Teacher(task, distillation))
        stack.enter_context(tf.Graph().as_default())
        graph = TrainingGraph(
            task, features, options, quantizers=quantizers, distillation=distillation
        )
        graph.start_from(source, whole=folder.last is not None)
        _check_disk(folder, options)
        folder.write_settings(described)
        session = stack.enter_context(tf.Session(config=sessions.session_config()))
        step = graph.start(session, folder)
        if step < options.num_train_steps:
            feeds = _feeds(graph, features, options, step, teacher)
            _run_steps(session, graph, feeds, options, folder, step)
    assert folder.last is not None
    return folder.last


def _feeds(
    graph: TrainingGraph,
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    step: int,
    teacher: Teacher | None,
) -> Iterator[dict[tf.Tensor, np.ndarray]]:
    """Yields what the graph is fed with in `step` and after."""
    for batch in batches.batches(features, options, step):
        feed = {graph.inputs[name]: value for name, value in batch.items()}
        if teacher is not None:
            given = teacher.run(batch)
            feed |= {graph.teacher_inputs[name]: value for name, value in given.items()}
        yield feed


def _run_steps(
    session: tf.Session,
    graph: TrainingGraph,
    feeds: Iterator[dict[tf.Tensor, np.ndarray]],
    options: TrainingOptions,
    folder: TrainingFolder,
    step: int,
) -> None:
    """Trains from `step` to the last, and saves as often as the options say."""
    last_step = options.num_train_steps
    with (
        Events(folder.path, step) as events,
        tqdm(total=last_step, initial=step, desc="training", unit="step") as bar,
    ):
        while step < last_step:
            _, loss = session.run([graph.train_op, graph.loss], next(feeds))
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of step {step} is {loss}: a smaller learning_rate than "
                    f"{options.learning_rate} may help"
                )
            events.add(step, loss=loss, learning_rate=options.learning_rate_of(step))
            step += 1
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if step % options.save_checkpoints_steps == 0 or step == last_step:
                graph.save(session, folder, step)


def _check_disk(folder: TrainingFolder, options: TrainingOptions) -> None:
    """Refuses a training whose checkpoints the disk cannot hold.

    Raises:
      UserError: Says what is needed and what is free.
    """
    one = sum(v.shape.num_elements() * v.dtype.size for v in tf.global_variables())
    saves = 1 + math.ceil(options.num_train_steps / options.save_checkpoints_steps)
    there = len(folder.checkpoints())
    # One more than is kept: the oldest goes when the newest is complete.
    needed = one * max(0, min(saves, options.keep_checkpoints + 1) - there)
    free = shutil.disk_usage(folder.path).free
    if needed > free:
        raise UserError(
            f"{folder.path} will need {needed / 2**20:.0f} MiB for checkpoints of "
            f"{one / 2**20:.0f} MiB each, but {free / 2**20:.0f} MiB are free"
        )
