"""Measures memory on the CPU: the BertEncoder op's peak and growth, and whole models' peaks.

Peak: resident memory while one batch is computed, over what is resident before (weights, packed
weights, input), less the output: the process's high-water mark, so memory that is not TensorFlow's
counts too. Growth: resident memory before and after many calls of changing shapes. Models: the
high-water mark of processes that evaluate a BERT classifier, export it, and load and run the export
(benchmarks/model_memory.py), above TensorFlow's import; the checkpoint, of random weights, is made
and deleted.

  python -m benchmarks.cpu_memory
"""

import multiprocessing
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import engines, model_memory, report
from benchmarks.encoder_model import MODELS, random_batch
from fastertransformer_tf.models.encoder_weights import random_weights

_PARTS = ("peak", "growth", "models")
_ONLY = flags.DEFINE_list("only", list(_PARTS), f"Of {', '.join(_PARTS)}.")
_MODELS = flags.DEFINE_list("models", ["bert-base", "bert-large"], "Whole models.")
_MODEL = flags.DEFINE_enum("model", "bert-base", list(MODELS), "For the peak.")
_BATCH = flags.DEFINE_integer("batch", 8, "B for the peak.", 1)
_SEQ = flags.DEFINE_integer("seq", 384, "S for the peak.", 1)
_DTYPES = flags.DEFINE_list("dtypes", "float32,bfloat16", "Of float32, bfloat16, float16.")
_LIMIT = flags.DEFINE_float("limit_mib", 64, "Fail where the float32 peak is higher.")
_GROWTH_MODEL = flags.DEFINE_enum("growth_model", "minilm", list(MODELS), "For the growth.")
_CALLS = flags.DEFINE_integer("calls", 1000, "Calls for the growth, after as many as a fifth.", 10)
_GROWTH_LIMIT = flags.DEFINE_float("growth_limit_mib", 8, "Fail where memory grows by more.")
_THREADS = flags.DEFINE_integer("threads", 2, "CPU threads.", 1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the result goes.")

_MIB = 2**20
# Of whole models in float32, above TensorFlow's import.
_MODEL_LIMITS_MIB = {
    ("bert-base", "evaluate"): 1.6 * 1024,
    ("bert-base", "serve"): 2.0 * 1024,
    ("bert-base", "serve_v1"): 2.0 * 1024,
    ("bert-large", "evaluate"): 4.0 * 1024,
}


def measure_peak(
    op: type[engines.Op], dtype: str, name: str, shape: tuple[int, int], threads: int
) -> dict[str, float | str]:
    """Peak memory of one call, MiB: beyond what is resident before, and beyond the output too.

    In a process of its own, else the call would take memory that an earlier one's left free.
    """
    model = MODELS[name]
    engine = op(model, random_weights(model), dtype, threads)
    engine.compile(None, None)
    # Packs the weights and makes every thread's arena, in a small batch.
    small = engine.bind(*random_batch(model, 1, 8, "full"))
    for _ in range(3):
        small()
    hidden, lengths = random_batch(model, *shape, "full")
    run = engine.bind(hidden, lengths)
    report.release_free_memory()
    before = report.resident_mib("VmRSS")
    report.reset_peak()
    output = run()
    peak = report.resident_mib("VmHWM") - before
    # In 16 bits the graph around the op also holds the cast input and the cast output.
    casts = 0 if dtype == "float32" else 2 * hidden.nbytes / 2 / _MIB
    result = {
        "op": op.name,
        "dtype": dtype,
        "peak_mib": round(peak, 1),
        "output_mib": round(output.nbytes / _MIB, 1),
        "casts_mib": round(casts, 1),
        "beyond_output_mib": round(peak - output.nbytes / _MIB - casts, 1),
    }
    engine.close()
    return result


def measure_growth(op: type[engines.Op], dtype: str) -> dict[str, float | str]:
    """Resident memory after a fifth of the calls and after all of them, MiB."""
    model = MODELS[_GROWTH_MODEL.value]
    engine = op(model, random_weights(model), dtype, _THREADS.value)
    engine.compile(None, None)
    rng = np.random.default_rng(5)
    warm = _CALLS.value // 5
    seen = []
    for call in tqdm(range(warm + _CALLS.value), f"{op.name} {dtype}: growth", leave=False):
        batch, seq = int(rng.integers(1, 9)), int(rng.integers(1, 257))
        hidden, _ = random_batch(model, batch, seq, "full")
        lengths = rng.integers(0, seq + 1, batch, dtype=np.int32)
        engine.bind(hidden, lengths)()
        if call + 1 >= warm:
            seen.append(report.resident_mib("VmRSS"))
    engine.close()
    # Medians of the first and the last tenth: one call's own tensors are not growth.
    tenth = max(1, len(seen) // 10)
    first, last = float(np.median(seen[:tenth])), float(np.median(seen[-tenth:]))
    return {
        "op": op.name,
        "dtype": dtype,
        "calls": _CALLS.value,
        "first_mib": round(first, 1),
        "last_mib": round(last, 1),
        "growth_mib": round(last - first, 1),
    }


def measure_models(name: str) -> list[dict[str, Any]]:
    """Peak memory of evaluating a model, exporting it and serving the export, MiB."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="cpu_memory.") as temporary:
        folder = pathlib.Path(temporary)
        model_memory.measure("prepare", name, folder)
        for task in tqdm(("evaluate", "export", "serve", "serve_v1"), name, leave=False):
            found = model_memory.measure(task, name, folder)
            above = found["peak"] - found["import"]
            weights = model_memory.weights_mib(name)
            rows.append(
                {
                    "model": name,
                    "task": task,
                    "weights_mib": round(weights, 1),
                    "import_mib": found["import"],
                    "modules_mib": found["modules"],
                    "peak_mib": found["peak"],
                    "above_import_mib": round(above, 1),
                    "times_weights": round(above / weights, 2),
                    "limit_mib": _MODEL_LIMITS_MIB.get((name, task)),
                }
            )
    return rows


def over_limits(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that break a limit."""
    broken = [
        row for row in data["peak"]
        if row["dtype"] == "float32" and row["beyond_output_mib"] >= _LIMIT.value
    ]  # fmt: skip
    broken += [row for row in data["growth"] if row["growth_mib"] > _GROWTH_LIMIT.value]
    return broken + [
        row for row in data["models"]
        if row["limit_mib"] is not None and row["above_import_mib"] > row["limit_mib"]
    ]  # fmt: skip


def to_markdown(data: dict[str, Any]) -> str:
    """The report."""
    titles = {
        "peak": f"One call of the op beyond weights, input and output, {data['peak_shape']}",
        "growth": "Growth over calls of changing shapes",
        "models": "Whole classifiers, float32, 8 x 128: the peak of a process, and that above "
        "TensorFlow's import. evaluate: the model of run_classifier_wrap; export: its SavedModel; "
        "serve, serve_v1: that loaded by tf.saved_model.load and by TensorFlow 1's loader, and run",
    }
    parts = ["# Memory on a CPU\n\n", report.describe_header(data), f"{data['threads']} threads.\n"]
    for key, title in titles.items():
        if data[key]:
            columns = list(data[key][0])
            rows = ([row[c] for c in columns] for row in data[key])
            parts.append(f"\n{title}:\n\n{report.markdown_table(columns, rows)}")
    return "".join(parts)


def main(argv: list[str]) -> None:
    """Measures, writes JSON and Markdown, and fails where a limit is broken."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    report.hide_gpus()
    for flag, known in ((_ONLY, _PARTS), (_MODELS, tuple(model_memory.SIZES))):
        if unknown := sorted(set(flag.value) - set(known)):
            raise app.UsageError(f"--{flag.name} has {unknown}, expected of {', '.join(known)}")
    data: dict[str, Any] = {**report.header(), "threads": _THREADS.value}
    data |= {key: [] for key in _PARTS}
    shape = (_BATCH.value, _SEQ.value)
    data["peak_shape"] = f"{_MODEL.value} {shape[0]}x{shape[1]}"
    if "models" in _ONLY.value:
        for name in _MODELS.value:
            data["models"] += measure_models(name)
    for dtype in _DTYPES.value:
        if "peak" in _ONLY.value:
            for op in (engines.Op, engines.OpRemovePadding):
                arguments = (op, dtype, _MODEL.value, shape, _THREADS.value)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    data["peak"].append(pool.apply(measure_peak, arguments))
        if "growth" in _ONLY.value:
            data["growth"].append(measure_growth(engines.OpRemovePadding, dtype))
    path = report.result_path("cpu_memory", "json", _OUTPUT_DIR.value)
    report.write_json(path, data)
    report.write_text(path.with_suffix(".md"), to_markdown(data))
    print(to_markdown(data))
    print(f"Written: {path}, .md beside it")
    if broken := over_limits(data):
        sys.exit(f"Over the limit: {broken}")


if __name__ == "__main__":
    app.run(main)
