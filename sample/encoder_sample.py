"""Runs a BERT encoder by TensorFlow, by the op and by the op without padding: answers and times.

  python sample/encoder_sample.py -batch 8 -s 128 -d fp32 -time 1 [--remove_padding]

Random weights. The three outputs are compared (padding rows left out), then each encoder is timed
in a while loop whose every turn takes the output of the one before, so that nothing is hoisted out.
"""

import pathlib
import sys
from collections.abc import Callable

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_tf.models import encoder_graphs, encoder_weights, int8_weights  # noqa: E402
from fastertransformer_tf.programs import batch_runs, cli  # noqa: E402

DEFINE = flags.DEFINE_integer
_BATCH = DEFINE("batch_size", 4, "Sequences in the batch.", 1)
_LAYERS = DEFINE("num_layer", 12, "Layers.", 1, short_name="l")
_SEQ = DEFINE("max_seq_len", 32, "Padded length.", 1, short_name="s")
_HEADS = DEFINE("head_number", 12, "Attention heads.", 1, short_name="n")
_SIZE = DEFINE("size_per_head", 64, "Size of a head.", 1)
_DTYPE = flags.DEFINE_enum(
    "data_type", "fp32", ["fp32", "fp16", "bf16"], "Precision.", short_name="d"
)
_INT8 = DEFINE(
    "int8_mode",
    0,
    "1, 2 or 3 (which is 2): int8 kernels, and ranges of this input. 0: no INT8.",
    0,
    3,
)
_FP8 = DEFINE(
    "fp8_mode",
    0,
    "1: float8 products of the same int8 kernels, on a GPU of compute capability 8.9 or later.",
    0,
    1,
)
_GEMM_TEST = flags.DEFINE_enum(
    "allow_gemm_test",
    "False",
    ["True", "False"],
    "GPU: search the fastest GEMMs at the first call.",
)
_TIME = DEFINE("test_time", 0, "1: measure the time too.", 0, 1)
_AVG_SEQ = DEFINE("avg_seq_len", -1, "Tokens of every sequence; -1: half of max_seq_len.", -1)
_THREADS = DEFINE(
    "thread_num", 1, "More than 1: also time the op in so many Python threads on one session.", 1
)
_REMOVE_PADDING = flags.DEFINE_boolean(
    "remove_padding", True, "Also run the op with its padding removed (EFF-OP)."
)
_OP = flags.DEFINE_enum(
    "op", "encoder", ["encoder", "transformer"],
    "encoder: one BertEncoder op; transformer: one BertTransformer op for each layer.",
)  # fmt: skip
_ITERATIONS = DEFINE("iterations", 50, "Turns of the timed while loop.", 1)
_XLA = flags.DEFINE_boolean(
    "xla", None, "XLA for TensorFlow's own encoder; default: where there is a GPU."
)
_INTRA = DEFINE("cpu_threads", 0, "CPU threads of TensorFlow's pool; 0: all.", 0)
for _alias, _name in (
    ("batch", "batch_size"),
    ("size", "size_per_head"),
    ("time", "test_time"),
    ("avg_seq", "avg_seq_len"),
):
    flags.DEFINE_alias(_alias, _name)

DTYPES = {"fp32": tf.float32, "fp16": tf.float16, "bf16": tf.bfloat16}
# Largest difference between two encoders of this precision, whose outputs have a spread of 1.
TOLERANCE = {"fp32": 3e-5, "fp16": 3e-2, "bf16": 2.5e-1}
# INT8: the mean difference from int8 simulated in TensorFlow. Where two programs round a number to
# different integers, all that comes after it moves by steps of a hundredth: after 12 layers of
# random weights 0.02 to 0.05 were seen.
INT8_TOLERANCE = 0.1
# FP8: the mean difference from TensorFlow's float encoder.
FP8_TOLERANCE = 0.15

# Hidden states [B,S,H], lengths [B] and the layers' weights to hidden states.
Encoder = Callable[[tf.Tensor, tf.Tensor, encoder_weights.Weights], tf.Tensor]


