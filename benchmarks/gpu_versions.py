"""Times the op of two versions of this project on one GPU, in turn, in one run.

    python3 -m benchmarks.gpu_versions --old=DIR --out=benchmarks/results/gpu_versions

DIR is a checkout or bundle of the older version with its library. Each turn is a process of
benchmarks/gpu_workers.py of its own version: BERT-base in FP16 inside TensorFlow, GEMMs not tuned.
The order changes from round to round.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from tqdm import tqdm

from benchmarks import gpu_encoder, report

_ROOT = pathlib.Path(__file__).resolve().parent.parent
VARIANTS = ("masked", "packed", "full")
# What both versions are asked for; the older one knows no --plan and measures just these.
_PLAN = "--plan=" + ",".join(f"fp16:{variant}" for variant in VARIANTS)


def run_turn(
    root: pathlib.Path, args: argparse.Namespace, workdir: pathlib.Path, kind: str, extra: list[str]
) -> gpu_encoder.Process:
    """Lets a worker of the version in `root` time; returns it when it has ended."""
    command = [
        sys.executable, "-m", "benchmarks.gpu_workers", kind, f"--shapes={args.shapes}",
        f"--layers={args.layers}", f"--workdir={workdir}", f"--device={args.device}", *extra,
    ]  # fmt: skip
    paths = [str(root), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    paths = [p for p in paths if p and (p == str(root) or pathlib.Path(p).resolve() != _ROOT)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "FT_GEMM_CONFIG_DIR": str(workdir),
    }
    process = gpu_encoder.Process(kind, command, environment, workdir / f"{kind}.log", root)
    process.ready.wait(args.limit)
    process.turn(args.limit)
    return process


def collect(
    process: gpu_encoder.Process, version: str, times: dict[str, Any], problems: list[str]
) -> None:
    """Adds a turn's times to times[shape][variant][version]."""
    for result in process.results:
        if "ms" in result:
            place = times.setdefault(result["shape"], {}).setdefault(result["variant"], {})
            place.setdefault(version, []).append(round(result["ms"], 5))
        else:
            problems.append(f"{version} {result['shape']} {result['variant']}: {result['error']}")
    if reason := process.problem():
        problems.append(f"{version}: {reason}")


def markdown(data: dict[str, Any]) -> str:
    """The report."""
    rows = []
    for shape, variants in data["ms"].items():
        for variant, versions in variants.items():
            old, new = (statistics.median(versions.get(v) or [0.0]) for v in ("old", "new"))
            ratio = f"{new / old:.3f}" if old and new else ""
            rows.append([shape.replace("x", " x "), variant, f"{old:.4f}", f"{new:.4f}", ratio])
    text = [
        f"# Two versions of the op: {data['gpu'].get('name')}, {data['date'][:10]}",
        "",
        f"BERT-base, {data['layers']} layers, FP16, inside TensorFlow, GEMMs not tuned; ms per",
        f"forward, median of {data['rounds']} turns each, old and new in turn, each a process.",
        f"old: {data['old']}; new: {data['commit']}; driver {data['gpu'].get('driver_version')}.",
        "masked: the second half of the keys; packed: half of the tokens, padding removed; full:",
        "all keys.",
        "",
        report.markdown_table(["B x S", "batch", "old", "new", "new / old"], rows),
        *(f"- {' '.join(p.split())[:300]}" for p in data["problems"]),
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    """Writes <out>.json and <out>.md after every turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=pathlib.Path, required=True)
    parser.add_argument("--old_name", default="", help="the older version's commit, for the report")
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu_versions")
    parser.add_argument("--shapes", default="1x32,1x128,8x128,8x384,32x128,32x384")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds of one turn")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    args = parser.parse_args()
    old = args.old.resolve()
    if not (old / "benchmarks" / "gpu_workers.py").exists():
        parser.error(f"--old: {old} has no benchmarks/gpu_workers.py")
    times: dict[str, Any] = {}
    data = {
        **report.header(), "gpu": report.gpu_state(), "layers": args.layers, "rounds": args.rounds,
        "old": args.old_name or str(args.old), "ms": times, "problems": [],
    }  # fmt: skip
    out = args.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        workdir = pathlib.Path(work)
        truth = run_turn(_ROOT, args, workdir, "truth", [])
        if reason := truth.problem():
            data["problems"].append(reason)
        order = [("old", old), ("new", _ROOT)]
        for _ in tqdm(range(args.rounds), "rounds"):
            for version, root in order:
                extra = ["--engine=op_tuned", *([_PLAN] if version == "new" else [])]
                process = run_turn(root, args, workdir, "op", extra)
                collect(process, version, times, data["problems"])
                report.write_json(out.with_name(out.name + ".json"), data)
                report.write_text(out.with_name(out.name + ".md"), markdown(data))
            order.reverse()
    print(markdown(data))
    if data["problems"]:
        sys.exit(f"{len(data['problems'])} problems, see above")


if __name__ == "__main__":
    main()
