"""Shows that GPU memory does not grow over many calls of changing shapes; fails where it does.

    python3 -m benchmarks.gpu_memory --calls=10000 --out=benchmarks/results/gpu_memory

Measured three ways, since the op's memory may come from TensorFlow's allocator, from the CUDA
runtime (graphs, cuBLASLt) or from the host: TensorFlow's allocator, nvidia-smi, resident memory.
Shapes, lengths and every third call a mask change from call to call. A fifth as many calls come
before, the largest shape first: they fill the bounded caches and settle the allocator.

--fresh_weights: the weights lie in new buffers in every call, as where a graph casts them; one
shape, and no more than two copies of the weights may come to what the first call took.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import report
from fastertransformer_tf import ops, spec
from fastertransformer_tf.models import encoder_graphs, encoder_weights

_MIB = 2**20
# MiB. A CUDA graph more is noise; a leak of 10 KiB a call is not.
LIMITS = {"tf_current": 8.0, "tf_peak": 64.0, "nvidia_smi": 64.0, "resident": 64.0}


def memory(device: str) -> dict[str, float]:
    """MiB in use, by each way of measuring."""
    result = {}
    if "GPU" in device:
        info = tf.config.experimental.get_memory_info(device.strip("/"))
        result |= {"tf_current": info["current"] / _MIB, "tf_peak": info["peak"] / _MIB}
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        result["nvidia_smi"] = float(done.stdout)
    return result | {"resident": report.resident_mib("VmRSS")}


def main() -> None:
    """Runs the calls, writes JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--max_batch", type=int, default=16)
    parser.add_argument("--max_seq", type=int, default=256)
    parser.add_argument("--fresh_weights", action="store_true")
    parser.add_argument("--device", default="/GPU:0", help="/CPU:0 rehearses")
    parser.add_argument("--limit", type=float, default=150, help="seconds")
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu_memory")
    args = parser.parse_args()
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if "GPU" in args.device and not tf.config.list_physical_devices("GPU"):
        sys.exit("TensorFlow sees no GPU")
    heads, size = 12, 64
    sizes = encoder_graphs.EncoderSizes(args.layers, heads, size, 4 * heads * size)
    limits = dict(LIMITS)
    with tf.device(args.device):
        weights = [
            {name: tf.cast(value, args.dtype) for name, value in layer.items()}
            for layer in spec.by_op_input(encoder_weights.random_weights(sizes))
        ]
        if args.fresh_weights:
            numbers = sum(int(np.prod(w.shape)) for layer in weights for w in layer.values())
            copies = 2 * numbers * tf.as_dtype(args.dtype).size / _MIB
            limits = {key: copies for key in LIMITS}
        pool = tf.cast(
            np.random.default_rng(1).standard_normal(
                (args.max_batch, args.max_seq, sizes.hidden), dtype=np.float32
            ),
            args.dtype,
        )

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, sizes.hidden], args.dtype),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec(None, args.dtype),
            ],
            autograph=False,
        )
        def call(x: tf.Tensor, lengths: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            layers = weights
            if args.fresh_weights:
                # What the compiler cannot know to be 1.
                one = tf.cast(tf.shape(x)[2] // sizes.hidden, args.dtype)
                layers = [{name: w * one for name, w in layer.items()} for layer in weights]
            outputs = [
                ops.bert_encoder(
                    x, lengths, mask, layers, head_num=heads, size_per_head=size,
                    remove_padding=remove_padding,
                )[0]
                for remove_padding in (True, False)
            ]  # fmt: skip
            return tf.reduce_mean(tf.cast(outputs[0], tf.float32)) + tf.reduce_mean(
                tf.cast(outputs[1], tf.float32)
            )

        rng = np.random.default_rng(2)
        none = tf.zeros([0], args.dtype)
        begin, samples, finite = time.time(), [], True
        warm_calls = 0 if args.fresh_weights else args.calls // 5
        total = warm_calls + args.calls
        for index in range(total):
            batch, seq = (
                (args.max_batch, args.max_seq)
                if index == 0 or args.fresh_weights
                else (
                    int(rng.integers(1, args.max_batch + 1)),
                    int(rng.integers(1, args.max_seq + 1)),
                )
            )
            lengths = rng.integers(0, seq + 1, batch).astype(np.int32)
            mask = tf.ones([batch, 1, seq, seq], args.dtype) if index % 3 == 0 else none
            value = call(pool[:batch, :seq], tf.constant(lengths), mask)
            if index % max(1, total // 100) == 0 or index in (warm_calls, total - 1):
                finite &= bool(np.isfinite(value.numpy()))
                del value, mask
                samples.append({"call": index + 1, **memory(args.device)})
                if time.time() - begin > args.limit:
                    break
    done = samples[-1]["call"]
    warm = next((s for s in samples if s["call"] > warm_calls), samples[-1])
    growth = {key: samples[-1][key] - warm[key] for key in warm if key != "call"}
    data: dict[str, Any] = {
        **report.header(),
        "gpu": subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.strip()
        if "GPU" in args.device
        else "none",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "calls": done,
        "seconds": round(time.time() - begin, 1),
        "growth_mib": {key: round(value, 2) for key, value in growth.items()},
        "samples": samples,
    }
    report.write_json(args.out.with_name(args.out.name + ".json"), data)
    rows = [
        [key, f"{warm[key]:.1f}", f"{samples[-1][key]:.1f}", f"{value:+.1f}", f"{limits[key]:.0f}"]
        for key, value in growth.items()
    ]
    text = (
        f"# Memory over {done} calls, two BertEncoder each, MiB ({args.device}, {args.dtype}"
        f"{', weights in new buffers in every call' if args.fresh_weights else ''})\n\n"
    )
    text += report.markdown_table(
        ["", f"call {warm['call']}", f"call {done}", "growth", "limit"], rows
    )
    report.write_text(args.out.with_name(args.out.name + ".md"), text)
    print(text)
    faults = [key for key, value in growth.items() if value > limits[key]]
    if faults or not finite or done < total:
        sys.exit(f"growth over the limit: {faults}; finite outputs: {finite}; {done} calls done")


if __name__ == "__main__":
    main()
