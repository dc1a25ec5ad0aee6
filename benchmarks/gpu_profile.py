"""Kernel by kernel, where the time of one encoder layer goes, each with the least it could take.

    python3 -m benchmarks.gpu_profile --tools=build/cuda --out=benchmarks/results/gpu_profile

Runs encoder_sample once under Nsight Compute, clocks and caches left alone, and sums each part of a
layer: the median over the layers. The floor of a part is its arithmetic over the measured rate of
the tensor cores, or its bytes (inputs once, outputs once) over the measured rate of the memory,
whichever is longer. A kernel under the profiler runs alone, so what overlap of neighbours saves is
the difference between the sum and encoder_sample's own time. --csv makes the table of a saved
profile, without a GPU.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from benchmarks import report

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# One H100, measured: FP16 8192^3, and a copy, bytes read plus written (reference figures, README).
FLOP_PER_S, BYTES_PER_S = 798e12, 3.0e12
# Of integers, as of 8-bit floats, 8192^3.
INT8_OP_PER_S = 1458e12
LAYERS, HEADS, SIZE = 12, 12, 64
HIDDEN, INNER, ELEMENT = HEADS * SIZE, 4 * HEADS * SIZE, 2
GEMMS = ("QKV GEMM", "attention output GEMM", "intermediate GEMM", "output GEMM")


@dataclasses.dataclass
class Kernel:
    """One launch."""

    name: str
    microseconds: float


def read_csv(lines: Iterable[str]) -> list[Kernel]:
    """Reads ncu's --csv --page raw output.

    Raises:
      ValueError: It holds no kernels.
    """
    table = [line for line in lines if line.startswith('"')]
    rows = list(csv.DictReader(table))
    duration = "gpu__time_duration.sum"
    if not rows or duration not in rows[0]:
        raise ValueError(f"the profile has no column {duration}: {table[:1]}")
    # The first row under the header gives the units.
    scale = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
    unit = rows[0][duration]
    if unit not in scale:
        raise ValueError(f"unknown unit of time {unit!r}, expected one of {sorted(scale)}")
    return [
        Kernel(row["Kernel Name"], float(row[duration].replace(",", "")) * scale[unit])
        for row in rows[1:]
    ]


def kind(name: str) -> str:
    """What a kernel does, by its name."""
    patterns = {
        "reduce": r"splitKreduce|splitk_reduce",
        "attention": r"Attention",
        "layer norm": r"LayerNorm",
        "activation": r"ActivationKernel",
        "gemm": r"gemm|nvjet|xmma|cutlass",
    }
    for result, pattern in patterns.items():
        if re.search(pattern, name, re.IGNORECASE):
            return result
    return "other"


def parts_of_layers(kernels: Iterable[Kernel]) -> list[dict[str, list[Kernel]]]:
    """Sorts the launches into layers and their parts, by the order in which a layer runs.

    Raises:
      ValueError: The order is not that of an encoder.
    """
    layers: list[dict[str, list[Kernel]]] = []
    gemms = norms = len(GEMMS)  # nothing before the first GEMM belongs to a layer
    part = ""
    for kernel in kernels:
        what = kind(kernel.name)
        if what == "gemm":
            if gemms == len(GEMMS):
                layers.append(collections.defaultdict(list))
                gemms = norms = 0
            part = GEMMS[gemms]
            gemms += 1
        elif not layers:
            continue
        elif what == "attention":
            part = "attention"
        elif what == "layer norm":
            norms += 1
            part = f"layer norm {norms}"
        elif what == "other":
            part = "other"
        # A reduction or an activation belongs to the GEMM before it.
        layers[-1][part].append(kernel)
    if not layers or any("attention" not in layer or gemms != len(GEMMS) for layer in layers):
        found = [kernel.name[:40] for kernel in kernels][:12]
        raise ValueError(f"these kernels are not whole layers: {found}")
    return layers


def floors(batch: int, seq_len: int, int8_mode: int = 0) -> dict[str, tuple[float, float]]:
    """Microseconds that arithmetic and memory take at least, by part, all keys real."""
    tokens = batch * seq_len
    # Bytes of what is int8, and of sums and residuals, which mode 2 keeps as int8.
    byte = 1 if int8_mode else ELEMENT
    kept = 1 if int8_mode > 1 else ELEMENT
    rate = INT8_OP_PER_S if int8_mode else FLOP_PER_S

    def gemm(n: int, k: int, out: int, residual: bool = False) -> tuple[float, float]:
        # float16 products add the residual themselves; of integers the layer norm reads it.
        numbers = byte * (tokens * k + k * n) + out * tokens * n
        numbers += ELEMENT * tokens * n if residual and not int8_mode else 0
        return 1e6 * 2.0 * tokens * n * k / rate, 1e6 * numbers / BYTES_PER_S

    size = tokens * HIDDEN
    norm = ELEMENT * 2 * size
    if int8_mode:
        norm = (2 * kept + 1 + (ELEMENT if int8_mode == 1 else 0)) * size
    attention = 4.0 * tokens * seq_len * HIDDEN, (ELEMENT * 3 + byte) * size
    return {
        GEMMS[0]: gemm(3 * HIDDEN, HIDDEN, ELEMENT),
        "attention": (1e6 * attention[0] / FLOP_PER_S, 1e6 * attention[1] / BYTES_PER_S),
        GEMMS[1]: gemm(HIDDEN, HIDDEN, kept, residual=True),
        "layer norm 1": (0.0, 1e6 * norm / BYTES_PER_S),
        GEMMS[2]: gemm(INNER, HIDDEN, byte),
        GEMMS[3]: gemm(HIDDEN, INNER, kept, residual=True),
        "layer norm 2": (0.0, 1e6 * norm / BYTES_PER_S),
    }


def table(
    batch: int, seq_len: int, kernels: list[Kernel], whole_ms: float | None, int8_mode: int = 0
) -> dict[str, Any]:
    """One shape's parts: time, floor, kernels."""
    layers = parts_of_layers(kernels)
    rows = []
    least = floors(batch, seq_len, int8_mode)
    for part in [*least, *sorted({p for layer in layers for p in layer} - set(least))]:
        times = [sum(k.microseconds for k in layer.get(part, [])) for layer in layers]
        arithmetic, memory = least.get(part, (0.0, 0.0))
        names = [k.name for k in layers[-1].get(part, [])]
        rows.append(
            {
                "part": part,
                "us": round(statistics.median(times), 2),
                "floor_us": round(max(arithmetic, memory), 2),
                "bound": "arithmetic" if arithmetic > memory else "memory",
                "kernels": names,
            }
        )
    return {
        "shape": f"{batch}x{seq_len}",
        "layers": len(layers),
        "rows": rows,
        "sum_us": round(sum(row["us"] for row in rows), 2),
        "floor_us": round(sum(row["floor_us"] for row in rows), 2),
        "encoder_sample_ms": whole_ms,
    }


