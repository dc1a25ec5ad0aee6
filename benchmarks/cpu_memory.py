"""Measures the memory of the BertEncoder op on the CPU: its peak, and growth over many calls.

Peak: resident memory while one batch is computed, over what is resident before (weights, packed
weights, input), less the output: the process's high-water mark, so memory that is not TensorFlow's
counts too. Growth: resident memory before and after many calls of changing shapes.

  python -m benchmarks.cpu_memory
"""

import gc
import sys

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import engines, report
from benchmarks.encoder_model import MODELS, random_batch
from fastertransformer_tf.models.encoder_graphs import random_weights

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


def measure_peak(op: type[engines.Op], dtype: str) -> dict[str, float | str]:
    """Peak memory of one call, MiB: beyond what is resident before, and beyond the output too."""
    model = MODELS[_MODEL.value]
    engine = op(model, random_weights(model), dtype, _THREADS.value)
    engine.compile(None, None)
    # Packs the weights and makes every thread's arena, in a small batch.
    small = engine.bind(*random_batch(model, 1, 8, "full"))
    for _ in range(3):
        small()
    hidden, lengths = random_batch(model, _BATCH.value, _SEQ.value, "full")
    run = engine.bind(hidden, lengths)
    gc.collect()
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


def main(argv: list[str]) -> None:
    """Measures, writes JSON and fails where a limit is broken."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    data = {**report.header(), "threads": _THREADS.value, "peak": [], "growth": []}
    data["peak_shape"] = f"{_MODEL.value} {_BATCH.value}x{_SEQ.value}"
    for dtype in _DTYPES.value:
        for op in (engines.Op, engines.OpRemovePadding):
            data["peak"].append(measure_peak(op, dtype))
    for dtype in _DTYPES.value:
        data["growth"].append(measure_growth(engines.OpRemovePadding, dtype))
    path = report.result_path("cpu_memory", "json", _OUTPUT_DIR.value)
    report.write_json(path, data)
    for key in ("peak", "growth"):
        columns = list(data[key][0])
        print(report.markdown_table(columns, ([row[c] for c in columns] for row in data[key])))
    print(f"Written: {path}")
    too_high = [
        row for row in data["peak"]
        if row["dtype"] == "float32" and row["beyond_output_mib"] >= _LIMIT.value
    ]  # fmt: skip
    grew = [row for row in data["growth"] if row["growth_mib"] > _GROWTH_LIMIT.value]
    if too_high or grew:
        sys.exit(f"Over the limit: {too_high + grew}")


if __name__ == "__main__":
    app.run(main)
