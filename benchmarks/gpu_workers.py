"""The processes of gpu_encoder.py: each prepares engines, waits for its turn, then times them.

    python -m benchmarks.gpu_workers truth|torch|xla|op --shapes=1x32,8x128 --workdir=DIR ...

A worker prints READY when all that needs no quiet GPU is done (imports, compilation), waits for a
line on stdin, times, prints one RESULT line with JSON for each measurement, and DONE. PyTorch and
TensorFlow never share a process. All engines get the same weights and hidden states. The worker
"truth" runs first and leaves what TensorFlow's own float32 encoder gives in the work folder; each
engine is compared with that, and only then timed.

"masked": keys from S/2 on are masked. "packed": S/2 tokens in each sequence, padding removed;
PyTorch gets the dense batch of half the length, the ideal of padding removal.
"kept_changing", "removed_changing": other lengths in every forward, from a list of random batches,
with padding kept and removed; "..._repeated": the same batches, each a few times in succession, so
that the work is the same. "constants": as "full", with weights that are constants of the graph; in
all others the op's weights are variables.

"int8_1", "int8_2", "fp8_1": the op in float16 with int8_mode 1 and 2, and fp8_mode. "fp8", "int8"
of PyTorch: products of e4m3 or int8 with one range a tensor, taken from the batch itself, all else
float16.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.ragged import is_real, ragged_lengths
from fastertransformer_tf import spec

HEADS, SIZE = 12, 64
HIDDEN = HEADS * SIZE
INNER = 4 * HIDDEN
# A loop is timed over so many milliseconds, so that the overhead of its call does not count.
LOOP_MS = 100.0
RUNS = 5
# Largest ||output - truth|| / ||truth||.
TOLERANCE = {
    "fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 6e-2,
    "int8_1": 0.15, "int8_2": 0.15, "fp8_1": 0.15, "int8": 0.25, "fp8": 0.25,
}  # fmt: skip

RAGGED_BATCHES = 32
# How often a batch comes in succession, by variant.
RAGGED_VARIANTS = {
    "kept_repeated": 4, "kept_changing": 1, "removed_repeated": 4, "removed_changing": 1,
}  # fmt: skip
# Constants are part of the graph, which TensorFlow copies for seconds for each shape.
CONSTANTS_SHAPES = ((1, 32), (1, 128), (8, 128))

Layers = list[dict[str, np.ndarray]]


def eight_bit_mode(precision: str) -> dict[str, int]:
    """The op's attribute that a precision of 8 bits stands for; empty of others."""
    name, _, mode = precision.partition("_")
    return {f"{name}_mode": int(mode)} if mode else {}


def random_layers(layers: int) -> Layers:
    """Weights under the names of google's checkpoints, the same in every worker."""
    rng = np.random.default_rng(1)
    return spec.by_google_name(spec.random_layers(rng, layers, HIDDEN, INNER))


def hidden_states(batch: int, seq_len: int) -> np.ndarray:
    """Float32 [B,S,H]."""
    return np.random.default_rng(2).standard_normal((batch, seq_len, HIDDEN), dtype=np.float32)


def tell(kind: str, **fields: object) -> None:
    """Prints one line for gpu_encoder.py."""
    print(kind, json.dumps(fields), flush=True)


def wait_for_turn() -> None:
    """Says that the preparation is over and waits."""
    tell("READY")
    if not sys.stdin.readline():
        sys.exit("the parent is gone")


