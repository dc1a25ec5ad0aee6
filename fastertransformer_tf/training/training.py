"""Fine-tunes BERT with TensorFlow's own transformer: AdamW, warm-up, dropout, checkpoints, resume.

The graph, the optimizer (Adam with weight decay 0.01, linear warm-up and decay, gradients clipped
to norm 1) and the checkpoint names are google-research BERT's (modeling.py, optimization.py,
run_classifier.py, run_squad.py). The op of this package has no gradient: it serves what was
trained here.

A training that was killed goes on from its last checkpoint when the same command is given again,
and ends with the very weights that it would have had: the order of batches and what dropout drops
are functions of the seed and the step, and everything else that counts is in the checkpoint. What
changes the result is written to training.json, and a command with something else is refused. As
with google's scripts, more epochs go on from the last checkpoint, the learning rate then following
the new number of steps.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from fastertransformer_tf.checkpoints import checkpoint, checkpoint_io
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import text_files
from fastertransformer_tf.models import bert_compat, modeling, sessions

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self

# Features with one entry a token; their columns past the longest sequence of a batch are cut off.
_TOKEN_FEATURES = ("input_ids", "input_mask", "segment_ids")
_SETTINGS_FILE = "training.json"
_LOCK_FILE = "training.lock"
# Attributes of TrainingOptions that change no weight.
_NO_MATTER = frozenset({"save_checkpoints_steps", "keep_checkpoints"})
_STEPS, _WARMUP = "num_train_steps", "num_warmup_steps"

# A file of a checkpoint of ours, whole or still being written.
_SAVED = re.compile(r"model\.ckpt-(\d+)\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?$")
# What a kill may leave of the file `checkpoint`.
_UNFINISHED = re.compile(r"checkpoint\.tmp[0-9a-f]+$")


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
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"learning_rate is {self.learning_rate}, expected a number above 0")

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

        Raises:
          UserError: A value is out of range, or there is no step to make.
        """
        if not (num_train_epochs > 0 and math.isfinite(num_train_epochs)):
            raise UserError(f"num_train_epochs is {num_train_epochs}, expected a number above 0")
        if not 0 <= warmup_proportion <= 1:
            raise UserError(f"warmup_proportion is {warmup_proportion}, expected 0 to 1")
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


