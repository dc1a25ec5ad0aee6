"""Kernel by kernel, where the time of one encoder layer goes, each with the least it could take.

    python3 -m benchmarks.gpu_profile --tools=build/cuda --out=benchmarks/results/gpu_profile

Runs encoder_sample once under Nsight Compute, clocks and caches left alone, and sums each part of a
layer, or the parts that one kernel computes: the median over the layers. The floor is the
arithmetic over the measured rate of the tensor cores, or the bytes (inputs once, outputs once) over
the measured rate of the memory, whichever is longer. A kernel under the profiler runs alone, so
what overlap of neighbours saves is the difference between the sum and encoder_sample's own time.
"32x384 half" are sequences of half the length, packed. --csv makes the table of a saved profile,
without a GPU.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import functools
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
# What a layer computes, in this order, and the kind of kernel that does.
PARTS = {
    "QKV GEMM": "gemm",
    "attention": "attention",
    "attention output GEMM": "gemm",
    "layer norm 1": "layer norm",
    "intermediate GEMM": "gemm",
    "output GEMM": "gemm",
    "layer norm 2": "layer norm",
}
INT8_MODES = ("0", "1", "2", "fp8")  # as encoder_sample has them


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
    """What a kernel does, by its name: kinds of PARTS with "and" between, or something else."""
    patterns = {
        "reduce": r"splitKreduce|splitk_reduce",
        "attention and gemm": r"AttentionProjection",
        "attention": r"Attention",
        "gemm and layer norm": r"NormGemm",
        "layer norm": r"LayerNorm",
        "activation": r"ActivationKernel",
        "gemm": r"gemm|nvjet|xmma|cutlass",
    }
    for result, pattern in patterns.items():
        if re.search(pattern, name, re.IGNORECASE):
            return result
    return "other"


def parts_of_layers(kernels: Iterable[Kernel]) -> list[dict[tuple[str, ...], list[Kernel]]]:
    """Sorts the launches into layers and their parts, by the order in which a layer runs.

    Returns:
      For each layer the launches by the parts, of PARTS, that they compute together.

    Raises:
      ValueError: The order is not that of an encoder.
    """
    kernels = list(kernels)
    layers: list[dict[tuple[str, ...], list[Kernel]]] = []
    names = tuple(PARTS)
    done = len(names)  # nothing before the first GEMM belongs to a layer
    parts: tuple[str, ...] = ()
    for kernel in kernels:
        kinds = kind(kernel.name).split(" and ")
        if kinds[0] in PARTS.values():
            if done == len(names) and (layers or kinds == ["gemm"]):
                layers.append(collections.defaultdict(list))
                done = 0
            parts = names[done : done + len(kinds)]
            if not layers or [PARTS[part] for part in parts] != kinds:
                raise _not_layers(kernels)
            done += len(parts)
        elif not layers:
            continue
        # A reduction, an activation or another kernel belongs to the one before it.
        layers[-1][parts].append(kernel)
    if not layers or done != len(names):
        raise _not_layers(kernels)
    return layers


def _not_layers(kernels: list[Kernel]) -> ValueError:
    found = [kernel.name[:40] for kernel in kernels][:12]
    return ValueError(f"these kernels are not whole layers: {found}")


@dataclasses.dataclass
class Floor:
    """Microseconds that a part takes at least."""

    arithmetic: float
    memory: float
    output: float  # of the memory's

    @property
    def least(self) -> float:
        """The longer of both."""
        return max(self.arithmetic, self.memory)

    def then(self, following: Floor) -> Floor:
        """Of both parts in one kernel: what the first hands on stays in the multiprocessors."""
        return Floor(
            self.arithmetic + following.arithmetic,
            self.memory + following.memory - 2 * self.output,
            following.output,
        )


def floors(batch: int, seq_len: int, int8_mode: str = "0") -> dict[str, Floor]:
    """The floors by part, all keys real."""
    tokens = batch * seq_len
    # Bytes of what has 8 bits, and of sums and residuals, which mode 2 keeps as int8.
    byte = 1 if int8_mode != "0" else ELEMENT
    kept = 1 if int8_mode == "2" else ELEMENT
    rate = INT8_OP_PER_S if int8_mode != "0" else FLOP_PER_S
    size = tokens * HIDDEN

    def us(flop: float, flop_per_s: float, read: float, written: float) -> Floor:
        return Floor(
            1e6 * flop / flop_per_s,
            1e6 * (read + written) / BYTES_PER_S,
            1e6 * written / BYTES_PER_S,
        )

    def gemm(n: int, k: int, out: int, residual: bool = False) -> Floor:
        # float16 products add the residual themselves; of 8 bits the layer norm reads it.
        read = byte * (tokens * k + k * n)
        read += ELEMENT * tokens * n if residual and int8_mode == "0" else 0
        return us(2.0 * tokens * n * k, rate, read, out * tokens * n)

    norm = us(0.0, FLOP_PER_S, ELEMENT * size, ELEMENT * size)
    if int8_mode != "0":
        # The numbers too, where they are a residual.
        written = (1 + (0 if int8_mode == "2" else ELEMENT)) * size
        norm = us(0.0, FLOP_PER_S, 2 * kept * size, written)
    attention = us(4.0 * tokens * seq_len * HIDDEN, FLOP_PER_S, ELEMENT * 3 * size, byte * size)
    every = (
        gemm(3 * HIDDEN, HIDDEN, ELEMENT),
        attention,
        gemm(HIDDEN, HIDDEN, kept, residual=True),
        norm,
        gemm(INNER, HIDDEN, byte),
        gemm(HIDDEN, INNER, kept, residual=True),
        norm,
    )
    return dict(zip(PARTS, every, strict=True))


def table(
    shape: str, kernels: list[Kernel], whole_ms: float | None, int8_mode: str = "0"
) -> dict[str, Any]:
    """One shape's parts: time, floor, kernels."""
    layers = parts_of_layers(kernels)
    rows = []
    batch, seq_len, packed = read_shape(shape)
    least = floors(batch, seq_len // 2 if packed else seq_len, int8_mode)
    for parts in layers[-1]:
        times = [sum(k.microseconds for k in layer.get(parts, [])) for layer in layers]
        floor = functools.reduce(Floor.then, (least[part] for part in parts))
        rows.append(
            {
                "part": " and ".join(parts),
                "us": round(statistics.median(times), 2),
                "floor_us": round(floor.least, 2),
                "bound": "arithmetic" if floor.arithmetic > floor.memory else "memory",
                "kernels": [k.name for k in layers[-1][parts]],
            }
        )
    return {
        "shape": shape,
        "layers": len(layers),
        "rows": rows,
        "sum_us": round(sum(row["us"] for row in rows), 2),
        "floor_us": round(sum(row["floor_us"] for row in rows), 2),
        "encoder_sample_ms": whole_ms,
    }


def read_shape(shape: str) -> tuple[int, int, bool]:
    """Batch, sequence length, and whether each sequence is of half that length, and packed."""
    sizes, _, half = shape.partition(" ")
    batch, seq_len = map(int, sizes.split("x"))
    if half not in ("", "half"):
        raise ValueError(f"the shape is {shape!r}, expected as '32x384' or '32x384 half'")
    return batch, seq_len, half == "half"


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
        f"over {FLOP_PER_S / 1e12:.0f} TFLOP/s (of 8 bits {INT8_OP_PER_S / 1e12:.0f}) and bytes",
        f"over {BYTES_PER_S / 1e12:.1f} TB/s.",
        "",
    ]
    for shape in data["shapes"]:
        text += [f"## {shape['shape'].replace('x', ' x ')}", ""]
        rows = []
        for r in shape["rows"]:
            floor = r["floor_us"]
            names = ", ".join(short(name) for name in r["kernels"])
            factor = f"{r['us'] / floor:.2f}"
            rows.append([r["part"], f"{r['us']:.1f}", f"{floor:.2f}", r["bound"], factor, names])
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


