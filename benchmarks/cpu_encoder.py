"""Times the BertEncoder op and its peers, in turn, in one run, on this machine's CPU.

For every model and shape all contestants (engine x dtype x fill) are compiled, their outputs are
checked against TensorFlow's float32 graph, and only then timed, in rounds in which each has its
turn, in another order every time, so that drift of the machine and what ran just before hit all of
them alike. Writes JSON (all samples), a Markdown table and a plot. With several numbers of threads,
each in a process of its own, a second plot shows what they gain.

  python -m benchmarks.cpu_encoder --models=bert-base --shapes=1x32,8x128 --dtypes=float32
  python -m benchmarks.cpu_encoder --threads=1,2,4 --shapes=1x128,8x128 --engines=op
"""

import dataclasses
import gc
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from benchmarks import engines as engines_lib
from benchmarks import report
from benchmarks.encoder_model import (
    FILLS,
    MODELS,
    RAGGED_BATCHES,
    RAGGED_FILLS,
    EncoderModel,
    make_batches,
)
from benchmarks.ragged import is_real
from fastertransformer_tf.models.encoder_weights import random_weights

# The peers that stand for one row each; of ONNX Runtime's two forms the faster one is timed.
PEERS = ("tensorflow", "onnxruntime", "openvino", "pytorch eager", "pytorch compiled")
OPS = ("op", "op constants", "op remove_padding")

