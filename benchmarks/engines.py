"""The op and its peers behind one interface: compile a shape, then call it.

Every engine gets the same float32 weights, float32 hidden states and one length per sequence, and
gives float32 hidden states back. What may differ between calls of one shape is an input; everything
else is fixed, so that each engine may pack and fuse. Weights are constants, but the op's, which are
variables as in this package's programs; "op constants" is the same op with constants.
"""

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable

import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks.encoder_model import EncoderModel, random_batch
from fastertransformer_tf.models import encoder_graphs, int8_weights
from fastertransformer_tf.models.encoder_graphs import Weights

Run = Callable[[], np.ndarray]


class EngineUnavailable(Exception):
    """A peer cannot be run here; the message says why."""


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise EngineUnavailable(f"not installed: {', '.join(missing)}")


class Engine:
    """One way to compute the encoder."""

    name = ""
    package = ""
    # What holds the weights.
    holder = "constants"

    def __init__(self, model: EncoderModel, weights: Weights, dtype: str, threads: int) -> None:
        """Loads what does not depend on the shape.

        Args:
          model: sizes.
          weights: one dict for each layer.
          dtype: what GEMMs compute in: "float32", "bfloat16" or "int8"; of the op "int8 mode 1" or
            "int8 mode 2", followed by ", bfloat16" where all else is bfloat16 and not float32.
          threads: CPU threads.

        Raises:
          EngineUnavailable: the package is missing or does not offer `dtype` on this CPU.
        """
        self.model = model
        self.weights = weights
        self.dtype = dtype
        self.threads = threads

    @classmethod
    def version(cls) -> str:
        """Version of the package; "missing", or "from the checkout" where it is not installed."""
        try:
            return importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError:
            found = importlib.util.find_spec(cls.package) is not None
            return "from the checkout" if found else "missing"

    def compile(self, batch: int | None, seq: int | None) -> None:
        """Gets ready for hidden states of shape [batch, seq, H]."""
        raise NotImplementedError

    def bind(self, hidden: np.ndarray, lengths: np.ndarray) -> Run:
        """Returns a function that runs one forward pass: [B,S,H] float32."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what compile made."""


def op_types(dtype: str) -> tuple[int, str]:
    """The op's int8_mode, 0 of dtypes that are not int8, and its T."""
    if not dtype.startswith("int8 mode "):
        return 0, dtype
    mode, _, activations = dtype.removeprefix("int8 mode ").partition(", ")
    return int(mode), activations or "float32"


def calibration_batch(model: EncoderModel) -> tuple[np.ndarray, np.ndarray]:
    """What every int8 engine takes its ranges from: hidden states [B,S,H] and lengths [B]."""
    return random_batch(model, 4, 64, "full", seed=3)


def _mask(hidden: np.ndarray, lengths: np.ndarray, dtype: type) -> np.ndarray:
    """[B,S], 1 where there is a token."""
    return (np.arange(hidden.shape[1]) < lengths[:, None]).astype(dtype)