def short(name: str) -> str:
    """A kernel's name without namespaces, return type and parameters."""
    name = re.sub(r"^void ", "", name.split("(", 1)[0])
    return re.sub(r"\b\w+::", "", name)[:60]


def markdown(data: dict[str, Any]) -> str:
    """The report."""
    text = [
        f"# One layer of BERT-base in {data['computes_in']}, kernel by kernel: {data['gpu']}, "
        f"{data['date'][:10]}",
        "",
        f"{data['commit']}. Nsight Compute, clocks and caches left alone, GEMMs by cuBLASLt's",
        "heuristic or our rule, median over the layers, microseconds. Floor: the longer of FLOP",
        f"over {FLOP_PER_S / 1e12:.0f} TFLOP/s (of integers {INT8_OP_PER_S / 1e12:.0f}) and bytes",
        f"over {BYTES_PER_S / 1e12:.1f} TB/s.",
        "",
    ]
    for shape in data["shapes"]:
        text += [f"## {shape['shape'].replace('x', ' x ')}", ""]
        rows = []
        for r in shape["rows"]:
            floor, bound, factor = r["floor_us"], "", ""
            if floor:
                bound, factor = r["bound"], f"{r['us'] / floor:.2f}"
            names = ", ".join(short(name) for name in r["kernels"])
            rows.append([r["part"], f"{r['us']:.1f}", f"{floor:.2f}", bound, factor, names])
        rows.append(["sum", f"{shape['sum_us']:.1f}", f"{shape['floor_us']:.2f}", "", "", ""])
        text.append(
            report.markdown_table(["part", "us", "floor", "bound by", "of floor", "kernels"], rows)
        )
        if shape["encoder_sample_ms"]:
            alone = shape["sum_us"] * shape["layers"] / 1e3
            text += [
                f"{shape['layers']} layers: {alone:.3f} ms by the kernels alone, "
                f"{shape['encoder_sample_ms']:.3f} ms by encoder_sample, floor "
                f"{shape['floor_us'] * shape['layers'] / 1e3:.3f} ms.",
                "",
            ]
    return "\n".join(text) + "\n"


