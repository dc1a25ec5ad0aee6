"""What the programs that run a model over data share: flags, batches, timing, tables."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.box
import rich.console
import rich.table
import tensorflow as tf
import tqdm
from absl import flags

from fastertransformer_tf.checkpoints import checkpoint, checkpoint_io
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config, vocabulary
from fastertransformer_tf.models import bert_compat, modeling, sessions
from fastertransformer_tf.programs import cli
from fastertransformer_tf.training import training

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self

_tf1 = tf.compat.v1


_NO_EFFECT = "No effect: kept so that google's command lines, made for TPUs, are understood."
TPU_HELP = {
    "use_tpu": "Must be false: kept so that google's command lines are understood.",
    "tpu_name": _NO_EFFECT,
    "tpu_zone": _NO_EFFECT,
    "gcp_project": _NO_EFFECT,
    "master": _NO_EFFECT,
    "num_tpu_cores": _NO_EFFECT,
    "iterations_per_loop": _NO_EFFECT,
}


def define_encoder_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of `EncoderOptions`.

    Args:
      flag_values: Where to define them.
      owner: Name of the program's module, under which --help finds them.
    """
    define = cli.FlagDefiner(flag_values, owner)
    types = list(bert_compat.FLOAT_TYPES)
    define.enum("floatx", "float32", types, "Type of weights and activations.")
    define.boolean("remove_padding", "Compute only real tokens.")
    define.boolean("allow_gemm_test", "GPU: search the fastest GEMM algorithm for each new shape.")
    define.boolean(
        "use_tensorflow_transformer",
        "Run TensorFlow's own transformer instead of the op, for comparison.",
    )
    define.integer("int8_mode", 0, "0 off; INT8 is not in this version.")


def define_export_flag(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines --export_dir."""
    cli.FlagDefiner(flag_values, owner).string(
        "export_dir",
        None,
        "Also write the model, weights inside, as a SavedModel to this new folder. To serve it: "
        "import fastertransformer_tf, then tf.saved_model.load.",
    )


def check_export_dir(path: str | None) -> None:
    """Refuses to export over something, or where nothing can be written.

    Raises:
      UserError: The folder is there already, or cannot be made.
    """
    if not path:
        return
    if os.path.lexists(path):
        raise UserError(f"--export_dir={path} exists already, expected a new folder")
    check_writable(os.path.dirname(os.path.abspath(path)), f"--export_dir={path}")


def check_writable(folder: str, flag: str) -> None:
    """Makes a folder and a file in it, which is removed again.

    Done before the work whose results go there.

    Args:
      folder: The folder.
      flag: The flag, with its value, to begin a message with.

    Raises:
      UserError: It cannot be made, or nothing can be written to it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)  # A full disk shows with contents only.
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{flag}: {folder} cannot be written to: {reason}") from error


def check_paths(flag_values: flags.FlagValues, names: Iterable[str]) -> None:
    """Refuses flags of paths that are none of this machine's, all before anything is read.

    Raises:
      UserError: One is a URL.
    """
    for name in names:
        checkpoint.refuse_url(flag_values[name].value or "", name)


def check_output_file(path: str, flag: str) -> None:
    """Refuses a file that could not be written after hours of work.

    Raises:
      UserError: It is a folder, or its own folder cannot be written to.
    """
    if os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a folder, expected a file")
    check_writable(os.path.dirname(os.path.abspath(path)), f"--{flag}={path}")


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
            allow_gemm_test=flag_values.allow_gemm_test,
            use_tensorflow=flag_values.use_tensorflow_transformer,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def require_file(path: str, flag: str) -> None:
    """Refuses a flag that names no file.

    Raises:
      FileNotFoundError: There is none.
      UserError: It is something else than a file of this machine.
    """
    if os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a folder, expected a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"--{flag}={path} not found")


def require_positive(flag_values: flags.FlagValues, names: Iterable[str]) -> None:
    """Refuses batch sizes and the like that are below 1.

    Raises:
      UserError: Naming the first.
    """
    for name in names:
        if getattr(flag_values, name) < 1:
            raise UserError(f"--{name}={getattr(flag_values, name)}, expected at least 1")


def check_training_flags(flag_values: flags.FlagValues) -> None:
    """Refuses flags of google's programs that nothing here can follow.

    --remove_padding and the other flags of the op are no matter of training, which TensorFlow's own
    transformer does; what comes after it in the same run follows them.

    Raises:
      UserError: --use_tpu, or --do_train in another type than float32.
    """
    if flag_values.use_tpu:
        raise UserError("--use_tpu=true: there is no TPU support, expected false")
    if flag_values.do_train and flag_values.floatx != "float32":
        raise UserError(
            f"--do_train trains in float32, but --floatx={flag_values.floatx}: train first, then "
            "run the checkpoint in another type"
        )