class Worker:
    """The command line, and what to do with a measurement."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Reads the parsed arguments of `main`."""
        self.gpu = args.device == "gpu"
        self.layers: int = args.layers
        self.shapes = [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")]
        self.precisions: list[str] = args.precisions.split(",")
        self.engine: str = args.engine or args.kind
        self.plan = [tuple(part.split(":")) for part in args.plan.split(",") if part]
        self.workdir = pathlib.Path(args.workdir)
        self.deadline: float = args.deadline
        self.compile_deadline: float = args.compile_deadline

    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def measure(
        self, shape: tuple[int, int], precision: str, variant: str, run: Callable[[], float]
    ) -> None:
        """Reports what `run`, which checks its output first, measures, or why it could not."""
        fields = {"engine": self.engine, "shape": f"{shape[0]}x{shape[1]}"}
        fields |= {"precision": precision, "variant": variant}
        if self.time_left() <= 0:
            tell("RESULT", **fields, error="no time was left")
            return
        try:
            tell("RESULT", **fields, ms=run())
        except Exception as error:  # noqa: BLE001 (one failure must not lose the other results)
            tell("RESULT", **fields, error=f"{type(error).__name__}: {error}"[:500])

    def truth_path(self, shape: tuple[int, int], variant: str) -> pathlib.Path:
        """Where the real rows of two sequences, of each ragged batch, lie as they should be."""
        if variant in RAGGED_VARIANTS:
            keys = "ragged"
        else:
            keys = "all" if variant in ("full", "constants") else "half"
        return self.workdir / f"truth_{keys}_{shape[0]}x{shape[1]}.npy"

    def check(
        self, shape: tuple[int, int], precision: str, variant: str, output: np.ndarray
    ) -> None:
        """Compares an output with the truth and reports its relative error.

        Args:
          shape: B and S.
          precision: as in TOLERANCE.
          variant: see the module; it says which truth.
          output: [B,S,H]; of ragged variants [batches,2,S,H], two sequences of each batch.

        Raises:
          ValueError: It is wrong, so that it must not be timed.
        """
        truth = np.load(self.truth_path(shape, variant)).astype(np.float64)
        if variant in RAGGED_VARIANTS:
            lengths = ragged_lengths(*shape, RAGGED_BATCHES)[:, :2]
            output = np.where(is_real(lengths, shape[1])[..., None], output, 0)
        else:
            output = np.asarray(output)[:2, : truth.shape[1]]
        difference = output.astype(np.float64) - truth
        error = float(np.linalg.norm(difference) / np.linalg.norm(truth))
        fields = {"engine": self.engine, "shape": f"{shape[0]}x{shape[1]}"}
        fields |= {"precision": precision, "variant": variant}
        tell("CHECKED", **fields, relative_error=float(f"{error:.3g}"))
        if not error <= TOLERANCE[precision]:
            raise ValueError(
                f"relative error {error:.3g}, expected at most {TOLERANCE[precision]}: not timed"
            )


# ---- PyTorch -------------------------------------------------------------------------------------


def run_torch(worker: Worker) -> None:
    """PyTorch compiled layer by layer (one compilation serves all), replayed as one CUDA graph."""
    import torch
    import torch.nn.functional as F

    device = "cuda" if worker.gpu else "cpu"
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    dtypes |= {name: torch.float16 for name in TORCH_8BIT}
    layers = random_layers(worker.layers)

    def weights(layer: dict[str, np.ndarray], dtype: torch.dtype) -> list[torch.Tensor]:
        projections = [f"attention/self/{name}" for name in ("query", "key", "value")]
        qkv = np.concatenate([layer[f"{name}/kernel"] for name in projections], axis=1).T
        qkv_bias = np.concatenate([layer[f"{name}/bias"] for name in projections])
        arrays = [qkv, qkv_bias]
        for dense, norm in (
            ("attention/output/dense", "attention/output/LayerNorm"),
            ("intermediate/dense", None),
            ("output/dense", "output/LayerNorm"),
        ):
            arrays += [layer[f"{dense}/kernel"].T, layer[f"{dense}/bias"]]
            if norm:
                arrays += [layer[f"{norm}/gamma"], layer[f"{norm}/beta"]]
        return [torch.tensor(np.ascontiguousarray(a), dtype=dtype, device=device) for a in arrays]

    def layer(x: torch.Tensor, mask: torch.Tensor | None, w: list[torch.Tensor]) -> torch.Tensor:
        b, s, _ = x.shape
        qkv = F.linear(x, w[0], w[1]).view(b, s, 3, HEADS, SIZE)
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        a = F.linear(a.transpose(1, 2).reshape(b, s, HIDDEN), w[2], w[3])
        x = F.layer_norm(a + x, (HIDDEN,), w[4], w[5], 1e-12)
        y = F.linear(F.gelu(F.linear(x, w[6], w[7]), approximate="tanh"), w[8], w[9])
        return F.layer_norm(y + x, (HIDDEN,), w[10], w[11], 1e-12)

    compiled = torch.compile(layer, dynamic=False)
    compiled_8bit = torch.compile(_torch_8bit_layer, dynamic=False)
    prepared = []
    # Graphs read their inputs where they lay at capture. Whatever is not held here is freed: at
    # 32x384 the memory then went back to the driver and the replay crashed.
    alive: list[object] = []
    for shape in worker.shapes:
        for precision in worker.precisions:
            dtype = dtypes[precision]
            all_weights = [weights(values, dtype) for values in layers]
            alive.append(all_weights)
            is_8bit = precision in TORCH_8BIT
            for variant in (
                ("full", "packed") if is_8bit else ("masked", "full", "packed", "kept_changing")
            ):
                hidden = hidden_states(*shape)
                if variant == "packed":
                    hidden = hidden[:, : max(1, shape[1] // 2)]
                batch, seq_len, _ = hidden.shape
                x = torch.tensor(hidden, dtype=dtype, device=device)
                mask = None
                if variant in ("masked", "kept_changing"):
                    mask = torch.zeros(batch, 1, seq_len, seq_len, dtype=dtype, device=device)
                    mask[..., seq_len // 2 :] = -10000.0

                def forward(
                    x: torch.Tensor = x,
                    mask: torch.Tensor | None = mask,
                    all_weights: list[list[torch.Tensor]] = all_weights,
                ) -> torch.Tensor:
                    with torch.no_grad():
                        for w in all_weights:
                            x = compiled(x, mask, w)
                    return x

                if is_8bit:
                    quantized = _torch_quantize(layer, x, all_weights, precision)
                    alive.append(quantized)

                    def forward(
                        x: torch.Tensor = x,
                        quantized: list[list[torch.Tensor]] = quantized,
                        precision: str = precision,
                    ) -> torch.Tensor:
                        with torch.no_grad():
                            for w in quantized:
                                x = compiled_8bit(x, w, precision)
                        return x

                alive.append(forward)
                try:
                    run_once, output = _torch_runner(forward, device)
                    if variant == "kept_changing":
                        run_once = _torch_with_next_mask(run_once, mask)
                    prepared.append((shape, precision, variant, run_once, output))
                except Exception as error:  # noqa: BLE001 (reported for this variant alone)
                    message = f"{type(error).__name__}: {error}"[:500]
                    prepared.append((shape, precision, variant, message, None))
    wait_for_turn()
    for shape, precision, variant, run_once, output in prepared:
        if output is None:
            fields = {"shape": f"{shape[0]}x{shape[1]}", "precision": precision}
            tell("RESULT", engine="torch", variant=variant, error=run_once, **fields)
            continue
        run = functools.partial(
            _torch_checked, worker, (shape, precision, variant), run_once, output
        )
        worker.measure(shape, precision, variant, run)
    tell("VERSIONS", torch=torch.__version__, cuda=str(torch.version.cuda))


# The largest number of each 8-bit type of PyTorch.
TORCH_8BIT = {"fp8": 448.0, "int8": 127.0}


def _torch_8bit_layer(x: torch.Tensor, w: list[torch.Tensor], kind: str) -> torch.Tensor:  # noqa: F821
    """One layer [B,S,H] with products of 8 bits; `w` is of `_torch_quantize`."""
    import torch
    import torch.nn.functional as F

    def dense(x: torch.Tensor, at: int) -> torch.Tensor:
        kernel, kernel_scale, bias, input_scale = w[at : at + 4]
        rows = x.reshape(-1, x.shape[-1]).float() / input_scale
        if kind == "fp8":
            rows = rows.clamp(-448, 448).to(torch.float8_e4m3fn)
            y = torch._scaled_mm(
                rows, kernel.t(), scale_a=input_scale, scale_b=kernel_scale, bias=bias,
                out_dtype=torch.float16, use_fast_accum=True,
            )  # fmt: skip
        else:
            rows = rows.round().clamp(-127, 127).to(torch.int8)
            sums = torch._int_mm(rows, kernel.t())
            y = (sums.float() * (input_scale * kernel_scale) + bias.float()).half()
        return y.view(*x.shape[:-1], -1)

    b, s, _ = x.shape
    qkv = dense(x, 0).view(b, s, 3, HEADS, SIZE)
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    a = F.scaled_dot_product_attention(q, k, v)
    a = dense(a.transpose(1, 2).reshape(b, s, HIDDEN), 4)
    x = F.layer_norm(a + x, (HIDDEN,), w[8], w[9], 1e-12)
    y = dense(F.gelu(dense(x, 10), approximate="tanh"), 14)
    return F.layer_norm(y + x, (HIDDEN,), w[18], w[19], 1e-12)


def _torch_quantize(
    layer: Callable,
    x: torch.Tensor,  # noqa: F821
    all_weights: list[list[torch.Tensor]],  # noqa: F821
    kind: str,
) -> list[list[torch.Tensor]]:  # noqa: F821
    """What `_torch_8bit_layer` takes: ranges are largest magnitudes, of the input x [B,S,H] too."""
    import torch
    import torch.nn.functional as F

    largest = TORCH_8BIT[kind]
    dtype = torch.float8_e4m3fn if kind == "fp8" else torch.int8

    def quantized(w: torch.Tensor, bias: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        scale = w.float().abs().max() / largest
        kernel = w.float() / scale
        kernel = (kernel if kind == "fp8" else kernel.round()).to(dtype)
        return [kernel, scale, bias, values.float().abs().max() / largest]

    result = []
    with torch.no_grad():
        for w in all_weights:
            b, s, _ = x.shape
            qkv = F.linear(x, w[0], w[1]).view(b, s, 3, HEADS, SIZE)
            a = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv.unbind(2)))
            a = a.transpose(1, 2).reshape(b, s, HIDDEN)
            middle = F.layer_norm(F.linear(a, w[2], w[3]) + x, (HIDDEN,), w[4], w[5], 1e-12)
            inner = F.gelu(F.linear(middle, w[6], w[7]), approximate="tanh")
            result.append([
                *quantized(w[0], w[1], x), *quantized(w[2], w[3], a), w[4], w[5],
                *quantized(w[6], w[7], middle), *quantized(w[8], w[9], inner), w[10], w[11],
            ])  # fmt: skip
            x = layer(x, None, w)
    return result


def _torch_runner(forward: Callable, device: str) -> tuple[Callable, Callable]:
    """Compiles and captures `forward`: (a function that runs it, one that returns its output)."""
    import torch

    if device == "cpu":
        forward()
        return forward, forward
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward()
    return graph.replay, lambda: output


def _torch_with_next_mask(run_once: Callable, mask: torch.Tensor) -> Callable:  # noqa: F821
    """`run_once` with the mask of another ragged batch in `mask`, [B,1,S,S], in every call."""
    import torch

    batch, _, seq_len, _ = mask.shape
    real = is_real(ragged_lengths(batch, seq_len, RAGGED_BATCHES), seq_len)
    masks = torch.tensor(np.where(real, 0, -10000.0)[:, :, None, None], dtype=mask.dtype)
    order = itertools.cycle(masks.to(mask.device).unbind())

    def run() -> None:
        mask.copy_(next(order).expand(mask.shape))
        run_once()

    return run


def _torch_checked(
    worker: Worker, what: tuple[tuple[int, int], str, str], run_once: Callable, output: Callable
) -> float:
    """Checks an output, then times: milliseconds of a forward."""
    if what[2] in RAGGED_VARIANTS:
        outputs = []
        for _ in range(RAGGED_BATCHES):
            run_once()
            outputs.append(output()[:2].float().cpu().numpy())
        worker.check(*what, np.stack(outputs))
        return _torch_times(run_once, worker.gpu, 2 * RAGGED_BATCHES)
    run_once()
    worker.check(*what, output().float().cpu().numpy())
    return _torch_times(run_once, worker.gpu)


def _torch_times(run_once: Callable, gpu: bool, forwards: int = 50) -> float:
    """Median milliseconds of a forward over 7 runs of `forwards`."""
    import torch

    if not gpu:
        begin = time.perf_counter()
        run_once()
        return 1e3 * (time.perf_counter() - begin)
    runs = []
    for _ in range(8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(forwards):
            run_once()
        end.record()
        end.synchronize()
        runs.append(begin.elapsed_time(end) / forwards)
    return statistics.median(runs[1:])


# ---- TensorFlow ----------------------------------------------------------------------------------


TF_DTYPES = {
    "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32",
    "int8_1": "float16", "int8_2": "float16", "fp8_1": "float16",
}  # fmt: skip


def _set_up_tensorflow() -> None:
    """What every worker with TensorFlow needs, before anything else."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def _device(worker: Worker) -> str:
    """Where to place graphs; fails where a GPU was asked for and there is none."""
    import tensorflow as tf

    if not worker.gpu:
        return "/CPU:0"
    if not tf.config.list_physical_devices("GPU"):
        raise RuntimeError("TensorFlow sees no GPU")
    return "/GPU:0"


def _expected_ms(shape: tuple[int, int], precision: str, layers: int) -> float:
    """A rough guess, to choose the length of a loop that is fixed when it is compiled."""
    flop = 2.0 * shape[0] * shape[1] * layers * (4 * HIDDEN**2 + 2 * HIDDEN * INNER)
    rate = {"fp32": 35e12}.get(precision, 300e12)
    return 0.4 * layers / 12 + 1e3 * flop / rate


def run_truth(worker: Worker) -> None:
    """TensorFlow's own encoder in IEEE float32, without XLA, with all keys and half of them."""
    _set_up_tensorflow()
    import tensorflow as tf

    from fastertransformer_tf.models import encoder_graphs

    sizes = encoder_graphs.EncoderSizes(worker.layers, HEADS, SIZE, INNER)
    layers = random_layers(worker.layers)
    wait_for_turn()
    with tf.device(_device(worker)):
        weights = [{k: tf.constant(v) for k, v in layer.items()} for layer in layers]
        encoder = tf.function(
            functools.partial(encoder_graphs.tensorflow_encoder, sizes=sizes, weights=weights),
            autograph=False,
        )
        for shape in worker.shapes:
            hidden = tf.constant(hidden_states(*shape)[:2])
            for variant, length in (("full", shape[1]), ("masked", max(1, shape[1] // 2))):
                lengths = tf.fill([hidden.shape[0]], length)
                output = encoder(hidden, lengths).numpy()
                np.save(worker.truth_path(shape, variant), output[:, :length])
            ragged = ragged_lengths(*shape, RAGGED_BATCHES)[:, :2]
            outputs = np.stack([encoder(hidden, tf.constant(some)).numpy() for some in ragged])
            outputs[~is_real(ragged, shape[1])] = 0
            np.save(worker.truth_path(shape, "kept_changing"), outputs)


def run_xla(worker: Worker) -> None:
    """TensorFlow's own encoder under XLA, the loop inside one call, its length known to XLA."""
    _set_up_tensorflow()
    import tensorflow as tf

    from fastertransformer_tf.models import encoder_graphs

    device = _device(worker)
    sizes = encoder_graphs.EncoderSizes(worker.layers, HEADS, SIZE, INNER)
    layers = random_layers(worker.layers)
    prepared, slowest = [], 0.0
    for precision in worker.precisions:
        dtype = TF_DTYPES[precision]
        with tf.device(device):
            weights = [{k: tf.cast(v, dtype) for k, v in layer.items()} for layer in layers]
        for shape in worker.shapes:
            begin = time.time()
            if worker.compile_deadline - time.time() < 1.2 * slowest:
                prepared.append((shape, precision, None, "no time was left to compile"))
                continue
            with tf.device(device):
                x = tf.cast(hidden_states(*shape), dtype)
                lengths = tf.constant(np.full(shape[0], max(1, shape[1] // 2), np.int32))
            guess = _expected_ms(shape, precision, worker.layers)
            turns = max(4, math.ceil(LOOP_MS / guess)) if worker.gpu else 2
            encoder = functools.partial(
                encoder_graphs.tensorflow_encoder, sizes=sizes, weights=weights
            )

            def loop(
                states: tf.Tensor,
                lengths: tf.Tensor,
                turns: int = turns,
                encoder: Callable = encoder,
            ) -> tf.Tensor:
                _, end = tf.while_loop(
                    lambda turn, _: turn < turns,
                    lambda turn, inner: (turn + 1, encoder(inner, lengths)),
                    [tf.constant(0), states],
                    maximum_iterations=turns,
                )
                return tf.reduce_mean(tf.cast(end, tf.float32))

            try:
                once = tf.function(encoder, jit_compile=True, autograph=False)
                worker.check(shape, precision, "masked", once(x, lengths).numpy())
                compiled = tf.function(loop, jit_compile=True, autograph=False)
                float(compiled(x, lengths))
                prepared.append((shape, precision, turns, (compiled, x, lengths)))
            except Exception as error:  # noqa: BLE001 (reported for this shape alone)
                prepared.append((shape, precision, None, f"{type(error).__name__}: {error}"[:500]))
            slowest = max(slowest, time.time() - begin)
    wait_for_turn()
    for shape, precision, turns, what in prepared:
        if turns is None:
            fields = {"shape": f"{shape[0]}x{shape[1]}", "precision": precision}
            tell("RESULT", engine="xla", variant="masked", error=what, **fields)
            continue
        compiled, x, lengths = what
        run = functools.partial(lambda f, *a: float(f(*a)), compiled, x, lengths)
        worker.measure(shape, precision, "masked", functools.partial(_median_ms, run, turns))
    tell("VERSIONS", tensorflow=tf.__version__)


def _median_ms(run: Callable[[], object], turns: int, runs: int = RUNS) -> float:
    """Median milliseconds of a turn over some runs of `turns`; each waits for its result."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times) / turns


def _slope_ms(run: Callable[[int], object], turns: int, runs: int = RUNS) -> float:
    """Milliseconds of a turn without what a call costs: from loops of `turns` and 3 * `turns`.

    Of medians, since a difference of two single runs has the noise of both.
    """
    times: dict[int, list[float]] = {turns: [], 3 * turns: []}
    for _ in range(runs):
        for number, seconds in times.items():
            begin = time.perf_counter()
            run(number)
            seconds.append(time.perf_counter() - begin)
    short, long = (statistics.median(seconds) for seconds in times.values())
    return 1e3 * (long - short) / (2 * turns)


class OpLoops:
    """Loops over the op, and over TensorFlow's own layers, in one session of one precision.

    Weights are variables, or constants, read once a call, outside the loop (control flow of
    TensorFlow 1, whose invariants cost nothing a turn), so that no weight is copied or touched by
    the host in it.
    """

    def __init__(
        self, worker: Worker, precision: str, layers: Layers, constants: bool = False
    ) -> None:
        """Loads the weights onto the device, those of 8 bits with the ranges of a batch."""
        import tensorflow.compat.v1 as tf

        from fastertransformer_tf import ops
        from fastertransformer_tf.models import encoder_graphs

        self._tf, self._graphs, self._ops = tf, encoder_graphs, ops
        self._worker, self._precision = worker, precision
        self._device = _device(worker)
        self.sizes = encoder_graphs.EncoderSizes(worker.layers, HEADS, SIZE, INNER)
        if eight_bit_mode(precision):
            from fastertransformer_tf.models import int8_weights

            layers = int8_weights.quantize(
                layers, self.sizes, hidden_states(4, 64), np.full(4, 64, np.int32)
            )
        self.graph = tf.Graph()
        self.session = tf.Session(graph=self.graph)
        self._arrays = encoder_graphs.HeldArrays(tf.as_dtype(TF_DTYPES[precision]))
        with self.graph.as_default(), tf.device(self._device):
            if constants:
                dtype = tf.as_dtype(TF_DTYPES[precision])
                self._weights = [
                    {name: tf.constant(value, dtype) for name, value in layer.items()}
                    for layer in layers
                ]
            else:
                self._weights = self._arrays.hold_weights(layers)
                self._arrays.load(self.session)
        self._hidden: dict[tuple[int, int], object] = {}

    def _variable(self, name: str, value: np.ndarray) -> object:
        """A loaded variable's value; its memory stays where it is."""
        held = self._arrays.hold(name, value)
        self._arrays.load(self.session)
        return held

    def _encoder(self, variant: str, shape: tuple[int, int]) -> Callable[[object, object], object]:
        """What one turn computes of hidden states and lengths."""
        batch, seq_len = shape
        if variant == "tensorflow":
            return lambda x, lengths: self._graphs.tensorflow_encoder(
                x, lengths, self.sizes, self._weights
            )
        if variant == "masktensor":
            mask = np.zeros((batch, 1, seq_len, seq_len), np.float32)
            mask[..., : max(1, seq_len // 2)] = 1
            given = self._variable(f"mask_{batch}x{seq_len}", mask)
        else:
            given = None
        if mode := eight_bit_mode(self._precision):
            return lambda x, lengths: self._graphs.op_encoder(
                x, lengths, self.sizes, self._weights, remove_padding=variant == "packed", **mode
            )
        layers = spec.by_op_input(self._weights)

        def run(x: object, lengths: object) -> object:
            [output] = self._ops.bert_encoder(
                x, None if variant == "masktensor" else lengths, given, layers,
                head_num=HEADS, size_per_head=SIZE,
                remove_padding=variant == "packed" or variant.startswith("removed"),
            )  # fmt: skip
            return self._tf.ensure_shape(output, x.shape)

        return run

    def measure(self, shape: tuple[int, int], variant: str) -> float:
        """Milliseconds of a turn; the output of one turn is checked first."""
        tf = self._tf
        batch, seq_len = shape
        if variant in RAGGED_VARIANTS:
            counts, repeats = ragged_lengths(*shape, RAGGED_BATCHES), RAGGED_VARIANTS[variant]
        else:
            length = seq_len if variant in ("full", "constants") else max(1, seq_len // 2)
            counts, repeats = np.full((1, batch), length, np.int32), 1
        round_turns = len(counts) * repeats
        with self.graph.as_default(), tf.device(self._device):
            if shape not in self._hidden:
                self._hidden[shape] = self._variable(
                    f"hidden_{batch}x{seq_len}", hidden_states(*shape)
                )
            lengths = tf.placeholder(tf.int32, [*counts.shape])
            first, turns = tf.placeholder(tf.int32, []), tf.placeholder(tf.int32, [])
            encoder = self._encoder(variant, shape)

            def lengths_of(turn: object) -> object:
                # TensorFlow does all of this on the host, where the op wants its lengths.
                return lengths[turn // repeats % len(counts)] if round_turns > 1 else lengths[0]

            _, end = tf.while_loop(
                lambda turn, _: turn < first + turns,
                lambda turn, x: (turn + 1, encoder(x, lengths_of(turn))),
                [first, self._hidden[shape]],
                parallel_iterations=1,
                back_prop=False,
            )
            output = tf.cast(end[:2], tf.float32)
            done = tf.reduce_mean(tf.cast(end, tf.float32))
        once = self.session.make_callable(output, [lengths, first, turns])
        outputs = [once(counts, index * repeats, 1) for index in range(len(counts))]
        found = np.stack(outputs) if variant in RAGGED_VARIANTS else outputs[0]
        self._worker.check(shape, self._precision, variant, found)
        call = self.session.make_callable(done, [lengths, first, turns])
        call(counts, 0, 2)
        begin = time.perf_counter()
        call(counts, 0, 5)
        guess = 1e3 * (time.perf_counter() - begin) / 5
        if not self._worker.gpu:
            return guess
        number = max(3, math.ceil(LOOP_MS / 3 / guess))
        number = math.ceil(number / round_turns) * round_turns
        # Memory comes back at a few addresses, and each makes a CUDA graph at its second call.
        call(counts, 0, 3 * number)
        return _slope_ms(lambda turns: call(counts, 0, turns), number)


def _constants_ms(worker: Worker, layers: Layers, shape: tuple[int, int]) -> float:
    """Milliseconds of a turn with constants, in a session for this shape alone."""
    return OpLoops(worker, "fp16", layers, constants=True).measure(shape, "constants")


def run_op(worker: Worker) -> None:
    """The op inside TensorFlow, and TensorFlow's own layers without XLA; most important first."""
    _set_up_tensorflow()
    import tensorflow as tf

    # Weights must be invariants of the loop; see OpLoops.
    tf.compat.v1.disable_control_flow_v2()
    tf.compat.v1.disable_eager_execution()
    layers = random_layers(worker.layers)
    if worker.engine == "op_tuned":
        plan = [("fp16", "masked"), ("fp16", "packed"), ("fp16", "full")]
        for precision in ("fp8_1", "int8_2", "int8_1"):
            plan += [(precision, "full"), (precision, "packed")]
        plan += [("fp16", variant) for variant in RAGGED_VARIANTS]
    else:
        plan = [
            ("fp16", "full"), ("fp16", "packed"), ("fp32", "full"), ("fp32", "packed"),
            ("fp8_1", "full"), ("fp8_1", "packed"), ("bf16", "full"), ("bf16", "packed"),
            ("tf32", "full"), ("fp16", "masktensor"), ("fp16", "tensorflow"),
            ("fp32", "tensorflow"),
        ]  # fmt: skip
    loops: dict[str, OpLoops] = {}
    wait_for_turn()
    for precision, variant in worker.plan or plan:
        # A new node for each measurement, in case a kernel asks only once whether TF32 is allowed.
        tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
        if precision not in loops:
            loops[precision] = OpLoops(worker, precision, layers)
        for shape in worker.shapes:
            worker.measure(
                shape,
                precision,
                variant,
                functools.partial(loops[precision].measure, shape, variant),
            )
    if worker.engine == "op_tuned" and not worker.plan:
        loops.clear()
        for shape in sorted({*CONSTANTS_SHAPES} & {*worker.shapes}):
            run = functools.partial(_constants_ms, worker, layers, shape)
            worker.measure(shape, "fp16", "constants", run)
    tell("VERSIONS", tensorflow=tf.__version__)


KINDS = {"truth": run_truth, "torch": run_torch, "xla": run_xla, "op": run_op}


def make_parser() -> argparse.ArgumentParser:
    """The command line of one worker."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--engine", help="name in the results; default: the kind")
    parser.add_argument("--shapes", required=True)
    parser.add_argument("--precisions", default="fp16")
    parser.add_argument("--plan", default="", help="of op: fp16:masked,fp16:packed,... alone")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds of the epoch")
    parser.add_argument("--compile_deadline", type=float, default=math.inf, help="likewise")
    return parser


def main() -> None:
    """Runs one worker."""
    args = make_parser().parse_args()
    KINDS[args.kind](Worker(args))
    tell("DONE")
    sys.stdout.flush()
    os._exit(0)  # PyTorch was seen to crash while it takes its graphs down.


if __name__ == "__main__":
    main()
