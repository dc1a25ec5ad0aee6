r"""Times fastertransformer_torch and PyTorch's own ways to run the same BERT, on a CPU or a GPU.

Transformers' BertEncoder runs eagerly with its two attentions, traced by TorchScript, by
torch.compile in its default mode and with max-autotune (on a CPU with frozen weights, on a GPU in
CUDA graphs), and its layers over nested tensors, whose attention is told lengths; `optimize`
replaces it, with and without padding removed. All are checked against transformers in float64, then
timed in one process, in rounds in which each has its turn, in another order every time. Writes JSON
(all samples) and a Markdown table after every row. Needs no TensorFlow.

  PYTHONPATH=torch_ops python -m benchmarks.torch_encoder --models=minilm --shapes=1x32,8x128
  PYTHONPATH=torch_ops python -m benchmarks.torch_encoder --device=cuda --dtypes=float16 \
    --models=bert-base --shapes=1x32,8x32,32x32,1x128,8x128,32x128,1x384,8x384,32x384
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from absl import app, flags, logging
from tqdm import tqdm

import fastertransformer_torch
from benchmarks import report
from benchmarks.encoder_model import MODELS, EncoderModel, random_batch
from fastertransformer_tf import spec

OURS = ("ours", "ours remove_padding")
FILLS = ("full", "half")
PEERS = ("eager", "torchscript", "sdpa", "sdpa lengths", "compile", "compile max-autotune")
ENGINES = (*PEERS, *OURS)
# Calls of a sample, so that what one costs shows beside the clock and the end of a GPU's work.
CALLS = {"cpu": 1, "cuda": 20}

_MODELS = flags.DEFINE_list("models", list(MODELS), f"Of {', '.join(MODELS)}.")
_SHAPES = flags.DEFINE_list(
    "shapes", "1x32,8x32,1x128,8x128,1x384,8x384", "Batch x sequence length, in this order."
)
_DTYPES = flags.DEFINE_list("dtypes", "float32,bfloat16", "Of float32, float16, bfloat16.")
_DEVICE = flags.DEFINE_enum("device", "cpu", list(CALLS), "Where everything runs.")
_BUDGET = flags.DEFINE_float(
    "budget_seconds", float("inf"), "No row is begun after that time; those left out are named."
)
_FILLS = flags.DEFINE_list("fills", list(FILLS), "full: no padding; half: S/2 tokens in each S.")
_ENGINES = flags.DEFINE_list("engines", list(ENGINES), f"Of {', '.join(ENGINES)}.")
_THREADS = flags.DEFINE_integer("threads", 2, "Intra-op threads of PyTorch.", 1)
_SECONDS = flags.DEFINE_float("seconds", 10, "Of timing for each shape, dtype and fill.", 0)
_MIN_ROUNDS = flags.DEFINE_integer("min_rounds", 5, "Turns at least.", 1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the results go.")
_NAME = flags.DEFINE_string("name", "torch_encoder", "First part of the result files' names.")

# Largest ||output - reference|| / ||reference|| over real tokens.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
# A turn begins when the threads of the one before have stopped spinning, with a call that does not
# count.
_SETTLE_SECONDS = 0.02
_ORDER_SEED = 1

Run = Callable[[], torch.Tensor]


@dataclasses.dataclass
class Contestant:
    """One engine on one batch."""

    engine: str
    run: Run
    error: float
    samples_ms: list[float] = dataclasses.field(default_factory=list)

    def turn(self) -> None:
        """Takes one sample."""
        time.sleep(_SETTLE_SECONDS)
        self.run()
        calls = CALLS[_DEVICE.value]
        _wait_for_gpu()
        start = time.perf_counter()
        for _ in range(calls):
            self.run()
        _wait_for_gpu()
        self.samples_ms.append(1e3 * (time.perf_counter() - start) / calls)

    def summary(self) -> dict[str, Any]:
        """What goes into the JSON file."""
        p10, median, p90 = np.percentile(self.samples_ms, [10, 50, 90]).round(3).tolist()
        return {
            "engine": self.engine,
            "relative_error": float(f"{self.error:.3g}"),
            "median_ms": median,
            "p10_ms": p10,
            "p90_ms": p90,
            "samples_ms": np.round(self.samples_ms, 3).tolist(),
        }


def _wait_for_gpu() -> None:
    if _DEVICE.value == "cuda":
        torch.cuda.synchronize()


def make_bert(model: EncoderModel, attention: str) -> transformers.BertModel:
    """Makes transformers' BERT, float32, random weights in its encoder, one of its attentions."""
    config = transformers.BertConfig(
        vocab_size=1,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_hidden_layers=model.layers,
        intermediate_size=model.inner,
        attn_implementation=attention,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    layers = spec.random_layers(np.random.default_rng(1), model.layers, model.hidden, model.inner)
    state = spec.hugging_face_state(layers)
    bert.encoder.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return bert.to(_DEVICE.value)


def attention_mask(
    lengths: np.ndarray, seq: int, dtype: torch.dtype, attention: str
) -> torch.Tensor | None:
    """The mask as BertModel makes it of attention_mask [B,S]; None where there is no padding."""
    if (lengths == seq).all():
        return None
    keys = (torch.arange(seq) < torch.tensor(lengths)[:, None]).to(_DEVICE.value)
    mask = keys[:, None, None, :].expand(-1, 1, seq, -1).contiguous()
    if attention == "sdpa":
        return mask
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill(~mask, torch.finfo(dtype).min)


class NestedEncoder(torch.nn.Module):
    """transformers' layers over the real tokens alone, as nested tensors of a jagged layout.

    The attention knows the lengths; no mask is made. Padding is removed before the first layer and
    put back, as zeros, behind the last.
    """

    def __init__(self, encoder: Any, lengths: np.ndarray, seq: int) -> None:
        """Takes over the layers of transformers' encoder, for batches of these lengths."""
        super().__init__()
        self.layers = encoder.layer
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.offsets = torch.tensor(offsets, device=_DEVICE.value)
        self.longest = int(lengths.max())
        keys = torch.arange(seq) < torch.tensor(lengths)[:, None]
        self.places = keys.flatten().nonzero()[:, 0].to(_DEVICE.value)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the last layer's hidden states [B,S,H] of hidden [B,S,H]."""
        rows = hidden.flatten(0, 1)[self.places]
        for layer in self.layers:
            rows = self._layer(layer, rows)
        output = hidden.new_zeros(hidden.shape)
        output.flatten(0, 1)[self.places] = rows
        return output

    def _layer(self, layer: Any, rows: torch.Tensor) -> torch.Tensor:
        attention = layer.attention.self
        size = attention.attention_head_size

        def heads(dense: torch.nn.Linear) -> torch.Tensor:
            values = dense(rows).unflatten(-1, (-1, size))
            nested = torch.nested.nested_tensor_from_jagged(
                values, self.offsets, min_seqlen=1, max_seqlen=self.longest
            )
            return nested.transpose(1, 2)

        context = torch.nn.functional.scaled_dot_product_attention(
            heads(attention.query), heads(attention.key), heads(attention.value)
        )
        context = context.transpose(1, 2).values().flatten(-2)
        middle = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + rows)
        return layer.output(layer.intermediate(middle), middle)