def training_options(flag_values: flags.FlagValues, num_examples: int) -> training.TrainingOptions:
    """Makes the options of a training over `num_examples` of google's flags.

    Raises:
      UserError: A value is out of range.
    """
    return training.TrainingOptions.from_epochs(
        num_examples,
        flag_values.num_train_epochs,
        flag_values.warmup_proportion,
        flag_values.train_batch_size,
        learning_rate=flag_values.learning_rate,
        save_checkpoints_steps=flag_values.save_checkpoints_steps,
    )


def training_settings(flag_values: flags.FlagValues, config: Any) -> dict[str, Any]:
    """What changes a training's result beside its options, data and first checkpoint.

    The data are compared as arrays; vocabulary and case are told apart for the message.
    """
    return {
        "max_seq_length": flag_values.max_seq_length,
        "do_lower_case": flag_values.do_lower_case,
        "warmup_proportion": flag_values.warmup_proportion,
        "vocab_file": training.file_hash(flag_values.vocab_file),
        **{f"bert_config {key}": value for key, value in sorted(vars(config).items())},
    }


def load_tokenizer(flag_values: flags.FlagValues, config: Any) -> Any:
    """Makes google's FullTokenizer of --vocab_file and --do_lower_case.

    Args:
      flag_values: The program's parsed flags.
      config: The BertConfig that the ids are for.

    Raises:
      FileNotFoundError: There is no such vocabulary.
      UserError: It is no vocabulary of the model, or the case does not go with what
        --init_checkpoint's name says.
    """
    path = flag_values.vocab_file
    require_file(path, "vocab_file")
    tokenization = bert_compat.tokenization()
    try:
        tokenization.validate_case_matches_checkpoint(
            flag_values.do_lower_case, flag_values.init_checkpoint
        )
    except ValueError as error:
        case = str(flag_values.do_lower_case).lower()
        raise UserError(
            f"--do_lower_case={case} does not go with --init_checkpoint="
            f"{flag_values.init_checkpoint}: google's model of that name needs "
            f"{'false' if flag_values.do_lower_case else 'true'}"
        ) from error
    tokenizer = tokenization.FullTokenizer(path, flag_values.do_lower_case)
    vocabulary.check(tokenizer.vocab, config.vocab_size, f"--vocab_file={path}")
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
    require_file(path, "bert_config_file")
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


def check_model(flag_values: flags.FlagValues, config: Any) -> checkpoint.Checkpoint | None:
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
        path = checkpoint.choose_checkpoint(path, flag_values.output_dir)
    else:
        checkpoint.refuse_pattern(flag_values.output_dir)
    if not path:
        return None
    source = checkpoint.Checkpoint(path)
    bert_config.check_embeddings(
        vars(config), source.shapes, flag_values.bert_config_file, source.path
    )
    return source


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


@dataclasses.dataclass
class BatchRun:
    """Result of `run_batches`.

    Attributes:
      outputs: Name to all examples' values, [examples, ...]; of a fetch without a batch axis
        [batches].
      num_examples: Examples run.
      batch_seconds: Time of each batch, [batches], seconds.
    """

    outputs: dict[str, np.ndarray]
    num_examples: int
    batch_seconds: np.ndarray

    @property
    def examples_per_second(self) -> float:
        """Examples a second over all timed batches."""
        return self.num_examples / float(self.batch_seconds.sum())

    @property
    def ms_per_batch(self) -> float:
        """Median milliseconds a batch."""
        return float(np.median(self.batch_seconds)) * 1e3