def sample_command(tools: pathlib.Path, batch: int, seq_len: int, int8_mode: int) -> list[str]:
    """encoder_sample of BERT-base in float16 with all keys."""
    sizes = [batch, LAYERS, seq_len, HEADS, SIZE, 1, 0, int8_mode]
    return [str(tools / "encoder_sample"), *map(str, sizes)]


def profile(sample: list[str], log: pathlib.Path) -> list[Kernel]:
    """Runs encoder_sample once under ncu."""
    command = [
        "ncu", "--clock-control", "none", "--cache-control", "none",
        "--metrics", "gpu__time_duration.sum", "--csv", "--page", "raw",
        "--log-file", str(log), "--force-overwrite",
    ]  # fmt: skip
    environment = {**os.environ, "FT_SAMPLE_PROFILE": "1"}
    done = subprocess.run(
        [*command, *sample], capture_output=True, text=True, env=environment, timeout=120
    )
    if done.returncode:
        raise RuntimeError(
            f"ncu: exit code {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    return read_csv(log.read_text().splitlines())


def sample_ms(sample: list[str]) -> float | None:
    """encoder_sample's own time, or None."""
    done = subprocess.run(sample, capture_output=True, text=True, timeout=60)
    found = re.search(r"FT-CPP-time ([0-9.]+)", done.stdout)
    return float(found.group(1)) if found else None


def main() -> None:
    """Profiles the shapes and writes <out>.json and <out>.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tools = next(
        (p for p in (_ROOT / "bin", _ROOT / "build" / "cuda") if p.is_dir()), _ROOT / "bin"
    )
    parser.add_argument("--tools", type=pathlib.Path, default=tools)
    parser.add_argument("--shapes", default="32x384,1x32,8x128")
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu_profile")
    parser.add_argument("--int8_mode", type=int, choices=[0, 1, 2], default=0)
    parser.add_argument("--csv", type=pathlib.Path, help="a saved profile of the first shape")
    args = parser.parse_args()
    gpu = "unknown GPU"
    if not args.csv:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    data: dict[str, Any] = {**report.header(), "gpu": gpu, "shapes": [], "problems": []}
    mode = args.int8_mode
    data["computes_in"] = f"INT8, int8_mode {mode}, FP16 between" if mode else "FP16"
    args.out = args.out.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    logs = pathlib.Path(tempfile.mkdtemp(prefix="gpu_profile."))
    for shape in args.shapes.split(",")[: 1 if args.csv else None]:
        batch, seq_len = map(int, shape.split("x"))
        try:
            if args.csv:
                kernels, whole = read_csv(args.csv.read_text().splitlines()), None
            else:
                sample = sample_command(args.tools, batch, seq_len, mode)
                whole = sample_ms(sample)
                kernels = profile(sample, logs / f"{shape}.csv")
            data["shapes"].append(table(batch, seq_len, kernels, whole, mode))
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            data["problems"].append(f"{shape}: {error}")
    report.write_json(args.out.with_name(args.out.name + ".json"), data)
    text = markdown(data)
    report.write_text(args.out.with_name(args.out.name + ".md"), text)
    print(text)
    if data["problems"]:
        sys.exit("\n".join(data["problems"]))


if __name__ == "__main__":
    main()