_MODELS = flags.DEFINE_list("models", list(MODELS), f"Of {', '.join(MODELS)}.")
_SHAPES = flags.DEFINE_list(
    "shapes", "8x384,8x128,1x384,8x32,1x128,1x32", "Batch x sequence length, in this order."
)
_DTYPES = flags.DEFINE_list(
    "dtypes",
    "float32,bfloat16",
    "Of float32, bfloat16, int8, int8_bfloat16; int8 is both modes of the op, whose other numbers "
    "are float32, or bfloat16 in int8_bfloat16, which is compared with the peers' int8.",
)
_FILLS = flags.DEFINE_list(
    "fills",
    list(FILLS),
    "full: no padding; half: S/2 tokens in each S; short: S/2 in each S/2; repeated, changing: "
    "batches of random lengths, each padded to its longest, timed in a second call and one after "
    "the other.",
)
_ENGINES = flags.DEFINE_list("engines", [*PEERS, *OPS], f"Of {', '.join((*PEERS, *OPS))}.")
_HALF_ENGINES = flags.DEFINE_list(
    "half_engines",
    [*PEERS, *OPS],
    "Of --engines, those that are timed on other fills than full too.",
)
_APPEND = flags.DEFINE_bool(
    "append",
    False,
    "Keep the other shapes of today's file, which earlier runs measured, maybe of other commits: "
    "the report then tells the commit of each shape.",
)
_THREADS = flags.DEFINE_list(
    "threads", ["2"], "CPU threads of every engine; of several numbers each gets its own process."
)
_BUDGET = flags.DEFINE_float("budget", 600, "Seconds of timing, shared by the shapes.")
_MIN_ROUNDS = flags.DEFINE_integer("min_rounds", 5, "Turns at least, whatever the budget.", 1)
_MAX_ROUNDS = flags.DEFINE_integer("max_rounds", 40, "Turns at most.", 1)
_GEMM_FLOOR = flags.DEFINE_string(
    "gemm_floor",
    None,
    "A program that estimates the time of the encoder's own GEMMs. It is called for each shape as "
    "`PROGRAM batch seq layers heads size inner dtype threads` and prints a JSON object with "
    "floor_ms (estimated time of one forward pass if nothing but its GEMMs and attention's "
    "multiplications were done) and anything else worth keeping.",
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the results go.")
_NAME = flags.DEFINE_string("name", "cpu_encoder", "First part of the names of the result files.")

# Largest ||output - reference|| / ||reference|| over real tokens.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "int8": 0.15}
# The dtypes that some of --dtypes are for the op; peers have one int8.
_INT8_MODES = {
    "int8": ("int8 mode 1", "int8 mode 2"),
    "int8_bfloat16": ("int8 mode 1, bfloat16", "int8 mode 2, bfloat16"),
}
# A shape is marked where other work kept more CPUs busy.
_DISTURBED_CPUS = 0.15
# A contestant first waits at each turn, until the threads of the one before have stopped spinning,
# and then runs untimed for so long, and once at least, to settle caches and clocks.
_SETTLE_SECONDS = 0.02
_ORDER_SEED = 1


@dataclasses.dataclass
class Contestant:
    """One engine, dtype and fill at one shape; `runs` has a function for each batch."""

    engine: str
    dtype: str
    fill: str
    runs: list[engines_lib.Run]
    relative_error: float = 0.0
    samples_ms: list[float] = dataclasses.field(default_factory=list)

    @property
    def right(self) -> bool:
        """Its output agrees with the reference."""
        return self.relative_error <= TOLERANCE[_peer_dtype(self.dtype)]

    def time(self) -> float:
        """Seconds of a call: the mean over all batches, each called once, or twice if "repeated".

        Of two calls the second counts: so the work is the same for "repeated" and "changing".
        """
        seconds = 0.0
        for run in self.runs:
            if self.fill == "repeated":
                run()
            start = time.perf_counter()
            run()
            seconds += time.perf_counter() - start
        return seconds / len(self.runs)

    def turn(self, seconds: float) -> None:
        """Takes the samples of one turn; `seconds` is what a call took before."""
        time.sleep(_SETTLE_SECONDS)
        for _ in range(1 + int(_SETTLE_SECONDS / seconds)):
            self.runs[-1]()
        for _ in range(max(1, min(10, int(0.05 / (seconds * len(self.runs)))))):
            self.samples_ms.append(1e3 * self.time())

    def summary(self) -> dict[str, Any]:
        """What goes into the JSON file."""
        p10, median, p90 = np.percentile(self.samples_ms, [10, 50, 90]).round(3).tolist()
        return {
            "engine": self.engine,
            "dtype": self.dtype,
            "fill": self.fill,
            "weights": engines_lib.ENGINES[self.engine].holder,
            "right": self.right,
            "relative_error": float(f"{self.relative_error:.3g}"),
            "median_ms": median,
            "p10_ms": p10,
            "p90_ms": p90,
            "samples_ms": np.round(self.samples_ms, 3).tolist(),
        }


def real_rows(output: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rows of real tokens, [T,H], of hidden states [B,S,H]."""
    return output[is_real(lengths, output.shape[1])]


def check(
    contestants: list[Contestant], references: dict[str, list[tuple[np.ndarray, np.ndarray]]]
) -> None:
    """Fills in relative_error, the largest of all batches, and drops nothing.

    Args:
      contestants: to run once each.
      references: fill to each batch's real rows by TensorFlow's float32 graph, [T,H], and lengths.

    Raises:
      AssertionError: one of this project's ops is wrong.
    """
    for contestant in contestants:
        errors = [
            np.linalg.norm(real_rows(run(), lengths) - reference) / np.linalg.norm(reference)
            for run, (reference, lengths) in zip(
                contestant.runs, references[contestant.fill], strict=True
            )
        ]
        contestant.relative_error = float(np.max(errors))
        # NaN is not right either.
        if not contestant.right:
            what = f"{contestant.engine} {contestant.dtype} {contestant.fill}"
            message = f"{what}: relative error {contestant.relative_error:.2e}, "
            message += f"expected at most {TOLERANCE[_peer_dtype(contestant.dtype)]}"
            if contestant.engine in OPS:
                raise AssertionError(message)
            logging.warning("%s: its time is not compared", message)


def _row(engine: str) -> str:
    """Its row in the tables: ONNX Runtime's forms share one."""
    return "onnxruntime" if engine.startswith("onnxruntime") else engine


def _peer_dtype(dtype: str) -> str:
    """The dtype of the peers that an op's is compared with."""
    return "int8" if dtype.startswith("int8") else dtype


def _op_dtypes(dtypes: list[str]) -> list[str]:
    """The dtypes of the op."""
    return [one for dtype in dtypes for one in _INT8_MODES.get(dtype, (dtype,))]


def _peer_dtypes(dtypes: list[str]) -> list[str]:
    """The dtypes of the peers."""
    return list(dict.fromkeys(map(_peer_dtype, dtypes)))


def _is_timed(engine: str, fill: str) -> bool:
    """Whether an engine is timed on a fill."""
    if engine == "op remove_padding":
        return fill not in ("full", "short")  # There is nothing to remove.
    return fill == "full" or (_row(engine) in _HALF_ENGINES.value and engine != "op constants")


def _lengths_of(fill: str) -> str:
    """The fills of one kind are run by one compiled engine: lengths S, S/2 or any."""
    if fill in RAGGED_FILLS:
        return "ragged"
    return "short" if fill == "short" else "full"


class Bench:
    """All engines of one model."""

    def __init__(self, model: EncoderModel, threads: int) -> None:
        """Loads every engine that --engines and --dtypes ask for."""
        self.model = model
        self.missing: dict[str, str] = {}
        # An engine is compiled for one shape, so fills of other lengths have engines of their own.
        self._engines: dict[tuple[str, str, str], engines_lib.Engine] = {}
        weights = random_weights(model)
        self._reference = engines_lib.TensorFlow(model, weights, "float32", threads)
        wanted = [name for name in engines_lib.ENGINES if _row(name) in _ENGINES.value]
        keys = dict.fromkeys(
            (name, dtype, _lengths_of(fill))
            for name in wanted
            for dtype in (_op_dtypes if name in OPS else _peer_dtypes)(_DTYPES.value)
            for fill in _FILLS.value
            if _is_timed(name, fill)
        )
        for name, dtype, lengths in tqdm(keys, f"{model.name}: loading", leave=False):
            try:
                self._engines[name, dtype, lengths] = engines_lib.ENGINES[name](
                    model, weights, dtype, threads
                )
            except engines_lib.EngineUnavailable as error:
                self._leave_out(name, dtype, error)

    def _leave_out(self, name: str, dtype: str, error: engines_lib.EngineUnavailable) -> None:
        self.missing[f"{name} {dtype}"] = str(error)
        logging.warning("%s %s is left out: %s", name, dtype, error)

    def contestants(self, batch: int, seq: int) -> list[Contestant]:
        """Compiles every engine for a shape and returns the contestants, outputs checked."""
        batches = {fill: make_batches(self.model, batch, seq, fill) for fill in _FILLS.value}
        self._reference.compile(batch, None)
        references = {
            fill: [
                (real_rows(self._reference.bind(hidden, lengths)(), lengths), lengths)
                for hidden, lengths in some
            ]
            for fill, some in batches.items()
        }
        self._reference.close()
        found = []
        sizes = {"full": seq, "short": seq // 2, "ragged": None}
        for (name, dtype, lengths), engine in tqdm(self._engines.items(), "compiling", leave=False):
            try:
                engine.compile(batch, sizes[lengths])
                for fill in _FILLS.value:
                    if _lengths_of(fill) == lengths and _is_timed(name, fill):
                        runs = [engine.bind(*one) for one in batches[fill]]
                        found.append(Contestant(name, dtype, fill, runs))
            except engines_lib.EngineUnavailable as error:
                self._leave_out(name, dtype, error)
        check(found, references)
        for dtype in _DTYPES.value:
            found = self._best_onnxruntime(found, dtype)
        return found

    @staticmethod
    def _best_onnxruntime(contestants: list[Contestant], dtype: str) -> list[Contestant]:
        """Keeps the fastest of ONNX Runtime's forms of a dtype."""
        forms = [c for c in contestants if _row(c.engine) == "onnxruntime" and c.dtype == dtype]
        right = [c for c in forms if c.right and c.fill == _FILLS.value[0]]
        if not right:
            return contestants
        times: dict[str, list[float]] = {c.engine: [] for c in right}
        for _ in range(3):
            for contestant in right:
                times[contestant.engine].append(contestant.time())
        best = min(times, key=lambda engine: np.median(times[engine]))
        return [c for c in contestants if c not in forms or c.engine == best]

    def close(self) -> None:
        """Frees what the last shape compiled."""
        for engine in self._engines.values():
            engine.close()


def measure(contestants: list[Contestant], seconds: float, label: str) -> float:
    """Times all contestants for about `seconds`, each once a round, in random order.

    Returns:
      CPUs that something else on the machine kept busy meanwhile, on average: 0 on a quiet one.
    """
    estimate = {}
    for contestant in contestants:
        contestant.time()
        estimate[id(contestant)] = contestant.time()
    start, others = time.perf_counter(), report.other_cpu_seconds()
    rounds, order = 0, np.random.default_rng(_ORDER_SEED)
    with tqdm(total=_MAX_ROUNDS.value, desc=label, unit="round", leave=False) as progress:
        gc.collect()
        gc.disable()
        while rounds < _MAX_ROUNDS.value and (
            rounds < _MIN_ROUNDS.value or time.perf_counter() - start < seconds
        ):
            for index in order.permutation(len(contestants)):
                contestants[index].turn(estimate[id(contestants[index])])
            rounds += 1
            progress.update()
        gc.enable()
    others = report.other_cpu_seconds() - others
    return max(0.0, others / (time.perf_counter() - start))


def gemm_floor(
    model: EncoderModel, batch: int, seq: int, dtype: str, threads: int
) -> dict[str, Any] | None:
    """Runs the program of --gemm_floor; None without one, and of int8, whose modes differ."""
    if not _GEMM_FLOOR.value or dtype.startswith("int8"):
        return None
    sizes = (batch, seq, model.layers, model.heads, model.size, model.inner, dtype, threads)
    command = [_GEMM_FLOOR.value, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    floor = json.loads(done.stdout)
    if "floor_ms" not in floor:
        raise ValueError(f"{' '.join(command)} printed {done.stdout!r}, expected floor_ms in it")
    return floor


def _find(shape: dict[str, Any], engine: str, dtype: str, fill: str) -> dict[str, Any] | None:
    for result in shape["results"]:
        if (result["engine"], result["dtype"], result["fill"]) == (engine, dtype, fill):
            return result
    return None


def _peers(shape: dict[str, Any], dtype: str, fill: str) -> list[dict[str, Any]]:
    return [
        r for r in shape["results"]
        if r["engine"] not in OPS
        and r["right"]
        and (r["dtype"], r["fill"]) == (_peer_dtype(dtype), fill)
    ]  # fmt: skip


def comparisons(shape: dict[str, Any], dtype: str) -> dict[str, float | str]:
    """The figures of merit of one shape and dtype; only those whose parts were measured."""
    found: dict[str, float | str] = {}
    peers = _peers(shape, dtype, "full") or _peers(shape, dtype, "half")
    if peers:
        best = min(peers, key=lambda r: r["median_ms"])
        found["best_peer"] = best["engine"]
        found["best_peer_ms"] = best["median_ms"]
    op = _find(shape, "op", dtype, "full")
    if op is None:
        return found
    found["op_ms"] = op["median_ms"]
    if peers:
        found["op_over_best_peer"] = op["median_ms"] / best["median_ms"]
    packed = _find(shape, "op remove_padding", dtype, "half")
    if packed is not None:
        found["half_packed_ms"] = packed["median_ms"]
        found["full_over_half_packed"] = op["median_ms"] / packed["median_ms"]
        short = _peers(shape, dtype, "short")
        if short:
            # What a user has who cuts a batch to its longest sequence, where all are as long.
            best_short = min(short, key=lambda r: r["median_ms"])
            found["best_peer_short"] = best_short["engine"]
            found["best_peer_short_ms"] = best_short["median_ms"]
            found["half_packed_over_best_peer_short"] = (
                packed["median_ms"] / best_short["median_ms"]
            )
    constants = _find(shape, "op constants", dtype, "full")
    if constants is not None:
        found["variables_over_constants"] = op["median_ms"] / constants["median_ms"]
    for engine in ("op", "op remove_padding"):
        changing = _find(shape, engine, dtype, "changing")
        repeated = _find(shape, engine, dtype, "repeated")
        if changing is not None and repeated is not None:
            key = f"{engine.replace(' ', '_')}_changing_over_repeated"
            found[key] = changing["median_ms"] / repeated["median_ms"]
    ragged = _peers(shape, dtype, "changing")
    if ragged and (packed := _find(shape, "op remove_padding", dtype, "changing")):
        best_ragged = min(ragged, key=lambda r: r["median_ms"])
        found["best_peer_changing"] = best_ragged["engine"]
        found["best_peer_changing_ms"] = best_ragged["median_ms"]
        found["changing_packed_over_best_peer"] = packed["median_ms"] / best_ragged["median_ms"]
    float32 = _find(shape, "op", "float32", "full")
    if dtype != "float32" and float32 is not None:
        found["float32_over_this"] = float32["median_ms"] / op["median_ms"]
    floor = shape["gemm_floor"].get(dtype)
    if floor is not None:
        found["gemm_estimate_ms"] = floor["floor_ms"]
        found["op_over_gemm_estimate"] = op["median_ms"] / floor["floor_ms"]
    return found


def _sections(data: dict[str, Any]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Each model and number of threads, and the shapes measured with them, small ones first."""
    keys = dict.fromkeys(
        (shape["model"], shape.get("threads", data["threads"])) for shape in data["shapes"]
    )
    return [
        (model, threads, sorted(
            (s for s in data["shapes"]
             if (s["model"], s.get("threads", data["threads"])) == (model, threads)),
            key=lambda s: (s["batch"] * s["seq"], s["batch"]),
        ))
        for model, threads in keys
    ]  # fmt: skip


def scaling(data: dict[str, Any]) -> dict[tuple[str, str], dict[int, float]]:
    """Milliseconds by threads of each model's shape and each engine and dtype, without padding.

    Only of those that were measured with one thread and with more.
    """
    times: dict[tuple[str, str], dict[int, float]] = {}
    for model, threads, shapes in _sections(data):
        for shape in shapes:
            for result in shape["results"]:
                if result["right"] and result["fill"] == "full":
                    what = f"{model} {shape['batch']}x{shape['seq']}"
                    engine = f"{_row(result['engine'])} {result['dtype']}"
                    times.setdefault((what, engine), {})[threads] = result["median_ms"]
    return {key: by for key, by in times.items() if 1 in by and len(by) > 1}


def _scaling_table(data: dict[str, Any]) -> str:
    found = scaling(data)
    if not found:
        return ""
    counts = sorted({threads for by in found.values() for threads in by})
    rows = [
        [*key, *(f"{by[1] / by[n]:.2f}x ({by[1] / by[n] / n:.2f})" if n in by else None
                 for n in counts)]
        for key, by in found.items()
    ]  # fmt: skip
    columns = ["shape", "engine", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts)]
    return (
        "\n## Threads\n\nTimes the speed of one thread (efficiency: that by the number of "
        "threads).\n\n" + report.markdown_table(columns, rows)
    )


def to_markdown(data: dict[str, Any]) -> str:
    """The report: one table of times and one of ratios for each model and number of threads."""
    counts = list(dict.fromkeys(str(threads) for _, threads, _ in _sections(data)))
    parts = [
        "# BERT encoder on a CPU\n\n",
        report.describe_header(data),
        f"{', '.join(counts)} threads for every engine. ",
        ", ".join(f"{name} {version}" for name, version in data["versions"].items()),
        ". Milliseconds per forward pass, median (p10-p90) of as many samples as the row "
        "samples says. Every row: all contestants of a shape timed in turn in one process, on "
        "this machine, no kernels tuned for the shape. weights: what holds them. half: every "
        "sequence holds S/2 tokens and S/2 padding; short: the same tokens in a batch of length "
        f"S/2. changing: {RAGGED_BATCHES} batches of random lengths in 1..S, each padded to its "
        "own longest, one after the other, so that lengths and padded length change in every "
        "call; repeated: the same batches, each called twice, the second call timed; a sample is "
        "the mean over all batches. op, op constants: padding kept; op remove_padding: removed. "
        "int8: of the op both modes, all else float32 unless it says bfloat16; OpenVINO by NNCF; "
        "ONNX Runtime: the fastest of dynamic (plain or fused graph) and static quantization, each "
        "with one range a column and, but for dynamic, ranges of the same batch. "
        "(wrong): its output disagreed with TensorFlow's float32 graph and its time is not "
        "compared. (disturbed): other work kept CPUs busy meanwhile. GEMM estimate: the op's own "
        "products timed alone, and attention's arithmetic at their rate, in "
        "another process and at another moment: the op may come out below it.\n\n",
    ]
    for name, reason in data["missing"].items():
        parts.append(f"* left out: {name}: {reason}\n")
    for model, threads, shapes in _sections(data):
        labels = [
            f"{s['batch']}x{s['seq']}"
            + (" (disturbed)" if s["other_busy_cpus"] > _DISTURBED_CPUS else "")
            for s in shapes
        ]
        keys = dict.fromkeys(
            (r["dtype"], r["fill"], _row(r["engine"]), r.get("weights", "constants"))
            for s in shapes
            for r in s["results"]
        )
        rows = []
        order = {fill: place for place, fill in enumerate(FILLS)}
        for dtype, fill, engine, holder in sorted(
            keys, key=lambda k: (k[0] != "float32", "int8" in k[0], order[k[1]])
        ):
            cells: list[str | None] = []
            for shape in shapes:
                hits = [
                    r for r in shape["results"]
                    if (r["dtype"], r["fill"]) == (dtype, fill)
                    and (_row(r["engine"]), r.get("weights", "constants")) == (engine, holder)
                ]  # fmt: skip
                cells.append(
                    f"{hits[0]['median_ms']:.1f} ({hits[0]['p10_ms']:.1f}-{hits[0]['p90_ms']:.1f})"
                    + ("" if hits[0]["right"] else " (wrong)")
                    if hits
                    else None
                )
            rows.append([engine, holder, dtype, fill, *cells])
        title = (
            model if len(counts) == 1 else f"{model}, {threads} thread{'s' if threads > 1 else ''}"
        )
        parts.append(f"\n## {title}\n\n")
        samples = [sorted(len(r["samples_ms"]) for r in s["results"]) for s in shapes]
        rows.append(["samples", "", "", "", *(f"{some[0]}-{some[-1]}" for some in samples)])
        rows.append(["commit", "", "", "", *(s.get("commit", data["commit"]) for s in shapes)])
        parts.append(report.markdown_table(["engine", "weights", "dtype", "fill", *labels], rows))
        ratios = []
        for dtype in _op_dtypes(data["dtypes"]):
            found = [comparisons(shape, dtype) for shape in shapes]
            for key in dict.fromkeys(key for one in found for key in one):
                values = [one.get(key) for one in found]
                texts = [f"{v:.2f}" if isinstance(v, float) else v for v in values]
                ratios.append([key.replace("_", " "), dtype, *texts])
        parts.append("\n" + report.markdown_table(["figure", "dtype", *labels], ratios))
    parts.append(_scaling_table(data))
    return "".join(parts)


def plot(data: dict[str, Any], path: Any) -> None:  # noqa: ANN401
    """Bars: time of each engine over that of the best float32 peer, for all that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sections = _sections(data)
    figure, axes = pyplot.subplots(
        len(sections), 1, figsize=(12, 4.2 * len(sections)), squeeze=False, layout="constrained"
    )
    for axis, (model, threads, shapes) in zip(axes[:, 0], sections, strict=True):
        bars: dict[str, list[float]] = {}
        for index, shape in enumerate(shapes):
            peers = _peers(shape, "float32", data["fills"][0])
            scale = min((r["median_ms"] for r in peers or shape["results"]), default=1.0)
            for r in shape["results"]:
                packed = r["engine"] == "op remove_padding" or r["fill"] == "short"
                if r["fill"] in RAGGED_FILLS or r["engine"] == "op constants":
                    continue
                if not r["right"] or (r["fill"] != data["fills"][0] and not packed):
                    continue
                half = f", {r['fill']}" if r["fill"] != "full" else ""
                label = f"{_row(r['engine'])} {r['dtype']}{half}"
                bars.setdefault(label, [np.nan] * len(shapes))[index] = r["median_ms"] / scale
        width = 0.85 / max(1, len(bars))
        for number, (label, values) in enumerate(bars.items()):
            positions = np.arange(len(shapes)) + (number - (len(bars) - 1) / 2) * width
            hatch = "//" if label.startswith("op ") else None
            axis.bar(positions, values, width, label=label, hatch=hatch, edgecolor="white")
        axis.set_xticks(range(len(shapes)), [f"{s['batch']}x{s['seq']}" for s in shapes])
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_title(f"{model}, {threads} threads of {data['machine']['cpu']}")
        axis.set_ylabel("time / best float32 peer")
        axis.legend(fontsize=8, ncols=2)
    report.save_figure(figure, path)
    pyplot.close(figure)


def plot_scaling(data: dict[str, Any], path: Any) -> bool:  # noqa: ANN401
    """Lines: times the speed of one thread, over threads; False where there is nothing to draw."""
    found = scaling(data)
    if not found:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(what for what, _ in found))
    figure, axes = pyplot.subplots(
        1, len(shapes), figsize=(5 * len(shapes), 4.5), squeeze=False, layout="constrained"
    )
    for axis, shape in zip(axes[0], shapes, strict=True):
        for (what, engine), by in found.items():
            if what == shape:
                counts = sorted(by)
                axis.plot(counts, [by[1] / by[n] for n in counts], marker="o", label=engine)
        most = max(n for (what, _), by in found.items() if what == shape for n in by)
        axis.plot([1, most], [1, most], color="grey", linewidth=0.8, label="ideal")
        axis.set_title(shape)
        axis.set_xlabel("threads")
        axis.set_ylabel("times the speed of one thread")
        axis.legend(fontsize=8)
    report.save_figure(figure, path)
    pyplot.close(figure)
    return True


def _parse_shape(text: str) -> tuple[int, int]:
    try:
        batch, seq = (int(part) for part in text.split("x"))
    except ValueError:
        raise app.UsageError(
            f"--shapes has {text!r}, expected BATCHxLENGTH such as 8x128"
        ) from None
    if batch < 1 or seq < 2:
        raise app.UsageError(f"--shapes has {text!r}, expected a batch >= 1 and a length >= 2")
    return batch, seq


def _parse_threads() -> list[int]:
    counts = [int(text) if text.isdecimal() else 0 for text in _THREADS.value]
    if not counts or min(counts) < 1:
        raise app.UsageError(
            f"--threads is {_THREADS.value}, expected one number >= 1 or several such as 1,2,4"
        )
    return list(dict.fromkeys(counts))


def _check_flags() -> None:
    for flag, allowed in (
        (_MODELS, MODELS),
        (_DTYPES, (*TOLERANCE, "int8_bfloat16")),
        (_FILLS, FILLS),
        (_ENGINES, (*PEERS, *OPS)),
        (_HALF_ENGINES, (*PEERS, *OPS)),
    ):
        unknown = [value for value in flag.value if value not in allowed]
        if unknown or not flag.value:
            raise app.UsageError(f"--{flag.name} has {unknown}, expected some of {list(allowed)}")


def _append_to(data: dict[str, Any], path: pathlib.Path) -> None:
    """Takes the shapes of an earlier run over into `data`.

    Args:
      data: of this run, without shapes.
      path: JSON file of the earlier run.

    Raises:
      app.UsageError: the earlier run was another machine's, or other versions'.
    """
    if not path.exists():
        return
    before = json.loads(path.read_text())
    for key in ("machine", "threads", "versions", "tolerance"):
        if before[key] != data[key]:
            raise app.UsageError(f"--append: {path} has {key} {before[key]}, expected {data[key]}")
    for key in ("dtypes", "fills"):
        data[key] = list(dict.fromkeys([*before[key], *data[key]]))
    data["missing"] = before["missing"]
    data["shapes"] = before["shapes"]
    others = sorted({s["commit"] for s in data["shapes"]} - {data["commit"]})
    if others:
        logging.warning("%s keeps shapes of other commits: %s", path, ", ".join(others))


def _write(data: dict[str, Any], path: pathlib.Path) -> None:
    """The JSON file, and the Markdown beside it."""
    report.write_json(path, data)
    report.write_text(path.with_suffix(".md"), to_markdown(data))


def _keep(data: dict[str, Any], shape: dict[str, Any]) -> None:
    """Puts a shape into `data`, in the place of what was measured of the same before."""

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        threads = one.get("threads", data["threads"])
        return one["model"], one["batch"], one["seq"], threads

    data["shapes"] = [s for s in data["shapes"] if key(s) != key(shape)] + [shape]


def _measure_all(data: dict[str, Any], threads: int, path: pathlib.Path) -> None:
    """Measures all models and shapes, in this process, and writes the results after each."""
    shapes = [_parse_shape(text) for text in _SHAPES.value]
    deadline = time.perf_counter() + _BUDGET.value
    todo = len(_MODELS.value) * len(shapes)
    for name in _MODELS.value:
        bench = Bench(MODELS[name], threads)
        for batch, seq in shapes:
            contestants = bench.contestants(batch, seq)
            share = (deadline - time.perf_counter()) / todo
            others = measure(contestants, share, f"{name} {batch}x{seq}")
            if others > _DISTURBED_CPUS:
                logging.warning(
                    "%s %dx%d: %.2f CPUs were busy with other work", name, batch, seq, others
                )
            todo -= 1
            shape = {
                "model": name,
                "batch": batch,
                "seq": seq,
                "threads": threads,
                "date": report.timestamp(),
                "commit": data["commit"],
                "command": " ".join(sys.argv),
                "other_busy_cpus": round(others, 3),
                "gflop_full": round(bench.model.gflop(np.full(batch, seq)), 2),
                "gemm_floor": {
                    dtype: floor
                    for dtype in _DTYPES.value
                    if (floor := gemm_floor(bench.model, batch, seq, dtype, threads)) is not None
                },
                "results": [contestant.summary() for contestant in contestants],
            }
            shape["comparisons"] = {d: comparisons(shape, d) for d in _op_dtypes(_DTYPES.value)}
            data["missing"].update(bench.missing)
            _keep(data, shape)
            bench.close()
            # After every shape, so that an interrupted run is not lost.
            _write(data, path)
            for result in shape["results"]:
                tqdm.write(
                    f"{name} {batch}x{seq} {result['engine']:18} {result['dtype']:8} "
                    f"{result['fill']:4} {result['median_ms']:9.2f} ms"
                    + ("" if result["right"] else "  (wrong)")
                )


def _measure_in_processes(data: dict[str, Any], counts: list[int], path: pathlib.Path) -> None:
    """Measures with each number of threads in a process: TensorFlow's pool is a process's own."""
    deadline = time.perf_counter() + _BUDGET.value
    for place, threads in enumerate(counts):
        share = max(0.0, (deadline - time.perf_counter()) / (len(counts) - place))
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "benchmarks.cpu_encoder", *sys.argv[1:],
                f"--threads={threads}", f"--budget={share}", f"--output_dir={folder}", "--noappend",
            ]  # fmt: skip
            done = subprocess.run(command, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
            (file,) = pathlib.Path(folder).glob("*.json")
            part = json.loads(file.read_text())
        data["missing"].update(part["missing"])
        for shape in part["shapes"]:
            _keep(data, shape)
        _write(data, path)


def main(argv: list[str]) -> None:
    """Runs everything that the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    report.hide_gpus()
    _check_flags()
    for text in _SHAPES.value:
        _parse_shape(text)
    counts = _parse_threads()
    data: dict[str, Any] = {
        **report.header(),
        "threads": counts[0] if len(counts) == 1 else counts,
        "versions": {e.package: e.version() for e in engines_lib.ENGINES.values()},
        "dtypes": _DTYPES.value,
        "fills": _FILLS.value,
        "tolerance": TOLERANCE,
        "missing": {},
        "shapes": [],
    }
    base = report.result_path(_NAME.value, "json", _OUTPUT_DIR.value)
    if _APPEND.value:
        _append_to(data, base)
    if len(counts) == 1:
        _measure_all(data, counts[0], base)
    else:
        _measure_in_processes(data, counts, base)
    plot(data, base.with_suffix(".png"))
    if plot_scaling(data, base.with_name(f"{base.stem}_threads.png")):
        print(f"Written: {base.stem}_threads.png")
    print(to_markdown(data))
    print(f"Written: {base}, .md and .png beside it")


if __name__ == "__main__":
    app.run(main)