class TrainingFolder:
    """The folder of a training, for one process at a time; a context manager.

    Attributes:
      path: The folder.
      last: Prefix of the latest checkpoint in it; None where there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Takes the folder, which need not exist yet."""
        self.path = Path(path)
        self.last: str | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Locks the folder, removes what a killed save left, and finds the latest checkpoint.

        Raises:
          OSError: It cannot be made or locked.
          UserError: Another training is running in it, or it holds a training that cannot go on.
        """
        checkpoint.refuse_pattern(str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            ours = (self.path / _SETTINGS_FILE).is_file()
            if ours:
                self._remove_first_save()
            self.last = checkpoint.latest_in(self.path)
            if ours:
                self._remove_leftovers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        """Unlocks it. The lock file stays: who removes one may remove another's."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        """Returns the locked file; the system unlocks it when the process ends, however it does."""
        path = self.path / _LOCK_FILE
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{path} is a symbolic link, expected a file") from error
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise UserError(
                f"another training is running in {self.path}: wait for its end or give another "
                "folder"
            ) from error
        except OSError:
            os.close(file)
            raise
        return file

    def _saved(self) -> dict[int, list[str]]:
        """Lists the files of checkpoints by step, also those that are not finished."""
        found: dict[int, list[str]] = {}
        for name in sorted(os.listdir(self.path)):
            match = _SAVED.match(name)
            if match:
                found.setdefault(int(match[1]), []).append(name)
        return found

    def _remove_first_save(self) -> None:
        """Removes what is left where the very first save was killed: nothing was trained yet."""
        saved = self._saved()
        if set(saved) == {0} and not (self.path / "checkpoint").exists():
            self._remove(saved[0])

    def _remove_leftovers(self) -> None:
        """Removes what killed saves left: unfinished files, and checkpoints after the latest."""
        names = [name for name in os.listdir(self.path) if _UNFINISHED.match(name)]
        latest = self._step(self.last) if self.last is not None else -1
        for step, files in self._saved().items():
            whole = any(file.endswith(".index") for file in files)
            unfinished = [file for file in files if ".tempstate" in file]
            names += files if step > latest or not whole else unfinished
        self._remove(names)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            (self.path / name).unlink()
        if names:
            print(f"removed what a killed save left in {self.path}: {', '.join(sorted(names))}")

    @staticmethod
    def _step(prefix: str) -> int:
        """The step in a checkpoint's name; without one (google's may have none) all are older."""
        digits = prefix.rpartition("-")[2]
        return int(digits) if digits.isdecimal() else 2**63

    def checkpoints(self) -> list[str]:
        """Lists the prefixes of whole checkpoints, the oldest first."""
        return [
            str(self.path / f"model.ckpt-{step}")
            for step, files in sorted(self._saved().items())
            if any(file.endswith(".index") for file in files)
        ]

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Compares what changes a training's result with training.json, where there is a training.

        Raises:
          UserError: It holds other settings, or is missing beside a checkpoint.
        """
        if self.last is None:
            return
        path = self.path / _SETTINGS_FILE
        if not path.is_file():
            raise UserError(
                f"{self.path} holds a checkpoint that this program did not train (no "
                f"{_SETTINGS_FILE}); give another output_dir"
            )
        old = text_files.read_json(path)
        if not isinstance(old, dict):
            raise UserError(f"{path} holds {text_files.describe(old)}, expected settings")
        _compare_settings(self.path, old, settings)
        if old[_STEPS] != settings[_STEPS]:
            print(
                f"{_STEPS} {old[_STEPS]} becomes {settings[_STEPS]}: the training in {self.path} "
                "goes on, its learning rate following the new number"
            )

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes training.json, whole or not at all."""
        text = json.dumps(settings, indent=2) + "\n"
        checkpoint_io.write_text(self.path / _SETTINGS_FILE, text)


def _compare_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses other settings, except more steps."""
    same = dict(old)
    with contextlib.suppress(TypeError, KeyError):  # A damaged file may hold anything.
        if new[_STEPS] > old[_STEPS]:
            same |= {name: new[name] for name in (_STEPS, _WARMUP)}
    differing = [
        f"{name} {text_files.describe(old.get(name))} (now {text_files.describe(new.get(name))})"
        for name in sorted(same.keys() | new.keys())
        if same.get(name) != new.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder} holds a training with {listed(differing)}: give another output_dir or the "
            "same settings"
        )


def content_hash(*parts: bytes | np.ndarray) -> str:
    """Returns a hash of contents, short enough for a message."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def file_hash(path: str | os.PathLike[str]) -> str:
    """Returns the `content_hash` of a file."""
    return content_hash(Path(path).read_bytes())