def sample_command(tools: pathlib.Path, shape: str, int8_mode: str) -> list[str]:
    """encoder_sample of BERT-base in float16 with all keys, or half of them and no padding."""
    batch, seq_len, packed = read_shape(shape)
    sizes = [batch, LAYERS, seq_len, HEADS, SIZE, 1, int(packed), int8_mode]
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
    parser.add_argument("--shapes", default="1x32,8x128,32x384,32x384 half")
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu_profile")
    parser.add_argument("--int8_mode", choices=INT8_MODES, default="0")
    parser.add_argument("--csv", type=pathlib.Path, help="a saved profile of the first shape")
    args = parser.parse_args()
    gpu = "unknown GPU"
    if not args.csv:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    data: dict[str, Any] = {**report.header(), "gpu": gpu, "shapes": [], "problems": []}
    mode = args.int8_mode
    eight_bits = "FP8" if mode == "fp8" else f"INT8, int8_mode {mode}"
    data["computes_in"] = "FP16" if mode == "0" else f"{eight_bits}, FP16 between"
    args.out = args.out.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    logs = pathlib.Path(tempfile.mkdtemp(prefix="gpu_profile."))
    for shape in args.shapes.split(",")[: 1 if args.csv else None]:
        try:
            if args.csv:
                kernels, whole = read_csv(args.csv.read_text().splitlines()), None
            else:
                sample = sample_command(args.tools, shape, mode)
                whole = sample_ms(sample)
                kernels = profile(sample, logs / f"{shape.replace(' ', '_')}.csv")
            data["shapes"].append(table(shape, kernels, whole, mode))
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