class _HiddenStates(torch.nn.Module):
    """An encoder that returns a tensor, as tracing wants it."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoder(hidden, attention_mask=mask).last_hidden_state


def make_run(
    engine: str, model: EncoderModel, dtype: str, hidden: np.ndarray, lengths: np.ndarray
) -> Run:
    """An engine on one batch, compiled where it is."""
    kind = getattr(torch, dtype)
    attention = "eager" if engine == "eager" else "sdpa"
    bert = make_bert(model, attention).to(kind)
    states = torch.tensor(hidden).to(_DEVICE.value, kind)
    mask = attention_mask(lengths, hidden.shape[1], kind, attention)
    inputs = (states,) if mask is None else (states, mask)
    if engine in OURS:
        fastertransformer_torch.optimize(bert, remove_padding=engine.endswith("remove_padding"))
    encoder: Any = _HiddenStates(bert.encoder)
    if engine == "sdpa lengths":
        encoder, inputs = NestedEncoder(bert.encoder, lengths, hidden.shape[1]), (states,)
    if engine == "torchscript":
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter(
                "ignore"
            )  # It is deprecated, and tells of what it makes constant.
            encoder = torch.jit.trace(encoder, inputs, check_trace=False)
    if engine.startswith("compile"):
        tuned = engine.endswith("max-autotune")
        on_cpu = _DEVICE.value == "cpu"
        torch.compiler.reset()
        torch._inductor.config.freezing = tuned and on_cpu
        mode = "max-autotune-no-cudagraphs" if on_cpu else "max-autotune"
        encoder = torch.compile(encoder, dynamic=False, mode=mode if tuned else None)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return encoder(*inputs)

    run()
    return run


def measure(contestants: list[Contestant]) -> float:
    """Times all in turn; returns how many CPUs other work kept busy meanwhile, on average."""
    start, others = time.perf_counter(), report.other_cpu_seconds()
    rounds, order = 0, np.random.default_rng(_ORDER_SEED)
    while rounds < _MIN_ROUNDS.value or time.perf_counter() - start < _SECONDS.value:
        for index in order.permutation(len(contestants)):
            contestants[index].turn()
        rounds += 1
    others = report.other_cpu_seconds() - others
    return max(0.0, others / (time.perf_counter() - start))


def measure_batch(model: EncoderModel, shape: str, dtype: str, fill: str) -> dict[str, Any]:
    """Checks and times all engines on one batch.

    Raises:
      AssertionError: An output of ours is wrong. One of a peer is warned of.
    """
    batch, seq = map(int, shape.split("x"))
    hidden, lengths = random_batch(model, batch, seq, fill)
    real = (torch.arange(seq) < torch.tensor(lengths)[:, None]).to(_DEVICE.value)
    exact = make_bert(model, "eager").double()
    with torch.no_grad():
        mask = attention_mask(lengths, seq, torch.float64, "eager")
        states = torch.tensor(hidden).to(_DEVICE.value, torch.float64)
        reference = exact.encoder(states, attention_mask=mask).last_hidden_state[real]
    contestants = []
    for engine in _ENGINES.value:
        if engine == "ours remove_padding" and fill == "full":
            continue  # There is nothing to remove.
        if engine == "sdpa lengths" and fill == "full":
            continue  # There is nothing to tell.
        try:
            run = make_run(engine, model, dtype, hidden, lengths)
        except (
            Exception
        ) as error:  # Such as a machine without a compiler, which torch.compile needs.
            if engine in OURS:
                raise
            logging.warning(f"{engine} {dtype} {shape} {fill} does not run: {error!r:.300}")
            continue
        difference = float((run()[real].double() - reference).norm() / reference.norm())
        if not difference <= TOLERANCE[dtype]:
            message = f"{engine} {dtype} {shape} {fill}: relative error {difference:.2e}"
            assert engine not in OURS, message
            logging.warning(message)
        contestants.append(Contestant(engine, run, difference))
    busy = measure(contestants)
    return {
        "model": model.name,
        "shape": shape,
        "dtype": dtype,
        "fill": fill,
        "other_cpus_busy": round(busy, 3),
        "results": [contestant.summary() for contestant in contestants],
    }


def write_report(data: dict[str, Any]) -> str:
    """The Markdown of a result: milliseconds, and the best of PyTorch's over ours."""
    engines = [e for e in ENGINES if any(e in _times(row) for row in data["rows"])]
    rows = []
    for row in data["rows"]:
        times = _times(row)
        peers = [times[e] for e in times if e in PEERS]
        ours = [times[e] for e in times if e in OURS]
        gain = f"{min(peers) / min(ours):.2f}" if peers and ours else None
        rows.append(
            [row["model"], row["shape"], row["dtype"], row["fill"]]
            + [f"{times[e]:.2f}" if e in times else None for e in engines]
            + [gain, f"{row['other_cpus_busy']:.2f}"]
        )
    columns = [
        "model",
        "B x S",
        "dtype",
        "fill",
        *engines,
        "best peer / best of ours",
        "other CPUs",
    ]
    return (
        f"# PyTorch's encoders on {data['device']}\n\n"
        + report.describe_header(data)
        + f"\nPyTorch {data['torch']}, transformers {data['transformers']}, "
        f"{data['threads']} threads; medians in milliseconds of encoders alone, random weights. "
        "All but `eager` have scaled_dot_product_attention with a mask, or none where there is no "
        "padding; `sdpa lengths` computes real tokens alone. `compile max-autotune` has frozen "
        "weights on a CPU, CUDA graphs on a GPU. A row whose last column is above 0.15 was "
        "measured beside other work.\n\n" + report.markdown_table(columns, rows)
    )