class Model:
    """A model restored from a checkpoint, in a session of its own; a context manager.

    Attributes:
      graph: Holds it.
      inputs: Name to placeholder; batch size and length are unknown.
      outputs: Name to tensor.
      session: Runs the graph.
    """

    def __init__(
        self,
        graph: tf.Graph,
        inputs: Mapping[str, tf.Tensor],
        outputs: Mapping[str, tf.Tensor],
        restored: checkpoint.Restored,
        config: Any = None,
    ) -> None:
        """Starts a session and loads the weights.

        Args:
          graph: The whole model.
          inputs: Name to placeholder.
          outputs: Name to tensor.
          restored: All variables of the graph.
          config: A ConfigProto; that of `sessions.session_config` when None.
        """
        self.graph, self.inputs, self.outputs = graph, dict(inputs), dict(outputs)
        self.session = _tf1.Session(graph=graph, config=config or sessions.session_config())
        restored.load(self.session)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes the session."""
        self.session.close()

    def run(
        self, features: Mapping[str, np.ndarray], batch_size: int, description: str
    ) -> BatchRun:
        """Runs the model over arrays [examples,...], one for each input; see `run_batches`."""
        feeds = {placeholder: features[name] for name, placeholder in self.inputs.items()}
        return run_batches(self.session, self.outputs, feeds, batch_size, description)

    def export(self, path: str, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Writes a SavedModel, weights in `variables/`, with the signature `serving_default`.

        Args:
          path: A new folder; it appears when it is complete.
          inputs: Names of the signature's inputs.
          outputs: Names of its outputs, which need no other input.

        Raises:
          UserError: The folder is there already.
        """
        check_export_dir(path)
        saved = _tf1.saved_model
        # Atomic like a file's: the rename moves the whole folder.
        with checkpoint_io.atomic_path(path) as temporary, self.graph.as_default():
            signature = saved.predict_signature_def(
                {name: self.inputs[name] for name in inputs},
                {name: self.outputs[name] for name in outputs},
            )
            builder = saved.Builder(str(temporary))
            builder.add_meta_graph_and_variables(
                self.session,
                [saved.tag_constants.SERVING],
                {saved.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature},
            )
            builder.save()
        print(f"exported: {path}")


def run_batches(
    session: Any,
    fetches: Mapping[str, tf.Tensor],
    feeds: Mapping[tf.Tensor, np.ndarray],
    batch_size: int,
    description: str,
) -> BatchRun:
    """Runs a graph over data, batch by batch, with a progress bar on stderr.

    The first batch runs twice: once unmeasured, which optimises the graph and packs the weights,
    then as every other. The last batch may be smaller than the others.

    Args:
      session: A tf.compat.v1.Session with a graph whose batch axis is unknown.
      fetches: Name to tensor.
      feeds: Placeholder to all examples' values, [examples, ...] each.
      batch_size: Examples a batch, at least 1.
      description: Of the progress bar.

    Raises:
      ValueError: batch_size below 1, no example, or feeds of different lengths.
    """
    counts = {len(values) for values in feeds.values()}
    if batch_size < 1 or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"batch size is {batch_size} and the inputs have {sorted(counts)} examples, expected "
            "at least 1 and one number above 0"
        )
    (num_examples,) = counts
    callable_ = session.make_callable(dict(fetches), feed_list=list(feeds))
    values = list(feeds.values())
    callable_(*(v[:batch_size] for v in values))
    results: list[dict[str, np.ndarray]] = []
    seconds = []
    with tqdm.tqdm(total=num_examples, desc=description, unit="ex", file=sys.stderr) as bar:
        for begin in range(0, num_examples, batch_size):
            batch = [v[begin : begin + batch_size] for v in values]
            start = time.perf_counter()
            results.append(callable_(*batch))
            seconds.append(time.perf_counter() - start)
            bar.update(len(batch[0]))
    outputs = {}
    for name in fetches:
        parts = [np.asarray(result[name]) for result in results]
        outputs[name] = np.concatenate(parts) if parts[0].ndim else np.stack(parts)
    return BatchRun(outputs, num_examples, np.array(seconds))


def print_table(title: str, rows: Mapping[str, object], caption: str | None = None) -> None:
    """Prints a two-column table on stdout."""
    table = rich.table.Table(
        title=title,
        caption=caption,
        box=rich.box.SIMPLE_HEAD,
        show_header=False,
        title_justify="left",
    )
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    rich.console.Console().print(table)


def report(
    title: str,
    options: modeling.EncoderOptions,
    results: Mapping[str, object],
    run: BatchRun,
    batch_size: int,
) -> None:
    """Prints the table that ends a run over data: which encoder, its results and its speed."""
    rows: dict[str, object] = {"encoder": encoder_name(options), **results}
    rows |= {
        "examples": run.num_examples,
        "batch size": batch_size,
        "examples/s": f"{run.examples_per_second:.1f}",
        "ms per batch (median)": f"{run.ms_per_batch:.2f}",
    }
    print_table(title, rows, TIMING_CAPTION)


TIMING_CAPTION = "times: session runs alone, after one warm-up batch; no building, no tokenizing"


def encoder_name(options: modeling.EncoderOptions) -> str:
    """Says in a few words which transformer ran."""
    if options.use_tensorflow:
        return f"TensorFlow's own transformer, {options.floatx}"
    padding = "padding removed" if options.remove_padding else "with padding"
    return f"BertEncoder op, {options.floatx}, {padding}"


def make_output_dir(path: str) -> None:
    """Creates the output folder and sees that it can be written to.

    Raises:
      UserError: It cannot.
    """
    check_writable(path, f"--output_dir={path}")
