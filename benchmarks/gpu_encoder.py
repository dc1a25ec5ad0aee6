"""Times the CUDA encoder against PyTorch on one GPU, in one run: BERT-base, time per forward.

Needs a GPU, PyTorch, and the folder of ``encoder_sample`` and ``encoder_gemm``
(``scripts/build_cuda_standalone.sh``). TensorFlow is not needed.

PyTorch is compiled layer by layer (one compilation serves all twelve), uses its fused attention and
is replayed as one CUDA graph. "masked": keys from S/2 on are masked. "packed": S/2 tokens in each
sequence; PyTorch gets the dense batch of half the length, the ideal of padding removal.

    python3 benchmarks/gpu_encoder.py --tools build/cuda --out benchmarks/gpu_encoder
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

SHAPES = [(b, s) for b in (1, 8, 32) for s in (32, 128, 384)]
VARIANTS = ("masked", "full", "packed")


def torch_times(batch: int, seq_len: int, lock_path: str, use_graph: bool) -> dict[str, float]:
    """Milliseconds per forward of PyTorch for the three variants of one shape."""
    import fcntl

    import torch
    import torch.nn.functional as F

    heads, size, layers = 12, 64, 12
    hidden = heads * size
    torch.manual_seed(1)

    def weights() -> list[torch.Tensor]:
        shapes = [
            (3 * hidden, hidden),
            (3 * hidden,),
            (hidden, hidden),
            (hidden,),
            (hidden,),
            (hidden,),
            (4 * hidden, hidden),
            (4 * hidden,),
            (hidden, 4 * hidden),
            (hidden,),
            (hidden,),
            (hidden,),
        ]
        return [torch.randn(s, device="cuda", dtype=torch.float16) * 0.02 for s in shapes]

    def layer(x: torch.Tensor, mask: torch.Tensor | None, w: list[torch.Tensor]) -> torch.Tensor:
        b, s, _ = x.shape
        qkv = F.linear(x, w[0], w[1]).view(b, s, 3, heads, size)
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        a = F.linear(a.transpose(1, 2).reshape(b, s, hidden), w[2], w[3])
        x = F.layer_norm(a + x, (hidden,), w[4], w[5], 1e-12)
        y = F.linear(F.gelu(F.linear(x, w[6], w[7]), approximate="tanh"), w[8], w[9])
        return F.layer_norm(y + x, (hidden,), w[10], w[11], 1e-12)

    all_weights = [weights() for _ in range(layers)]
    # Kept as long as the graphs: they run the kernels that it loaded.
    compiled = torch.compile(layer, dynamic=False)
    prepared = {}
    for variant in VARIANTS:
        s = max(1, seq_len // 2) if variant == "packed" else seq_len
        x = torch.randn(batch, s, hidden, device="cuda", dtype=torch.float16)
        mask = None
        if variant == "masked":
            mask = torch.zeros(batch, 1, s, s, device="cuda", dtype=torch.float16)
            mask[..., s // 2 :] = -10000.0

        def forward(x: torch.Tensor = x, mask: torch.Tensor | None = mask) -> torch.Tensor:
            for w in all_weights:
                x = compiled(x, mask, w)
            return x

        with torch.no_grad():
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    forward()
            torch.cuda.synchronize()
            if use_graph:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    forward()
        prepared[variant] = graph.replay if use_graph else forward
    times = {}
    with open(lock_path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for variant, run_once in prepared.items():
            runs = []
            for _ in range(8):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for _ in range(50):
                    with torch.no_grad():
                        run_once()
                end.record()
                end.synchronize()
                runs.append(begin.elapsed_time(end) / 50)
            times[variant] = statistics.median(runs[1:])
    return times


def our_times(
    tools: pathlib.Path, batch: int, seq_len: int, fp16: bool, env: dict[str, str]
) -> dict[str, float]:
    """Milliseconds per forward of encoder_sample for the three variants."""
    times = {}
    for variant in VARIANTS:
        command = [
            tools / "encoder_sample",
            batch,
            12,
            seq_len,
            12,
            64,
            int(fp16),
            int(variant == "packed"),
            0,
        ]
        extra = {"FT_SAMPLE_MASKED": "1"} if variant == "masked" else {}
        done = subprocess.run(
            [str(c) for c in command],
            capture_output=True,
            text=True,
            check=True,
            env={**env, **extra},
        )
        times[variant] = float(re.search(r"FT-CPP-time ([0-9.]+)", done.stdout).group(1))
    return times


def main() -> None:
    """Runs everything and writes <out>.json and <out>.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/gpu_encoder"))
    parser.add_argument("--torch-shape", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch_shape:
        batch, seq_len, lock = args.torch_shape
        use_graph = "FT_BENCHMARK_NO_GRAPH" not in os.environ
        times = torch_times(int(batch), int(seq_len), lock, use_graph)
        print("RESULT " + json.dumps(times), flush=True)
        os._exit(0)  # PyTorch was seen to crash while it takes its graphs down
    import torch

    with tempfile.TemporaryDirectory() as directory:
        # Compiled side by side; a lock keeps the timed parts apart.
        lock = os.path.join(directory, "lock")
        peers = {
            shape: subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--tools",
                    str(args.tools),
                    "--torch-shape",
                    *map(str, shape),
                    lock,
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # Few compile workers each: nine processes with the default take all memory.
                env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            )
            for shape in SHAPES
        }
        rows = []
        for (batch, seq_len), process in peers.items():
            text = process.communicate()[0]
            found = re.search(r"RESULT (.*)", text)
            with_graph = found is not None
            if not with_graph:
                # Seen at 32x384: PyTorch 2.11 crashes in its graph's replay. Launched kernel by kernel
                # instead, which costs nothing where a forward takes milliseconds.
                again = subprocess.run(
                    process.args,
                    capture_output=True,
                    text=True,
                    env={**os.environ, "FT_BENCHMARK_NO_GRAPH": "1"},
                )
                text = again.stdout + again.stderr
                found = re.search(r"RESULT (.*)", text)
            if found is None:
                raise RuntimeError(
                    f"PyTorch failed at {batch}x{seq_len}, exit code {process.returncode}:\n{text[-2000:]}"
                )
            rows.append(
                {
                    "batch": batch,
                    "seq_len": seq_len,
                    "torch": json.loads(found.group(1)),
                    "torch_graph": with_graph,
                }
            )
        env = {**os.environ, "FT_GEMM_CONFIG_DIR": directory}
        for row in rows:
            batch, seq_len = row["batch"], row["seq_len"]
            row["ft_heuristic"] = our_times(args.tools, batch, seq_len, True, env)
            for length in (seq_len, max(1, seq_len // 2)):
                subprocess.run(
                    [args.tools / "encoder_gemm", str(batch), str(length), "12", "64", "1", "0"],
                    check=True,
                    env=env,
                    stdout=subprocess.DEVNULL,
                )
            row["ft_tuned"] = our_times(args.tools, batch, seq_len, True, env)
    for row in rows:
        env = dict(os.environ)
        row["ft_fp32"] = our_times(args.tools, row["batch"], row["seq_len"], False, env)["full"]
        env["FT_SAMPLE_TF32"] = "1"
        row["ft_tf32"] = our_times(args.tools, row["batch"], row["seq_len"], False, env)["full"]
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    result = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(0),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "model": "BERT-base encoder, 12 layers, 12 heads x 64; milliseconds of GPU time per forward",
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# GPU encoder, {result['gpu']}, {result['date']}",
        "",
        f"{result['model']}. Driver {driver}, PyTorch {result['torch']} (compiled, one CUDA graph).",
        "Medians of 7 runs of 50 forwards. masked: keys from S/2 on are masked; packed: S/2 tokens a sequence. FT: this",
        "project's encoder_sample, GEMMs as tuned by encoder_gemm, or cuBLASLt's heuristic (h).",
        "",
        "| B | S | torch masked | FT masked (h) | FT masked | torch full | FT full (h) | FT full | torch packed "
        "| FT packed (h) | FT packed | FT float32 full | FT TF32 full |",
        "|---" * 13 + "|",
    ]
    for r in rows:
        cells = [str(r["batch"]), str(r["seq_len"]) + ("" if r["torch_graph"] else " *")]
        for v in VARIANTS:
            cells += [f"{r[k][v]:.3f}" for k in ("torch", "ft_heuristic", "ft_tuned")]
        cells += [f"{r['ft_fp32']:.3f}", f"{r['ft_tf32']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "\\* PyTorch crashed in its CUDA graph here and was timed without one."]
    for suffix, text in ((".json", json.dumps(result, indent=1)), (".md", "\n".join(lines))):
        temporary = args.out.with_name(args.out.name + suffix + ".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(args.out.with_name(args.out.name + suffix))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
