"""Runs the profile programs over types, padding and models; collects their tables in one.

  python -m benchmarks.profile_inference --out=benchmarks/results/profile_cpu_2026-11-25 \
      --groups=bert-base,minilm

Each run is the program itself, in a process of its own, which compares the op's outputs with
TensorFlow's before it times anything. README.md and times.png hold all runs found in --out, so
groups can be run one after another.
"""

import json
import os
import pathlib
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
from absl import app, flags  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks import report  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The sizes of profile_transformer_inference; "mrpc" is profile_bert_inference over MRPC's dev set.
SIZES = {
    "bert-base": (12, 12, 64),
    "minilm": (6, 12, 32),
}
GROUPS = {
    "bert-base": "the encoder, 12 layers, 12 heads x 64, random weights and input",
    "minilm": "the encoder, 6 layers, 12 heads x 32, random weights and input",
    "mrpc": "MiniLM fine-tuned on MRPC, the whole model over real sentence pairs of the dev set",
}

_OUT = flags.DEFINE_string("out", None, "Folder of the tables.", required=True)
_NAMES = flags.DEFINE_list("groups", list(GROUPS), "What to run, of " + ", ".join(GROUPS) + ".")
_TYPES = flags.DEFINE_list("types", ["float32", "float16"], "Values of --floatx.")
_XLA = flags.DEFINE_boolean("xla", False, "Run with --xla.")
_ITERATIONS = flags.DEFINE_integer("num_iter", 20, "Timed batches of each side.", 1)
_BATCH = flags.DEFINE_integer("batch", 8, "Sequences in a batch.", 1)
_SEQ = flags.DEFINE_integer("seq", 128, "Padded length.", 1)
_DATA = flags.DEFINE_string(
    "data", str(ROOT.parent / "shared" / "data"), "Folder with minilm_mrpc and glue_data/MRPC."
)


def command(group: str, floatx: str, remove_padding: bool) -> tuple[str, list[str]]:
    """Returns the run's name and its command line."""
    padding = "packed" if remove_padding else "padded"
    xla = "_xla" if _XLA.value else ""
    name = f"{group}_{_BATCH.value}x{_SEQ.value}_{floatx}_{padding}{xla}"
    arguments = [
        f"--output_dir={_OUT.value}",
        f"--profiling_output_file={name}.tsv",
        f"--floatx={floatx}",
        f"--num_iter={_ITERATIONS.value}",
        f"--max_seq_length={_SEQ.value}",
    ]
    arguments += ["--remove_padding"] * remove_padding + ["--xla"] * _XLA.value
    if group in SIZES:
        layers, heads, size = SIZES[group]
        program = "profile_transformer_inference"
        arguments += [
            f"--predict_batch_size={_BATCH.value}",
            f"--num_hidden_layers={layers}",
            f"--num_attention_heads={heads}",
            f"--attention_head_size={size}",
        ]
    else:
        program, model = "profile_bert_inference", pathlib.Path(_DATA.value) / "minilm_mrpc"
        arguments += [
            f"--eval_batch_size={_BATCH.value}",
            "--task_name=mrpc",
            f"--data_dir={_DATA.value}/glue_data/MRPC",
            f"--vocab_file={model}/vocab.txt",
            f"--bert_config_file={model}/bert_config.json",
            f"--init_checkpoint={model}/model.ckpt",
        ]
    return name, [sys.executable, "-m", f"fastertransformer_tf.{program}", *arguments]


def read_row(path: pathlib.Path) -> dict[str, str]:
    """Reads a program's table: the line of types and options, the header and the row of times."""
    *device, options, header, row = path.read_text(encoding="utf-8").splitlines()
    floatx, xla, padding = (part.rpartition(" ")[2] for part in options.split("\t"))
    values = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    group = path.name.split("_")[0]
    return values | {
        "device": ", ".join(device),
        "run": group,
        "floatx": floatx,
        "XLA": xla,
        "removed": padding,
    }


def summarize(folder: pathlib.Path) -> None:
    """Writes README.md, machine.json and times.png over all tables in `folder`."""
    rows = [read_row(path) for path in sorted(folder.glob("*.tsv"))]
    cells = []
    for row in rows:
        ours, theirs = (float(row[key]) * 1e3 for key in ("FasterTransformer", "Tensorflow"))
        cells.append(
            [row["run"], f"{row['batch_size']}x{row['seq_length']}", row["floatx"], row["XLA"]]
            + [row["removed"], f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.2f}x"]
        )
    columns = ["run", "BxS", "type", "XLA", "padding removed", "TensorFlow ms", "op ms", "speed-up"]
    header = json.loads((folder / "machine.json").read_text())
    text = (
        "# Profile of inference: TensorFlow's own transformer and the op\n\n"
        f"{report.describe_header(header)}"
        f"Device: {'; '.join(sorted({row['device'] for row in rows}))}. "
        "Means over the timed batches, both sides in turn in one process, in milliseconds. With "
        "padding removed half of each sequence of the encoder runs is padding, and TensorFlow "
        "computes all of it; over MRPC the sentences have their own lengths.\n\n"
        + "".join(f"- {name}: {meaning}\n" for name, meaning in GROUPS.items())
        + "\n"
        + report.markdown_table(columns, cells)
        + "\nBy `python -m benchmarks.profile_inference`; each row has its table (.tsv) and plot.\n"
    )
    report.write_text(folder / "README.md", text)
    figure, axis = pyplot.subplots(figsize=(8, 1 + 0.35 * len(cells)), layout="constrained")
    labels = [
        f"{row['run']} {row['floatx']}"
        + (", XLA" if row["XLA"] == "True" else "")
        + (", padding removed" if row["removed"] == "True" else "")
        for row in rows
    ]
    speedups = [float(cell[-1].rstrip("x")) for cell in cells]
    bars = axis.barh(range(len(cells)), speedups, color="tab:green")
    axis.bar_label(bars, [f"{speed:.2f}x" for speed in speedups], padding=3)
    axis.margins(x=0.12)
    axis.axvline(1, color="tab:gray", label="TensorFlow")
    axis.set_yticks(range(len(cells)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("TensorFlow's time / the op's time")
    report.save_figure(figure, folder / "times.png")
    pyplot.close(figure)


def main(argv: list[str]) -> None:
    """Runs the groups, then writes the summary."""
    unknown = [*argv[1:], *(set(_NAMES.value) - set(GROUPS))]
    if unknown:
        raise app.UsageError(f"--groups has {unknown}, expected some of {list(GROUPS)}")
    folder = pathlib.Path(_OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / "machine.json", report.header())
    runs = [
        command(group, floatx, packed)
        for group in _NAMES.value
        for floatx in _TYPES.value
        for packed in (False, True)
    ]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    for name, arguments in (bar := tqdm(runs)):
        bar.set_description(name)
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
        tqdm.write(done.stdout)
        summarize(folder)


if __name__ == "__main__":
    app.run(main)