def print_arguments() -> None:
    """Prints the arguments as the block of the original sample."""
    print("=============== Argument ===============")
    for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        print(f"{flag.name}: {flag.value}")
    print("========================================")


def make_encoders(sizes: encoder_graphs.EncoderSizes) -> dict[str, Encoder]:
    """The encoders to compare, by name: TF, FT and, unless switched off, EFF."""
    by_op = encoder_graphs.op_encoder if _OP.value == "encoder" else encoder_graphs.op_layers

    def op(remove_padding: bool) -> Encoder:
        return lambda hidden, lengths, weights: by_op(
            hidden,
            lengths,
            sizes,
            weights,
            remove_padding=remove_padding,
            int8_mode=_INT8.value,
            fp8_mode=_FP8.value,
            allow_gemm_test=_GEMM_TEST.value == "True",
        )

    encoders = {
        "TF": lambda hidden, lengths, weights: encoder_graphs.tensorflow_encoder(
            hidden, lengths, sizes, weights
        ),
        "FT": op(remove_padding=False),
    }
    if _REMOVE_PADDING.value:
        encoders["EFF"] = op(remove_padding=True)
    return encoders


class Session:
    """One encoder in a session: once, and in a while loop."""

    def __init__(
        self,
        encoder: Encoder,
        weights: encoder_weights.Weights,
        hidden: np.ndarray,
        lengths: np.ndarray,
        xla: bool,
    ) -> None:
        """Builds the graph for hidden states [B,S,H] and lengths [B]."""
        config = encoder_graphs.session_config(xla, _INTRA.value)
        dtype = DTYPES[_DTYPE.value]
        arrays = encoder_graphs.HeldArrays(dtype)
        with tf.Graph().as_default():
            layers = arrays.hold_weights(weights)
            start = arrays.hold("hidden", hidden)
            tokens = tf.placeholder(tf.int32, lengths.shape)
            turns = tf.placeholder(tf.int32, [])
            _, end = tf.while_loop(
                lambda turn, _: turn < turns,
                lambda turn, x: (turn + 1, encoder(x, tokens, layers)),
                [tf.constant(0), start],
                parallel_iterations=1,
                back_prop=False,
            )
            # Only a scalar is fetched, so that copying the output is not timed; it stays in a
            # variable, so that one program, which XLA compiles, serves both purposes.
            result = tf.get_variable("result", hidden.shape, tf.float32, use_resource=True)
            output = tf.cast(end, tf.float32)
            with tf.control_dependencies([result.assign(output)]):
                done = tf.reduce_mean(output)
            self._result = tf.convert_to_tensor(result)
            self._session = tf.Session(config=config)
            arrays.load(self._session)
            self._session.run(result.initializer)
            self._loop = self._session.make_callable(done, [tokens, turns])
        self._lengths = lengths

    def output(self) -> np.ndarray:
        """Hidden states [B,S,H] after one pass."""
        self._loop(self._lengths, 1)
        return self._session.run(self._result)

    def loop_ms(self, threads: int = 1) -> float:
        """Milliseconds of one turn of the loop, run once before; of `threads` loops at once."""
        self._loop(self._lengths, _ITERATIONS.value)
        seconds = batch_runs.seconds_in_threads(
            lambda: self._loop(self._lengths, _ITERATIONS.value), threads
        )
        return 1e3 * seconds / _ITERATIONS.value

    def close(self) -> None:
        """Frees the session."""
        self._session.close()


def cross_check(name: str, outputs: dict[str, np.ndarray]) -> bool:
    """Prints whether an op's output [B,length,H] agrees with TensorFlow's, or its simulation."""
    label = "EFF-FT" if name == "EFF" else name
    difference = np.abs(outputs["TF"] - outputs[name])
    if _INT8.value or _FP8.value:
        agree = bool(difference.mean() < (INT8_TOLERANCE if _INT8.value else FP8_TOLERANCE))
    else:
        tolerance = TOLERANCE[_DTYPE.value]
        agree = bool(np.allclose(outputs["TF"], outputs[name], atol=tolerance, rtol=1e-5))
    print(f"[INFO] Encoder TF v.s. {label} with tensor input Cross check {agree}")
    print(f"[INFO] Max diff {difference.max(initial=0):.3g}")
    print(f"[INFO] min diff {difference.min(initial=np.inf):.3g}")
    return agree


