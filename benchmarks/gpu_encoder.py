"""Times the op on one GPU against PyTorch and TensorFlow, in one run: BERT-base, ms per forward.

    python3 -m benchmarks.gpu_encoder --tools=build/cuda --out=benchmarks/results/gpu_encoder

Parts: torch (PyTorch compiled, one CUDA graph), xla (TensorFlow under XLA), cpp (encoder_sample,
GEMMs by a rule and tuned), op_tuned (the op inside TensorFlow with tuned GEMMs) and op (not
tuned, and TensorFlow without XLA).
benchmarks/gpu_workers.py is what runs; here they are started together, so that they compile side
by side, and then timed one at a time. Results are written after each part. --only and --shapes run
a part of it and put the results into the same JSON, unless --fresh.
--device=cpu rehearses the program without a GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import gpu_workers, report

SHAPES = [f"{b}x{s}" for b in (1, 8, 32) for s in (32, 128, 384)]
PARTS = ("torch", "xla", "cpp", "op_tuned", "op")
VARIANTS = ("masked", "full", "packed")
# What encoder_sample and encoder_gemm are told of our precisions.
CPP_MODES = {"fp16": "0", "int8_1": "1", "int8_2": "2", "fp8_1": "fp8"}
_ROOT = pathlib.Path(__file__).resolve().parent.parent


class Process:
    """A worker: its lines as they come."""

    def __init__(
        self,
        name: str,
        command: list[str],
        env: dict[str, str],
        log: pathlib.Path,
        cwd: pathlib.Path = _ROOT,
    ) -> None:
        """Starts it in `cwd`; its stderr goes to `log`."""
        self.name, self.log = name, log
        self.ready = threading.Event()
        self.finished = threading.Event()
        self.results: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.versions: dict[str, str] = {}
        self.complete = False
        self.out_of_time = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=env,
            cwd=cwd,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            kind, _, text = line.partition(" ")
            if kind == "READY":
                self.ready.set()
            elif kind == "RESULT":
                self.results.append(json.loads(text))
            elif kind == "CHECKED":
                self.checks.append(json.loads(text))
            elif kind == "VERSIONS":
                self.versions |= json.loads(text)
            elif kind.strip() == "DONE":
                self.complete = True
        self._process.wait()
        self.ready.set()
        self.finished.set()

    def turn(self, limit: float) -> None:
        """Lets it time, until it ends or `limit` seconds are over."""
        try:
            self._process.stdin.write("GO\n")
            self._process.stdin.flush()
        except OSError:
            pass  # It has ended; `problem` says how.
        self.finished.wait(limit)
        self.kill()

    def kill(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            self.out_of_time = True
            self._process.kill()
        self.finished.wait(10)

    def problem(self) -> str | None:
        """Why results may be missing, or None."""
        if self.complete:
            return None
        if self.out_of_time:
            return f"{self.name} was out of time after {len(self.results)} results"
        tail = self.log.read_text()[-600:].strip()
        return f"{self.name} ended early, exit code {self._process.returncode}: {tail}"


class Run:
    """One run of the program."""

    def __init__(self, args: argparse.Namespace, workdir: pathlib.Path) -> None:
        """Starts the clock; reads the results of earlier runs."""
        self.args, self.workdir = args, workdir
        self.begin = time.time()
        self.deadline = self.begin + args.budget
        self.json_path = args.out.with_name(args.out.name + ".json")
        gpu = report.gpu_state()
        old = {}
        if self.json_path.exists() and not args.fresh:
            old = json.loads(self.json_path.read_text())
            then, now = old["gpu"], gpu
            for key in ("name", "driver_version"):
                if then.get(key) != now.get(key):
                    raise SystemExit(
                        f"{self.json_path} was measured with {key} {then.get(key)}, here it is "
                        f"{now.get(key)}: give --fresh or another --out"
                    )
        self.data: dict[str, Any] = {
            **report.header(),
            "model": f"BERT-base encoder, {args.layers} layers, 12 heads x 64, inner 3072",
            "versions": old.get("versions", {}),
            "ms": old.get("ms", {}),
            "relative_error": old.get("relative_error", {}),
            "measured": old.get("measured", {}),
            "gemm_configs": old.get("gemm_configs", {}),  # name of the file: text
            "problems": [],
        }
        self.data["gpu"] = gpu

    def say(self, text: str) -> None:
        """Prints the time and what happens."""
        print(f"[{time.time() - self.begin:5.0f} s] {text}", flush=True)

    def left(self) -> float:
        """Seconds of the budget."""
        return max(0.0, self.deadline - time.time())

    def record(self, engine: str, shape: str, precision: str, variant: str, ms: float) -> None:
        """Keeps one measurement."""
        place = self.data["ms"].setdefault(engine, {}).setdefault(shape, {})
        place.setdefault(precision, {})[variant] = round(ms, 5)
        self.data["measured"][engine] = {key: self.data[key] for key in ("date", "commit", "gpu")}

    def problem(self, text: str) -> None:
        """Keeps and prints what went wrong."""
        self.data["problems"].append(text)
        self.say("PROBLEM: " + text.replace("\n", " ")[:300])

    def save(self) -> None:
        """Writes the JSON."""
        self.data["seconds"] = round(time.time() - self.begin)
        report.write_json(self.json_path, self.data)

    # ---- Workers ---------------------------------------------------------------------------------

    def start(
        self, name: str, kind: str, shapes: list[str], extra: list[str], **env: str
    ) -> Process:
        """Starts a worker of `kind`."""
        command = [
            sys.executable, "-m", "benchmarks.gpu_workers", kind, f"--shapes={','.join(shapes)}",
            f"--layers={self.args.layers}", f"--workdir={self.workdir}",
            f"--device={self.args.device}", *extra,
        ]  # fmt: skip
        environment = {**os.environ, **env}
        if kind == "torch":
            # The paths that bring TensorFlow its CUDA libraries would give PyTorch other ones than
            # it came with.
            environment.pop("LD_LIBRARY_PATH", None)
            paths = environment.pop("PYTHONPATH", "").split(os.pathsep)
            paths = [p for p in paths if p and not (pathlib.Path(p) / "tensorflow").is_dir()]
            if paths:
                environment["PYTHONPATH"] = os.pathsep.join(paths)
        return Process(name, command, environment, self.workdir / f"{name}.log")

    def collect(self, process: Process) -> None:
        """Takes over a worker's results."""
        for check in process.checks:
            place = self.data["relative_error"]
            for key in ("engine", "shape", "precision"):
                place = place.setdefault(check[key], {})
            place[check["variant"]] = check["relative_error"]
            if not check["relative_error"] <= gpu_workers.TOLERANCE[check["precision"]]:
                # Of an earlier run; this one gives no time.
                times = self.data["ms"].get(check["engine"], {}).get(check["shape"], {})
                times.get(check["precision"], {}).pop(check["variant"], None)
        for result in process.results:
            where = [result[key] for key in ("engine", "shape", "precision", "variant")]
            if "ms" in result:
                self.record(*where, result["ms"])
            else:
                self.problem(f"{' '.join(where)}: {result['error']}")
        self.data["versions"] |= process.versions
        if reason := process.problem():
            self.problem(reason)
        self.save()

    def run_workers(self) -> None:
        """Prepares all workers side by side, then gives each its turn."""
        args, shapes, only = self.args, self.args.shapes, self.args.only
        if set(only) - {"cpp"}:
            truth = self.start("truth", "truth", shapes, [])
            truth.ready.wait(90)
            truth.turn(90)
            self.collect(truth)
        compile_deadline = self.begin + args.compile_limit
        torch_workers, others = [], []
        if "torch" in only:
            for shape in shapes:
                # Few compile workers each: nine processes with the default take all memory.
                one = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
                flags = ["--precisions=fp16,fp8,int8"]
                torch_workers.append(self.start(f"torch_{shape}", "torch", [shape], flags, **one))
        if "xla" in only:
            # XLA times algorithms while it compiles, so few at a time.
            for precision in ("fp16", "fp32"):
                for part, some in enumerate((shapes[0::2], shapes[1::2])):
                    flags = [
                        f"--precisions={precision}",
                        f"--compile_deadline={compile_deadline}",
                        f"--deadline={self.deadline}",
                    ]
                    if some:
                        others.append(self.start(f"xla_{precision}_{part}", "xla", some, flags))
        tuned = self.workdir / "tuned"
        empty = self.workdir / "not_tuned"
        for folder in (tuned, empty):
            folder.mkdir(exist_ok=True)
        ops = []
        for engine, config, seconds in (("op_tuned", tuned, 0), ("op", empty, 15)):
            if engine in only:
                flags = [f"--engine={engine}", f"--deadline={self.deadline - seconds}"]
                directory = {"FT_GEMM_CONFIG_DIR": str(config)}
                ops.append(self.start(engine, "op", shapes, flags, **directory))
        waiting = [*torch_workers, *others, *ops]
        # Nothing is timed while another worker compiles.
        for process in waiting:
            if not process.ready.wait(max(1.0, compile_deadline + 30 - time.time())):
                self.problem(f"{process.name} was not ready in time and is left out")
                process.kill()
        self.say(f"{len(waiting)} workers are ready")
        if "cpp" in only or ("op_tuned" in only and not self.data["gemm_configs"]):
            self.run_cpp(empty, tuned)
        for name, text in self.data["gemm_configs"].items():
            # Of an earlier run they would, for another GPU or driver, be reported and ignored.
            (tuned / name).write_text(text)
        for process in [*torch_workers, *others, *ops]:
            process.turn(self.left() if process in ops else min(self.left(), 90))
            self.collect(process)
            self.say(f"{process.name}: {len(process.results)} results")

    # ---- encoder_sample --------------------------------------------------------------------------

    def tools(self) -> pathlib.Path | None:
        """The folder of the C++ programs where they can run."""
        if self.args.device == "cpu" or not (self.args.tools / "encoder_sample").exists():
            return None
        return self.args.tools

    def run_cpp(self, empty: pathlib.Path, tuned: pathlib.Path) -> None:
        """Times encoder_sample without a gemm_config.in, tunes, and times it again."""
        tools = self.tools()
        if tools is None:
            self.problem(f"cpp: no encoder_sample in {self.args.tools}, or no GPU")
            return
        self.time_cpp(tools, "cpp", empty, ("full",))
        for shape in self.args.shapes:
            batch, seq_len = map(int, shape.split("x"))
            for length in dict.fromkeys((seq_len, max(1, seq_len // 2))):
                for mode in CPP_MODES.values():
                    command = [tools / "encoder_gemm", batch, length, 12, 64, 1, mode]
                    self.call(f"encoder_gemm {batch} {length} {mode}", command, tuned)
        self.say("GEMMs are tuned")
        self.time_cpp(tools, "cpp_tuned", tuned, VARIANTS)
        self.data["gemm_configs"] = {
            path.name: path.read_text() for path in sorted(tuned.glob("*gemm_config.in"))
        }
        self.save()

    def time_cpp(
        self, tools: pathlib.Path, engine: str, config: pathlib.Path, variants: Sequence[str]
    ) -> None:
        """Runs encoder_sample for all shapes in FP16, and with 8 bits."""
        runs = itertools.product(self.args.shapes, variants, CPP_MODES.items())
        for shape, variant, (precision, mode) in runs:
            if precision != "fp16" and variant == "masked":
                continue
            batch, seq_len = shape.split("x")
            sizes = [batch, self.args.layers, seq_len, 12, 64]
            command = [tools / "encoder_sample", *sizes, 1, int(variant == "packed"), mode]
            masked = {"FT_SAMPLE_MASKED": "1"} if variant == "masked" else {}
            text = self.call(f"{engine} {shape} {precision} {variant}", command, config, **masked)
            if found := re.search(r"FT-CPP-time ([0-9.]+)", text):
                self.record(engine, shape, precision, variant, float(found.group(1)))
        self.say(f"{engine} is timed")
        self.save()

    def call(self, name: str, command: list[Any], config: pathlib.Path, **env: str) -> str:
        """Runs a C++ program; its output, empty where it failed."""
        env = {**os.environ, "FT_GEMM_CONFIG_DIR": str(config), **env}
        try:
            done = subprocess.run(
                [str(c) for c in command], capture_output=True, text=True, env=env, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self.problem(f"{name}: {error}")
            return ""
        if done.returncode:
            self.problem(f"{name}: exit code {done.returncode}: {done.stdout[-300:]}")
            return ""
        return done.stdout


# ---- Report --------------------------------------------------------------------------------------


def lookup(
    data: dict[str, Any], engine: str, shape: str, precision: str, variant: str
) -> float | None:
    """A time, or None."""
    return data["ms"].get(engine, {}).get(shape, {}).get(precision, {}).get(variant)


def ratio(above: float | None, below: float | None) -> float | None:
    """The ratio above / below, or None where one is missing."""
    return above / below if above and below else None


def show(value: float | None, digits: int = 3) -> str:
    """A number for a table."""
    return "" if value is None else f"{value:.{digits}f}"


# What a release has to reach: numerator, denominator, sign and limit; the first two are engine,
# precision and variant.
_OP = "op_tuned"
CRITERIA = {
    "C++ masked / torch masked": (
        ("cpp_tuned", "fp16", "masked"), ("torch", "fp16", "masked"), "<=", 1.0),
    "op masked / torch masked": ((_OP, "fp16", "masked"), ("torch", "fp16", "masked"), "<=", 1.0),
    "XLA / C++ masked": (("xla", "fp16", "masked"), ("cpp_tuned", "fp16", "masked"), ">=", 1.3),
    "XLA / op masked": (("xla", "fp16", "masked"), (_OP, "fp16", "masked"), ">=", 1.3),
    "C++ packed / torch packed": (
        ("cpp_tuned", "fp16", "packed"), ("torch", "fp16", "packed"), "<=", 1.0),
    "op packed / torch packed": ((_OP, "fp16", "packed"), ("torch", "fp16", "packed"), "<=", 1.0),
    "op / C++ full": ((_OP, "fp16", "full"), ("cpp_tuned", "fp16", "full"), "<=", 1.05),
    "op / C++ masked": ((_OP, "fp16", "masked"), ("cpp_tuned", "fp16", "masked"), "<=", 1.05),
    "op / C++ packed": ((_OP, "fp16", "packed"), ("cpp_tuned", "fp16", "packed"), "<=", 1.05),
    "changing / repeated lengths, padding kept": (
        (_OP, "fp16", "kept_changing"), (_OP, "fp16", "kept_repeated"), "<=", 1.1),
    "changing / repeated lengths, padding removed": (
        (_OP, "fp16", "removed_changing"), (_OP, "fp16", "removed_repeated"), "<=", 1.1),
    "changing lengths, op removing padding / torch": (
        (_OP, "fp16", "removed_changing"), ("torch", "fp16", "kept_changing"), "<=", 1.0),
    "weights in variables / constants": (
        (_OP, "fp16", "full"), (_OP, "fp16", "constants"), "<=", 1.05),
    "op int8_mode 1 / torch fp8": ((_OP, "int8_1", "full"), ("torch", "fp8", "full"), "<=", 1.0),
    "op int8_mode 2 / torch fp8": ((_OP, "int8_2", "full"), ("torch", "fp8", "full"), "<=", 1.0),
    "op fp8_mode / torch fp8": ((_OP, "fp8_1", "full"), ("torch", "fp8", "full"), "<=", 1.0),
    "op int8_mode 2 / torch fp8, packed": (
        (_OP, "int8_2", "packed"), ("torch", "fp8", "packed"), "<=", 1.0),
    "op fp32 / XLA fp32": (("op", "fp32", "full"), ("xla", "fp32", "masked"), "<=", 1.0),
}  # fmt: skip


# The engines and variants of the tables in words.
_ENGINES = {
    "torch": "PyTorch compiled, a CUDA graph",
    "xla": "TensorFlow under XLA",
    "cpp": "encoder_sample (C++)",
    "cpp_tuned": "encoder_sample (C++)",
    "op": "op",
    "op_tuned": "op",
}
_VARIANTS = {
    "full": "all keys real",
    "masked": "second half masked",
    "packed": "half of the tokens, padding removed",
    "masktensor": "second half masked by a tensor",
    "tensorflow": "second half masked, TensorFlow's own layers",
    "constants": "all keys real",
    "kept_repeated": "random lengths, each batch 4 times, padding kept",
    "kept_changing": "random lengths, another batch in every call, padding kept",
    "removed_repeated": "random lengths, each batch 4 times, padding removed",
    "removed_changing": "random lengths, another batch in every call, padding removed",
}
# What only some engines do of the same name.
_SPECIAL = {
    ("torch", "packed"): "dense batch of half the length",
    ("torch", "kept_changing"): "random lengths, another mask copied in before every call",
    ("op", "tensorflow"): "TensorFlow's own layers, second half masked",
}


def variant_rows(data: dict[str, Any]) -> list[list[str]]:
    """What each measured engine, precision and variant is, one row each."""
    rows = []
    for engine, by_shape in data["ms"].items():
        kinds = dict.fromkeys(
            (precision, variant)
            for by_precision in by_shape.values()
            for precision, times in by_precision.items()
            for variant in times
        )
        measured = data["measured"].get(engine, {})
        is_op = engine in ("op", "op_tuned")
        for precision, variant in kinds:
            text = _SPECIAL.get((engine, variant)) or _VARIANTS.get(variant, variant)
            # Of the others, arguments of what is compiled: device memory that stays where it is.
            held = "constants" if variant == "constants" else "variables" if is_op else "arguments"
            tuned = "tuned" if engine.endswith("_tuned") else "not tuned"
            rows.append([
                _ENGINES.get(engine, engine), precision, text, held, tuned, "own process",
                str(measured.get("commit", "")).partition(",")[0],
                measured.get("gpu", data["gpu"]).get("name", ""),
            ])  # fmt: skip
    return rows


def criteria_rows(data: dict[str, Any], shapes: list[str]) -> list[list[str]]:
    """One row for each criterion: its limit, the ratio at each shape, and the verdict."""
    rows = []
    for title, (above, below, sign, limit) in CRITERIA.items():
        values = []
        for shape in shapes:
            over, under = (lookup(data, e, shape, p, v) for e, p, v in (above, below))
            values.append(ratio(over, under))
        known = [v for v in values if v is not None]
        kept = [v <= limit if sign == "<=" else v >= limit for v in known]
        missing = len(values) - len(known)
        verdict = "yes" if known and all(kept) and not missing else f"{sum(kept)} of {len(values)}"
        rows.append([title, f"{sign} {limit}", *(show(v, 2) for v in values), verdict])
    return rows


def markdown(data: dict[str, Any], shapes: list[str]) -> str:
    """The report."""
    gpu = data["gpu"]
    measured = sorted(
        f"{engine} {m['date'][:19]} ({m['commit'].partition(',')[0]})"
        for engine, m in data["measured"].items()
    )
    versions = ", ".join(f"{key} {value}" for key, value in sorted(data["versions"].items()))
    text = [
        f"# GPU encoder: {gpu.get('name')}, {data['date'][:10]}",
        "",
        f"{data['model']}; milliseconds per forward. Measured {', '.join(measured)}; driver",
        f"{gpu.get('driver_version')}; {data['commit']}; {versions}.",
        "",
        "masked: keys from S/2 on are masked. packed: S/2 tokens a sequence, padding removed.",
        "mask tensor: the same mask as a [B,1,S,S] tensor. torch: PyTorch compiled, a CUDA graph;",
        "its packed is the dense batch of half the length. XLA, TF: TensorFlow's own encoder with",
        "and without XLA. C++: encoder_sample on already packed rows. op: BertEncoder inside",
        "TensorFlow, removing and rebuilding the padding itself, in a while loop. GEMMs tuned by",
        "encoder_gemm; (h) and the second table: not tuned, by a rule. torch, C++: median of 7",
        "runs of 50 forwards, GPU events. XLA, TF, op: wall time a turn in loops of 100 ms. Each",
        "engine is a process; its output is compared with TensorFlow's own float32 encoder before",
        "it is timed, but C++'s, which has weights of its own and tests of its own.",
        "",
        "## FP16",
        "",
    ]

    def table(columns: dict[str, tuple[str, str, str]]) -> str:
        rows = [
            [
                s.replace("x", " x "),
                *(show(lookup(data, e, s, p, v)) for e, p, v in columns.values()),
            ]
            for s in shapes
        ]
        return report.markdown_table(["B x S", *columns], rows)

    columns = {}
    for variant in VARIANTS:
        columns[f"torch {variant}"] = ("torch", "fp16", variant)
        columns[f"C++ {variant}"] = ("cpp_tuned", "fp16", variant)
        columns[f"op {variant}"] = ("op_tuned", "fp16", variant)
    columns["C++ (h) full"] = ("cpp", "fp16", "full")
    columns["op (h) full"] = ("op", "fp16", "full")
    columns["op (h) packed"] = ("op", "fp16", "packed")
    columns["op (h) mask tensor"] = ("op", "fp16", "masktensor")
    columns["XLA"] = ("xla", "fp16", "masked")
    columns["TF"] = ("op", "fp16", "tensorflow")
    text += [table(columns), "## Float32, TF32, bfloat16", ""]
    text += [
        table(
            {
                "XLA float32": ("xla", "fp32", "masked"),
                "TF float32": ("op", "fp32", "tensorflow"),
                "op float32 full": ("op", "fp32", "full"),
                "op float32 packed": ("op", "fp32", "packed"),
                "op TF32 full": ("op", "tf32", "full"),
                "op bfloat16 full": ("op", "bf16", "full"),
                "op bfloat16 packed": ("op", "bf16", "packed"),
            }
        ),
        "## 8 bits: products of int8 or e4m3, all else float16",
        "",
        "op, C++: int8_mode 1 and 2 and fp8_mode 1, one range a column of the weights, kernels",
        "tuned by encoder_gemm; (h) by a rule. torch: one range a tensor, from this very batch.",
        "",
        table(
            {
                f"{name} {variant}": (engine, precision, variant)
                for variant in ("full", "packed")
                for name, engine, precision in (
                    ("torch fp8", "torch", "fp8"),
                    ("torch int8", "torch", "int8"),
                    ("op fp8", _OP, "fp8_1"),
                    ("op fp8 (h)", "op", "fp8_1"),
                    ("C++ fp8", "cpp_tuned", "fp8_1"),
                    ("op mode 1", _OP, "int8_1"),
                    ("op mode 2", _OP, "int8_2"),
                    ("C++ mode 1", "cpp_tuned", "int8_1"),
                    ("C++ mode 2", "cpp_tuned", "int8_2"),
                )
            }
        ),
        "## FP16, random lengths, and weights in variables against constants",
        "",
        "kept, removed: padding. changing: another of "
        f"{gpu_workers.RAGGED_BATCHES} batches of random lengths in every forward; repeated: each "
        "of them",
        f"{gpu_workers.RAGGED_VARIANTS['kept_repeated']} times in succession. torch: padded "
        "batches, the mask copied in before each. All others of this file repeat one",
        "batch. GEMMs of the op are tuned.",
        "",
        table(
            {
                "torch kept changing": ("torch", "fp16", "kept_changing"),
                "op kept repeated": (_OP, "fp16", "kept_repeated"),
                "op kept changing": (_OP, "fp16", "kept_changing"),
                "op removed repeated": (_OP, "fp16", "removed_repeated"),
                "op removed changing": (_OP, "fp16", "removed_changing"),
                "op full, variables": (_OP, "fp16", "full"),
                "op full, constants": (_OP, "fp16", "constants"),
            }
        ),
        "## What was measured",
        "",
        report.markdown_table(
            ["engine", "type", "batch", "weights", "GEMMs", "run in", "commit", "GPU"],
            variant_rows(data),
        ),
        "## Ratios",
        "",
        report.markdown_table(["ratio", "wanted", *shapes, "met"], criteria_rows(data, shapes)),
    ]
    worst: dict[str, float] = {}
    for engine, by_shape in data["relative_error"].items():
        for by_precision in by_shape.values():
            for precision, errors in by_precision.items():
                name = f"{engine} {precision}"
                worst[name] = max(worst.get(name, 0.0), *errors.values())
    text += [
        "Largest relative error against TensorFlow's float32 encoder: "
        + ", ".join(f"{name} {error:.1e}" for name, error in sorted(worst.items()))
        + ".",
    ]
    if data["problems"]:
        text += [
            "",
            "## Problems",
            "",
            *(f"- {' '.join(p.split())[:300]}" for p in data["problems"]),
        ]
    return "\n".join(text) + "\n"


def plot(data: dict[str, Any], shapes: list[str], path: pathlib.Path) -> None:
    """Bars: time of each engine over the op's, one group a shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = {
        "TensorFlow": ("op", "fp16", "tensorflow"),
        "TensorFlow XLA": ("xla", "fp16", "masked"),
        "PyTorch compiled, masked": ("torch", "fp16", "masked"),
        "op, masked": ("op_tuned", "fp16", "masked"),
        "PyTorch compiled, packed": ("torch", "fp16", "packed"),
        "op, padding removed": ("op_tuned", "fp16", "packed"),
    }
    figure, axis = pyplot.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(series)
    for index, (label, (engine, precision, variant)) in enumerate(series.items()):
        times = [lookup(data, engine, s, precision, variant) for s in shapes]
        places = [i + (index - len(series) / 2 + 0.5) * width for i in range(len(shapes))]
        axis.bar(places, [t or 0 for t in times], width, label=label)
    axis.set_yscale("log")
    axis.set_xticks(range(len(shapes)), shapes)
    axis.set_ylabel("ms per forward")
    axis.set_xlabel("batch x length")
    axis.set_title(f"BERT-base encoder, FP16, {data['gpu'].get('name')}", fontsize=10)
    axis.legend(fontsize=8, ncols=2)
    report.save_figure(figure, path)
    pyplot.close(figure)


def main() -> None:
    """Runs the parts and writes <out>.json, <out>.md and <out>.png."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tools = next(
        (p for p in (_ROOT / "bin", _ROOT / "build" / "cuda") if p.is_dir()), _ROOT / "bin"
    )
    parser.add_argument("--tools", type=pathlib.Path, default=tools)
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu_encoder")
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--budget", type=float, default=450, help="seconds for everything")
    parser.add_argument("--compile_limit", type=float, default=200, help="seconds to compile")
    parser.add_argument("--fresh", action="store_true", help="forget the results in <out>.json")
    args = parser.parse_args()
    args.only, args.shapes = args.only.split(","), args.shapes.split(",")
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"--only: unknown {sorted(unknown)}, expected of {PARTS}")
    args.tools = args.tools.resolve()
    args.out = args.out.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    workdir = pathlib.Path(tempfile.mkdtemp(prefix="gpu_encoder."))
    run = Run(args, workdir)
    shapes = [s for s in SHAPES if s in args.shapes or any(s in e for e in run.data["ms"].values())]
    shapes += [s for s in args.shapes if s not in shapes]
    try:
        run.run_workers()
    finally:
        run.data["gpu_after"] = report.gpu_state()
        run.save()
        text = markdown(run.data, shapes)
        report.write_text(args.out.with_name(args.out.name + ".md"), text)
        logs = "\n".join(
            f"=== {log.name}\n{log.read_text()[-20000:]}" for log in sorted(workdir.glob("*.log"))
        )
        report.write_text(args.out.with_name(args.out.name + ".log"), logs)
        try:
            plot(run.data, shapes, args.out.with_name(args.out.name + ".png"))
        except ImportError as error:
            run.say(f"no plot: {error}")
        shutil.rmtree(workdir, ignore_errors=True)
        print(text)
        print("\n".join(" | ".join(row) for row in criteria_rows(run.data, shapes)))
        run.say("done")
    if run.data["problems"]:
        sys.exit(f"{len(run.data['problems'])} problems, see above")


if __name__ == "__main__":
    main()
