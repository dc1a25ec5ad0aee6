"""The graph of a training: inputs, step, Saver, and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow.compat.v1 as tf

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.models import build_settings, modeling, point_encoder
from fastertransformer_tf.quantization.quantizers import Quantizers
from fastertransformer_tf.training import optimizer
from fastertransformer_tf.training.folder import TrainingFolder
from fastertransformer_tf.training.options import TrainingOptions
from fastertransformer_tf.training.tasks import Task
from fastertransformer_tf.training.teacher import Distillation


class TrainingGraph:
    """The training in the default graph: its inputs, its step and its Saver."""

    def __init__(
        self,
        task: Task,
        features: Mapping[str, np.ndarray],
        options: TrainingOptions,
        *,
        quantizers: Quantizers | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        """Builds it; see `loop.train`.

        Args:
          task: What is trained.
          features: See there; their shapes are those of the inputs.
          options: See there.
          quantizers: What rounds the encoder's tensors; None: nothing does.
          distillation: What is learned from a teacher; None: there is none.
        """
        tf.set_random_seed(options.seed)
        self.inputs = {
            name: tf.placeholder(tf.as_dtype(value.dtype), [None] * value.ndim, name=name)
            for name, value in features.items()
        }
        self.global_step, step_now = _create_global_step()
        point = point_encoder.identity if quantizers is None else quantizers.create()
        taps = point_encoder.Taps(point)
        encoder = modeling.EncoderOptions(
            use_tensorflow=True,
            taps=taps,
            mixed_precision=options.mixed_precision,
        )
        with (
            modeling.encoder_options(encoder),
            build_settings.dropout_seed(options.seed, step_now),
        ):
            logits = task.model(self.inputs, True)
        self.loss = task.loss(self.inputs, logits)
        # What the teacher gives is fed, by the names of `Distillation.compared`.
        self.teacher_inputs: dict[str, tf.Tensor] = {}
        if distillation is not None:
            self.teacher_inputs = {
                name: tf.placeholder(tf.float32, tensor.shape, f"teacher_{name}")
                for name, tensor in distillation.compared(logits, taps).items()
            }
            self.loss += distillation.loss(
                task, logits, taps, self.teacher_inputs, self.inputs["input_mask"]
            )
        self.train_op = optimizer.train_step(self.loss, self.global_step, options)
        self.is_finite = tf.reduce_all(
            [tf.reduce_all(tf.is_finite(weight)) for weight in tf.trainable_variables()]
        )
        self._source: reading.Checkpoint | None = None
        self._restored: list[str] = []
        # Relative: the folder may be moved.
        self._saver = tf.train.Saver(max_to_keep=options.keep_checkpoints, save_relative_paths=True)

    def start_from(self, source: reading.Checkpoint | None, *, whole: bool) -> None:
        """Tells which checkpoint to start from, and checks that it fits.

        Args:
          source: The checkpoint; None starts from random weights.
          whole: All variables must be in it, with the optimizer's; else the weights that it has.

        Raises:
          UserError: It does not fit.
        """
        if source is None:
            return
        variables = tf.global_variables() if whole else tf.trainable_variables()
        self._restored = _check_fit(source, {v.op.name: v for v in variables}, whole=whole)
        self._source = source

    def start(self, session: tf.Session, folder: TrainingFolder) -> int:
        """Initialises all variables, saves them where nothing is saved yet; returns the step."""
        session.run(tf.global_variables_initializer())
        variables = {v.op.name: v for v in tf.global_variables()}
        for name in self._restored:
            assert self._source is not None
            assign = variables[name].initializer
            session.run(assign, {assign.inputs[1]: self._source.load(name)})
        if folder.last is None:
            # As google's Estimator does. A disk that is full, say, shows here, not hours later.
            self.save(session, folder, 0)
        else:
            self._saver.recover_last_checkpoints(folder.checkpoints())
        return int(session.run(self.global_step))

    def save(self, session: tf.Session, folder: TrainingFolder, step: int) -> None:
        """Saves a checkpoint.

        The files of a step are new ones, and `checkpoint` names them only when they are complete: a
        kill leaves the checkpoint before.

        Raises:
          UserError: A weight is not finite.
        """
        if not session.run(self.is_finite):
            raise UserError(
                f"weights are no longer finite at step {step}: a smaller learning_rate may help"
            )
        prefix = str(folder.path / "model.ckpt")
        folder.last = self._saver.save(session, prefix, step, write_meta_graph=False)


def _create_global_step() -> tuple[tf.Variable, tf.Tensor]:
    """Creates the step's variable such that a session's run reads it once, before it is counted up.

    The optimizer reads it in several places (learning rate, warm-up, counting) and orders none of
    them: with plain reads the learning rate may be that of this step or of the next.

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


def _check_fit(
    source: reading.Checkpoint, variables: Mapping[str, tf.Variable], *, whole: bool
) -> list[str]:
    """Checks that the values of a checkpoint can be given to variables.

    Returns:
      The names of the variables that it has.

    Raises:
      UserError: It has some of them in another shape or type, or not finite; none of them; or, if
        it should be `whole`, not all.
    """
    problems = []
    found = [name for name in variables if name in source.shapes]
    for name in found:
        have = f"{source.dtypes[name].name} {list(source.shapes[name])}"
        want = f"{variables[name].dtype.base_dtype.name} {variables[name].shape.as_list()}"
        if have != want:
            problems.append(f"{name} is {have}, expected {want}")
        elif source.dtypes[name].is_floating:
            try:
                source.load(name, "float32")
            except UserError as error:
                problems.append(str(error))
    new = [name for name in variables if name not in source.shapes]
    if whole or not found:
        problems += [f"{name} is missing" for name in new]
    if problems:
        raise UserError(
            f"checkpoint {source.path} does not fit the model to train, {len(problems)} of "
            f"{len(variables)} variables: {listed(problems)}"
        )
    if new:
        print(f"initialised at random, not in {source.path}: {listed(new)}")
    return found