def main(argv: list[str]) -> None:
    """Compares and times; exits with 1 where an output disagrees."""
    cli.no_positional(argv)
    batch, seq = _BATCH.value, _SEQ.value
    length = seq // 2 if _AVG_SEQ.value == -1 else _AVG_SEQ.value
    if _INT8.value and _FP8.value:
        raise UserError(
            f"--fp8_mode is {_FP8.value} and --int8_mode {_INT8.value}, expected one of them "
            "to be 0"
        )
    if length > seq:
        raise UserError(f"--avg_seq_len is {length}, expected at most --max_seq_len {seq}")
    print_arguments()
    # fp32 is IEEE float32 on a GPU too: TF32 would be compared with the tolerance of 23 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    heads, size = _HEADS.value, _SIZE.value
    sizes = encoder_graphs.EncoderSizes(_LAYERS.value, heads, size, 4 * heads * size)
    weights = encoder_weights.random_weights(sizes, seed=1)
    dtype = DTYPES[_DTYPE.value]
    names = (
        (f"layer_{i}/{name}:0", layer[name].shape)
        for i, layer in enumerate(weights)
        for name in layer
    )
    for index, (name, shape) in enumerate(names):
        print(index, name, shape, dtype)

    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((batch, seq, sizes.hidden), dtype=np.float32)
    lengths = np.full(batch, length, np.int32)
    op_weights = weights
    if _INT8.value or _FP8.value:
        op_weights = int8_weights.quantize(weights, sizes, hidden, np.full(batch, seq, np.int32))
    xla = bool(tf.config.list_physical_devices("GPU")) if _XLA.value is None else _XLA.value
    sessions = {
        # To compile what stands around one op would take long and gain nothing.
        name: Session(
            encoder, weights if name == "TF" else op_weights, hidden, lengths, xla and name == "TF"
        )
        for name, encoder in make_encoders(sizes).items()
    }
    outputs = {name: session.output()[:, :length] for name, session in sessions.items()}
    if _INT8.value:
        outputs["TF"] = int8_weights.simulated_output(
            op_weights, sizes, _INT8.value, hidden, lengths
        )[:, :length]

    print("#################################")
    if not all([cross_check(name, outputs) for name in ("FT", "EFF") if name in outputs]):
        sys.exit("The outputs disagree, so no time is measured.")

    if _TIME.value:
        prefix = f"[INFO] batch_size {batch} max_seq_len {seq}"
        floatx = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}[_DTYPE.value]
        labels = {"TF": "TF-while-time    ", "FT": "FT-OP-while-time ", "EFF": "EFF-OP-while-time"}
        for name, session in sessions.items():
            precision = floatx
            if name != "TF" and _INT8.value:
                precision = f"INT8-v{_INT8.value}"
            elif name != "TF" and _FP8.value:
                precision = "FP8"
            print(
                f"{prefix} precision {precision} {sizes.layers} layer {labels[name]} "
                f"{session.loop_ms():6.2f} ms ( {_ITERATIONS.value} iterations)"
            )
        if _THREADS.value > 1:
            print(
                f"{prefix} {sizes.layers} layer FT-OP-while-time "
                f"{sessions['FT'].loop_ms(_THREADS.value):6.2f} ms with {_THREADS.value} threads"
            )
    for session in sessions.values():
        session.close()


if __name__ == "__main__":
    # In TensorFlow 1's loops the weights, which no turn changes, cost the host nothing a turn.
    tf.disable_control_flow_v2()
    cli.run_program(main, __doc__ or "", [sys.argv[0]])