class _TensorFlowSession(Engine):
    """A TensorFlow 1 graph of fixed shape, run through a callable."""

    package = "tensorflow"
    session: tf.Session | None = None
    # Calls that run at a time, of all sessions of a process.
    concurrent_calls = 1

    def _config(self) -> tf.ConfigProto:
        return tf.ConfigProto(
            intra_op_parallelism_threads=self.threads,
            inter_op_parallelism_threads=self.concurrent_calls,
        )

    def _build(self, hidden: tf.Tensor, batch: int | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the placeholder of the lengths and the output."""
        raise NotImplementedError

    def _load(self, session: tf.Session) -> None:
        """Fills the graph's variables, where it has some."""

    def compile(self, batch: int | None, seq: int | None) -> None:
        self.close()
        with tf.Graph().as_default() as graph:
            hidden = tf.placeholder(tf.float32, [batch, seq, self.model.hidden], "hidden")
            lengths, output = self._build(hidden, batch)
            self.session = tf.Session(graph=graph, config=self._config())
            self._load(self.session)
            self._call = self.session.make_callable(output, [hidden, lengths])

    def bind(self, hidden: np.ndarray, lengths: np.ndarray) -> Run:
        return lambda: self._call(hidden, lengths)

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = self._call = None


class TensorFlow(_TensorFlowSession):
    """bert-tensorflow's own graph, weights frozen to constants.

    bfloat16 is TensorFlow's own way on a CPU: Grappler's oneDNN mixed precision pass.
    """

    name = "tensorflow"

    def __init__(self, model: EncoderModel, weights: Weights, dtype: str, threads: int) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise EngineUnavailable(f"TensorFlow has no {dtype} graph of BERT")
        super().__init__(model, weights, dtype, threads)

    def _config(self) -> tf.ConfigProto:
        config = super()._config()
        if self.dtype == "bfloat16":
            rewrite = config.graph_options.rewrite_options
            rewrite.auto_mixed_precision_onednn_bfloat16 = type(rewrite).ON
        return config

    def _build(self, hidden: tf.Tensor, batch: int | None) -> tuple[tf.Tensor, tf.Tensor]:
        lengths = tf.placeholder(tf.int32, [batch], "lengths")
        return lengths, encoder_graphs.tensorflow_encoder(hidden, lengths, self.model, self.weights)


class Op(_TensorFlowSession):
    """This project's BertEncoder op; padding kept."""

    name = "op"
    package = "fastertransformer_tf"
    holder = "variables"
    remove_padding = False
    # Weights, and the same quantized.
    _last: tuple[Weights, Weights] | None = None

    def __init__(self, model: EncoderModel, weights: Weights, dtype: str, threads: int) -> None:
        super().__init__(model, weights, dtype, threads)
        if op_types(dtype)[0]:
            self._quantized = self._quantize(model, weights)

    @staticmethod
    def _quantize(model: EncoderModel, weights: Weights) -> Weights:
        """Those of the last call again where the weights are the same: every int8 dtype's are."""
        if Op._last is None or Op._last[0] is not weights:
            quantized = int8_weights.quantize(weights, model, *calibration_batch(model))
            Op._last = weights, quantized
        return Op._last[1]

    def _build(self, hidden: tf.Tensor, batch: int | None) -> tuple[tf.Tensor, tf.Tensor]:
        lengths = tf.placeholder(tf.int32, [batch], "lengths")
        mode, activations = op_types(self.dtype)
        dtype = tf.as_dtype(activations)
        weights = self._quantized if mode else self.weights
        self._held = encoder_graphs.HeldArrays(dtype)
        if self.holder == "variables":
            weights = self._held.hold_weights(weights)
        output = encoder_graphs.op_encoder(
            tf.cast(hidden, dtype),
            lengths,
            self.model,
            weights,
            remove_padding=self.remove_padding,
            int8_mode=mode,
        )
        return lengths, tf.cast(output, tf.float32)

    def _load(self, session: tf.Session) -> None:
        self._held.load(session)


class OpConstants(Op):
    """The op with weights that are constants of the graph."""

    name = "op constants"
    holder = "constants"


class OpRemovePadding(Op):
    """The op computing only real tokens."""

    name = "op remove_padding"
    remove_padding = True


def build_onnx(model: EncoderModel, weights: Weights, gelu_op: bool) -> "onnx.ModelProto":  # noqa: F821
    """Builds the encoder as ONNX, in the form in which PyTorch exports it.

    Args:
      model: sizes.
      weights: as benchmarks.encoder_model.random_weights makes them.
      gelu_op: GELU as one operator (opset 20); else spelled out, which is the form that ONNX
        Runtime's transformer optimizer knows.

    Returns:
      A model with inputs hidden [B,S,H] float32, mask [B,S] int64 and output [B,S,H]; B and S are
      symbolic.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, initializers = [], []
    hidden_size = model.hidden

    def constant(name: str, value: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def scalar(name: str, value: float) -> str:
        return constant(name, np.array(value, np.float32))

    one, two_pi, cube = scalar("one", 1), scalar("gelu_scale", np.sqrt(2 / np.pi)), scalar("3", 3)
    half, gelu_cubic = scalar("half", 0.5), scalar("gelu_cubic", 0.044715)
    root, masked = scalar("sqrt_size", np.sqrt(model.size)), scalar("masked", -10000)
    split = constant("split", np.array([0, 0, model.heads, model.size], np.int64))
    merge = constant("merge", np.array([0, 0, hidden_size], np.int64))

    node("Unsqueeze", ["mask", constant("axis_1", np.array([1], np.int64))], "mask_3d")
    node("Unsqueeze", ["mask_3d", constant("axis_2", np.array([2], np.int64))], "mask_4d")
    node("Cast", ["mask_4d"], "mask_float", to=TensorProto.FLOAT)
    node("Sub", [one, "mask_float"], "mask_inverse")
    adder = node("Mul", ["mask_inverse", masked], "mask_adder")

    previous = "hidden"
    for index, layer in enumerate(weights):
        prefix = f"layer_{index}/"

        def dense(x: str, scope: str, prefix: str = prefix, layer: dict = layer) -> str:
            kernel = constant(prefix + scope + "/kernel", layer[scope + "/kernel"])
            bias = constant(prefix + scope + "/bias", layer[scope + "/bias"])
            product = node("MatMul", [x, kernel], prefix + scope + "/matmul")
            return node("Add", [bias, product], prefix + scope + "/add")

        def norm(x: str, y: str, scope: str, prefix: str = prefix, layer: dict = layer) -> str:
            gamma = constant(prefix + scope + "/gamma", layer[scope + "/gamma"])
            beta = constant(prefix + scope + "/beta", layer[scope + "/beta"])
            total = node("Add", [x, y], prefix + scope + "/residual")
            return node(
                "LayerNormalization",
                [total, gamma, beta],
                prefix + scope + "/out",
                axis=-1,
                epsilon=1e-12,
            )

        def heads(x: str, name: str, perm: list[int], prefix: str = prefix) -> str:
            shaped = node("Reshape", [x, split], f"{prefix}{name}/split")
            return node("Transpose", [shaped], f"{prefix}{name}/transpose", perm=perm)

        query = heads(dense(previous, "attention/self/query"), "query", [0, 2, 1, 3])
        key = heads(dense(previous, "attention/self/key"), "key", [0, 2, 3, 1])
        value = heads(dense(previous, "attention/self/value"), "value", [0, 2, 1, 3])
        scores = node("MatMul", [query, key], prefix + "scores")
        scaled = node("Div", [scores, root], prefix + "scaled")
        added = node("Add", [scaled, adder], prefix + "masked_scores")
        probabilities = node("Softmax", [added], prefix + "softmax", axis=-1)
        context = node("MatMul", [probabilities, value], prefix + "context")
        rows = node("Transpose", [context], prefix + "context/rows", perm=[0, 2, 1, 3])
        merged = node("Reshape", [rows, merge], prefix + "context/merge")
        projected = dense(merged, "attention/output/dense")
        attended = norm(projected, previous, "attention/output/LayerNorm")

        x = dense(attended, "intermediate/dense")
        if gelu_op:
            activated = node("Gelu", [x], prefix + "gelu", approximate="tanh")
        else:
            power = node("Pow", [x, cube], prefix + "gelu/pow")
            cubic = node("Mul", [power, gelu_cubic], prefix + "gelu/cubic")
            inside = node("Add", [x, cubic], prefix + "gelu/inside")
            tanh = node("Tanh", [node("Mul", [inside, two_pi], prefix + "gelu/arg")],
                        prefix + "gelu/tanh")  # fmt: skip
            factor = node("Add", [tanh, one], prefix + "gelu/factor")
            halved = node("Mul", [x, half], prefix + "gelu/half")
            activated = node("Mul", [halved, factor], prefix + "gelu")
        previous = norm(dense(activated, "output/dense"), attended, "output/LayerNorm")

    node("Identity", [previous], "output")
    graph = helper.make_graph(
        nodes,
        model.name,
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "S", hidden_size]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["B", "S"]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", "S", hidden_size])],
        initializers,
    )
    opset = helper.make_opsetid("", 20 if gelu_op else 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=onnx.IR_VERSION_2023_5_5)


class OnnxRuntime(Engine):
    """ONNX Runtime as it comes: its own graph optimizations at their highest level."""

    name = "onnxruntime plain"
    package = "onnxruntime"
    dtypes: tuple[str, ...] = ("float32", "int8")

    def __init__(self, model: EncoderModel, weights: Weights, dtype: str, threads: int) -> None:
        _require("onnx", "onnxruntime")
        if dtype not in self.dtypes:
            raise EngineUnavailable(f"ONNX Runtime has no such {dtype} GEMM on x86 CPUs")
        import onnxruntime

        super().__init__(model, weights, dtype, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(
            self._quantized_model().SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )

    def _quantized_model(self) -> "onnx.ModelProto":  # noqa: F821
        """The model; int8: weights by channel, activations with ranges of every call's own."""
        if self.dtype != "int8":
            return self._model()
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            quantize_dynamic(
                self._model(), path, per_channel=True, weight_type=QuantType.QInt8,
                # Of what shape inference, which knows no fused operators, cannot tell.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )  # fmt: skip
            return onnx.load(path)

    def _model(self) -> "onnx.ModelProto":  # noqa: F821
        return build_onnx(self.model, self.weights, gelu_op=True)

    def compile(self, batch: int | None, seq: int | None) -> None:
        pass  # one session takes every shape

    def bind(self, hidden: np.ndarray, lengths: np.ndarray) -> Run:
        feeds = {"hidden": hidden, "mask": _mask(hidden, lengths, np.int64)}
        return lambda: self._session.run(["output"], feeds)[0]


class OnnxRuntimeFused(OnnxRuntime):
    """ONNX Runtime on a graph that its transformer optimizer rewrote."""

    name = "onnxruntime fused"

    def _model(self) -> "onnx.ModelProto":  # noqa: F821
        _require("sympy")  # by ONNX Runtime's optimizer
        from onnxruntime.transformers import optimizer

        fused = optimizer.optimize_model(
            build_onnx(self.model, self.weights, gelu_op=False),
            model_type="bert",
            num_heads=self.model.heads,
            hidden_size=self.model.hidden,
            opt_level=0,
        )
        counts = fused.get_fused_operator_statistics()
        expected = {
            "Attention": self.model.layers,
            "SkipLayerNormalization": 2 * self.model.layers,
        }
        if any(counts.get(op, 0) < number for op, number in expected.items()):
            raise EngineUnavailable(f"ONNX Runtime's optimizer fused {counts}, not {expected}")
        from onnx import helper

        # The fused operators' own, which quantization asks for.
        fused.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return fused.model


class OnnxRuntimeStatic(OnnxRuntime):
    """ONNX Runtime on a graph quantized with calibrated ranges (QDQ)."""

    name = "onnxruntime static"
    dtypes = ("int8",)

    def _quantized_model(self) -> "onnx.ModelProto":  # noqa: F821
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        hidden, lengths = calibration_batch(self.model)

        class Reader(CalibrationDataReader):
            """One batch."""

            batches = iter([{"hidden": hidden, "mask": _mask(hidden, lengths, np.int64)}])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            quantize_static(
                self._model(), path, Reader(), per_channel=True, weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
            )  # fmt: skip
            return onnx.load(path)


class OpenVino(Engine):
    """OpenVINO, compiled for latency and for each shape; int8 by NNCF as for a transformer."""

    name = "openvino"
    package = "openvino"

    def __init__(self, model: EncoderModel, weights: Weights, dtype: str, threads: int) -> None:
        _require("onnx", "openvino")
        import openvino

        super().__init__(model, weights, dtype, threads)
        self._core = openvino.Core()
        offered = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if dtype == "bfloat16" and "BF16" not in offered:
            raise EngineUnavailable(f"OpenVINO offers {offered} on this CPU, not BF16")
        proto = build_onnx(model, weights, gelu_op=True)
        self._model = self._core.read_model(proto.SerializeToString())
        if dtype == "int8":
            _require("nncf")
            import nncf

            hidden, lengths = calibration_batch(model)
            feeds = {"hidden": hidden, "mask": _mask(hidden, lengths, np.int64)}
            self._model = nncf.quantize(
                self._model, nncf.Dataset([feeds]), model_type=nncf.ModelType.TRANSFORMER
            )

    def compile(self, batch: int | None, seq: int | None) -> None:
        # -1: any size.
        sizes = [-1 if size is None else size for size in (batch, seq)]
        self._model.reshape({"hidden": [*sizes, self.model.hidden], "mask": sizes})
        compiled = self._core.compile_model(
            self._model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self.threads,
                "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == "bfloat16" else "f32",
            },
        )
        self._request = compiled.create_infer_request()

    def bind(self, hidden: np.ndarray, lengths: np.ndarray) -> Run:
        feeds = {"hidden": hidden, "mask": _mask(hidden, lengths, np.int64)}

        def run() -> np.ndarray:
            # The view is overwritten by the next call; the caller copies what it keeps.
            return self._request.infer(feeds, share_inputs=True, share_outputs=True)[0]

        return run

    def close(self) -> None:
        self._request = None


class PyTorch(Engine):
    """PyTorch as it comes: its own attention, one operator after the other."""

    name = "pytorch eager"
    package = "torch"

    def __init__(self, model: EncoderModel, weights: Weights, dtype: str, threads: int) -> None:
        _require("torch")
        if dtype not in ("float32", "bfloat16"):
            raise EngineUnavailable(f"PyTorch has no {dtype} encoder")
        import torch

        super().__init__(model, weights, dtype, threads)
        torch.set_num_threads(threads)
        self._dtype = getattr(torch, dtype)
        self._encoder = torch_encoder(model, weights).to(self._dtype).eval()
        self._forward = self._encoder

    def compile(self, batch: int | None, seq: int | None) -> None:
        pass  # runs any shape

    def bind(self, hidden: np.ndarray, lengths: np.ndarray) -> Run:
        import torch

        states = torch.from_numpy(hidden)
        masked = (1 - _mask(hidden, lengths, np.float32)) * -10000
        adder = torch.from_numpy(masked[:, None, None, :]).to(self._dtype)

        def run() -> np.ndarray:
            with torch.inference_mode():
                return self._forward(states.to(self._dtype), adder).float().numpy()

        return run


class PyTorchCompiled(PyTorch):
    """torch.compile with weights frozen, compiled for each shape (a range of shapes if ragged)."""

    name = "pytorch compiled"

    def compile(self, batch: int | None, seq: int | None) -> None:
        import torch
        from torch._inductor import config

        config.freezing = True
        torch.compiler.reset()
        self._forward = torch.compile(self._encoder, dynamic=batch is None or seq is None)

    def bind(self, hidden: np.ndarray, lengths: np.ndarray) -> Run:
        run = super().bind(hidden, lengths)
        try:
            run()
        except Exception as error:
            # The compiler's own errors have no common base, and are of a missing C++ compiler, say.
            raise EngineUnavailable(
                f"torch.compile failed: {str(error).splitlines()[0]}"
            ) from error
        return run


def torch_encoder(model: EncoderModel, weights: Weights) -> "torch.nn.Module":  # noqa: F821
    """The encoder of torch.nn's own layers, float32.

    Args:
      model: sizes.
      weights: one dict for each layer.

    Returns:
      A module that takes hidden states [B,S,H] and what is added to scores, [B,1,1,S].
    """
    import torch
    from torch.nn import functional

    def dense(layer: dict[str, np.ndarray], scope: str) -> torch.nn.Linear:
        kernel = layer[f"{scope}/kernel"]
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.T))
        linear.bias.data = torch.from_numpy(layer[f"{scope}/bias"].copy())
        return linear

    def norm(layer: dict[str, np.ndarray], scope: str) -> torch.nn.LayerNorm:
        layer_norm = torch.nn.LayerNorm(model.hidden, eps=1e-12)
        layer_norm.weight.data = torch.from_numpy(layer[f"{scope}/gamma"].copy())
        layer_norm.bias.data = torch.from_numpy(layer[f"{scope}/beta"].copy())
        return layer_norm

    class Layer(torch.nn.Module):
        """One of the encoder's layers."""

        def __init__(self, layer: dict[str, np.ndarray]) -> None:
            super().__init__()
            self.query = dense(layer, "attention/self/query")
            self.key = dense(layer, "attention/self/key")
            self.value = dense(layer, "attention/self/value")
            self.projection = dense(layer, "attention/output/dense")
            self.attention_norm = norm(layer, "attention/output/LayerNorm")
            self.intermediate = dense(layer, "intermediate/dense")
            self.output = dense(layer, "output/dense")
            self.output_norm = norm(layer, "output/LayerNorm")

        def forward(self, x: torch.Tensor, adder: torch.Tensor) -> torch.Tensor:
            def heads(y: torch.Tensor) -> torch.Tensor:
                return y.unflatten(-1, (model.heads, model.size)).transpose(1, 2)

            context = functional.scaled_dot_product_attention(
                heads(self.query(x)), heads(self.key(x)), heads(self.value(x)), attn_mask=adder
            )
            x = self.attention_norm(x + self.projection(context.transpose(1, 2).flatten(2)))
            inner = functional.gelu(self.intermediate(x), approximate="tanh")
            return self.output_norm(x + self.output(inner))

    class Encoder(torch.nn.Module):
        """All layers."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(Layer(layer) for layer in weights)

        def forward(self, x: torch.Tensor, adder: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x, adder)
            return x

    return Encoder()


ENGINES = {
    engine.name: engine
    for engine in (
        TensorFlow,
        OnnxRuntime,
        OnnxRuntimeFused,
        OnnxRuntimeStatic,
        OpenVino,
        PyTorch,
        PyTorchCompiled,
        Op,
        OpConstants,
        OpRemovePadding,
    )
}