def _times(row: dict[str, Any]) -> dict[str, float]:
    return {result["engine"]: result["median_ms"] for result in row["results"]}


def main(_: list[str]) -> None:
    """Measures all that is asked for; the files hold what is finished after every row."""
    for flag, known in (
        (_MODELS, MODELS),
        (_DTYPES, TOLERANCE),
        (_FILLS, FILLS),
        (_ENGINES, ENGINES),
    ):
        for value in flag.value:
            if value not in known:
                raise app.UsageError(f"--{flag.name} has {value}, expected of {', '.join(known)}")
    torch.set_num_threads(_THREADS.value)
    data = report.header() | {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": _THREADS.value,
        "device": torch.cuda.get_device_name() if _DEVICE.value == "cuda" else "a CPU",
        "rows": [],
    }
    start = time.perf_counter()
    left_out = []
    cases = [
        (MODELS[model], shape, dtype, fill)
        for model in _MODELS.value
        for shape in _SHAPES.value
        for dtype in _DTYPES.value
        for fill in _FILLS.value
    ]
    for case in tqdm(cases):
        if time.perf_counter() - start > _BUDGET.value:
            left_out.append(" ".join([case[0].name, *case[1:]]))
            continue
        data["rows"].append(measure_batch(*case))
        report.write_json(report.result_path(_NAME.value, "json", _OUTPUT_DIR.value), data)
        report.write_text(
            report.result_path(_NAME.value, "md", _OUTPUT_DIR.value), write_report(data)
        )
    print(write_report(data))
    if left_out:
        print(f"left out, for --budget_seconds={_BUDGET.value:g} had passed: {', '.join(left_out)}")


if __name__ == "__main__":
    app.run(main)