def _all_settings(
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    source: checkpoint.Checkpoint | None,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that changes the result of a training."""
    arrays = [part for name in sorted(features) for part in (name.encode(), features[name])]
    return {
        **{name: value for name, value in asdict(options).items() if name not in _NO_MATTER},
        "num_examples": _num_rows(features),
        "features": content_hash(*arrays),
        "init_checkpoint": None if source is None else f"sha256:{source.content_hash()[:16]}",
        **others,
    }


def train(
    build_loss: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    folder: TrainingFolder,
    *,
    init_checkpoint: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Trains until `options.num_train_steps`, from the last checkpoint of the folder if any.

    Args:
      build_loss: Builds the training graph from int32 placeholders of `features`, [B,S] for
        input_ids, input_mask and segment_ids, [B] else, B and S unknown; returns the scalar loss,
        which must not depend on padding.
      features: int arrays, one row an example; input_ids, input_mask and segment_ids are [E,S],
        input_mask with its ones first. Padding that a whole batch shares is cut off.
      options: See there.
      folder: Open. Gets model.ckpt-STEP (with the optimizer's slots), `checkpoint`, training.json.
      init_checkpoint: Pre-trained weights; variables that it lacks are initialised at random.
      settings: What else, beside `options`, the features and the checkpoint's content, must be the
        same to resume, e.g. the task.

    Returns:
      Prefix of the last checkpoint.

    Raises:
      FileNotFoundError: There is no init_checkpoint.
      UserError: The folder holds a training with other settings; init_checkpoint does not fit the
        model or holds none of its variables; the disk is too small; or the training diverges: its
        loss or a weight is no finite number.
      ValueError: The features differ in their number of rows.
    """
    source = checkpoint.Checkpoint(init_checkpoint) if init_checkpoint else None
    described = _all_settings(features, options, source, settings or {})
    folder.check_settings(described)
    if folder.last is not None:
        print(f"training goes on from {folder.last}")
        source = checkpoint.Checkpoint(folder.last)
    with tf.Graph().as_default():
        graph = _TrainingGraph(build_loss, features, options)
        graph.start_from(source, whole=folder.last is not None)
        _check_disk(folder, options)
        folder.write_settings(described)
        with tf.Session(config=sessions.session_config()) as session:
            step = graph.start(session, folder)
            _run_steps(session, graph, features, options, folder, step)
    assert folder.last is not None
    return folder.last


class _TrainingGraph:
    """The training in the default graph: its inputs, its step and its Saver."""

    def __init__(
        self,
        build_loss: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
        features: Mapping[str, np.ndarray],
        options: TrainingOptions,
    ) -> None:
        tf.set_random_seed(options.seed)
        self.inputs = {
            name: tf.placeholder(tf.int32, [None] * value.ndim, name=name)
            for name, value in features.items()
        }
        self.global_step, step_now = _create_global_step()
        with (
            modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)),
            bert_compat.dropout_seed(options.seed, step_now),
        ):
            self.loss = build_loss(self.inputs)
        self.train_op = bert_compat.optimization().create_optimizer(
            self.loss,
            options.learning_rate,
            options.num_train_steps,
            options.num_warmup_steps,
            use_tpu=False,
        )
        self.is_finite = tf.reduce_all(
            [tf.reduce_all(tf.is_finite(weight)) for weight in tf.trainable_variables()]
        )
        self._source: checkpoint.Checkpoint | None = None
        self._restored: list[str] = []
        # Relative: the folder may be moved.
        self._saver = tf.train.Saver(max_to_keep=options.keep_checkpoints, save_relative_paths=True)

    def start_from(self, source: checkpoint.Checkpoint | None, *, whole: bool) -> None:
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


def _run_steps(
    session: tf.Session,
    graph: _TrainingGraph,
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    folder: TrainingFolder,
    step: int,
) -> None:
    """Trains from `step` to the last, and saves as often as the options say."""
    batches = _batches(features, _num_rows(features), options, step)
    last_step = options.num_train_steps
    with tqdm(total=last_step, initial=step, desc="training", unit="step") as bar:
        while step < last_step:
            feed = {graph.inputs[name]: value for name, value in next(batches).items()}
            _, loss = session.run([graph.train_op, graph.loss], feed)
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of step {step} is {loss}: a smaller learning_rate than "
                    f"{options.learning_rate} may help"
                )
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

    A position is one of the real tokens, as when answers are chosen. google's loss lets padding
    take part too; then it would depend on how long the batch happens to be, for shared padding is
    cut off.

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
            span_loss(part_logits, inputs["input_mask"], inputs[f"{part}_positions"])
            for part, part_logits in zip(("start", "end"), logits, strict=True)
        ]
        return (losses[0] + losses[1]) / 2.0

    return build


def span_loss(logits: tf.Tensor, input_mask: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of one position in each sequence, over its real tokens.

    Args:
      logits: [B,S] float32.
      input_mask: [B,S], 1 for real tokens.
      positions: [B], each of a real token.

    Returns:
      The mean, [].
    """
    real = tf.not_equal(input_mask, 0)
    logits = tf.where(real, logits, tf.fill(tf.shape(logits), logits.dtype.min))
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positions, logits=logits)
    )


def _num_rows(features: Mapping[str, np.ndarray]) -> int:
    rows = {name: len(value) for name, value in features.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ValueError(f"features have rows {rows}, expected the same number of at least 1")
    return next(iter(rows.values()))


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


def _check_fit(
    source: checkpoint.Checkpoint, variables: Mapping[str, tf.Variable], *, whole: bool
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
