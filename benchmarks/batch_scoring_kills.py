"""Batch scoring killed and resumed: 20,000 sentences, each scored once, as without a kill.

The program of the package, in a process of its own, is killed (SIGKILL) after a third and after
two thirds of the shards, and started again with the same command; the parts are then compared with
the rows that the input has, and a sample with the model itself.

  python -m benchmarks.batch_scoring_kills --data=../shared/data
"""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import report

ROOT = pathlib.Path(__file__).resolve().parent.parent

_DATA = flags.DEFINE_string(
    "data", str(ROOT.parent / "shared" / "data"), "Folder with minilm_mrpc and glue_data/MRPC."
)
_ROWS = flags.DEFINE_integer("rows", 20_000, "Sentences.", 10)
_SHARD_ROWS = flags.DEFINE_integer("shard_rows", 500, "Of a shard.", 1)
_KILLS = flags.DEFINE_integer("kills", 2, "Times that the program is killed.", 0)
_SAMPLE = flags.DEFINE_integer("sample", 300, "Rows that are computed again, one by one.", 1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the results go.")


def sentences(data: pathlib.Path, count: int) -> list[str]:
    """Sentences of MRPC, from the first on again where there are too few."""
    found = []
    for name in ("train", "test", "dev"):
        lines = (data / "glue_data" / "MRPC" / f"{name}.tsv").read_text(encoding="utf-8-sig")
        for line in lines.split("\n")[1:]:
            found += line.split("\t")[3:5]
    return list(itertools.islice(itertools.cycle(found), count))


def _command(model: pathlib.Path, table: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [
        sys.executable, "-m", "fastertransformer_tf.batch_scoring",
        f"--init_checkpoint={model}/model.ckpt", f"--vocab_file={model}/vocab.txt",
        f"--bert_config_file={model}/bert_config.json", "--remove_padding",
        f"--input={table}", f"--output_dir={out}", f"--shard_rows={_SHARD_ROWS.value}",
    ]  # fmt: skip


def run_until(command: list[str], out: pathlib.Path, parts: int | None) -> dict[str, Any]:
    """Runs the program, and kills it when so many parts are there; None: to its end."""
    before = len(list(out.glob("part-*")))
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    while process.poll() is None:
        if parts is not None and len(list(out.glob("part-*"))) >= parts:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    return {
        "ended_with": process.returncode,
        "parts_before": before,
        "parts_after": len(list(out.glob("part-*"))),
        "seconds": round(seconds, 1),
    }


def check(out: pathlib.Path, texts: list[str], model: pathlib.Path) -> dict[str, Any]:
    """Compares the parts with the input, and a sample with the model."""
    from fastertransformer_tf.scaleout import scorers

    rows = [
        json.loads(line)
        for part in sorted(out.glob("part-*.jsonl"))
        for line in part.read_text().splitlines()
    ]
    numbers = [row["row"] for row in rows]
    factory = scorers.ClassifierFactory(
        f"{model}/model.ckpt",
        f"{model}/bert_config.json",
        f"{model}/vocab.txt",
        remove_padding=True,
    )
    scorer = factory.load(len(os.sched_getaffinity(0)))
    chosen = np.random.default_rng(1).choice(len(texts), min(_SAMPLE.value, len(texts)), False)
    largest = 0.0
    for place in chosen.tolist():
        alone = scorer.score(scorer.tokenize([(texts[place],)]))[0]
        largest = max(largest, float(np.abs(alone - np.array(rows[place]["scores"])).max()))
    return {
        "rows": len(rows),
        "missing": len(set(range(len(texts))) - set(numbers)),
        "doubled": len(numbers) - len(set(numbers)),
        "in_order": numbers == list(range(len(texts))),
        "left_over_files": sorted(p.name for p in out.iterdir() if p.name.startswith(".")),
        "sample": len(chosen),
        "largest_difference": largest,
    }


def main(argv: list[str]) -> None:
    """Runs it all, writes JSON and Markdown, and fails where a row is lost, doubled or wrong."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    data_folder = pathlib.Path(_DATA.value).resolve()
    model = data_folder / "minilm_mrpc"
    texts = sentences(data_folder, _ROWS.value)
    data: dict[str, Any] = {**report.header(), "rows": len(texts), "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        table, out = pathlib.Path(folder) / "texts.jsonl", pathlib.Path(folder) / "out"
        table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        shards = -(-len(texts) // _SHARD_ROWS.value)
        stops = [shards * (i + 1) // (_KILLS.value + 1) for i in range(_KILLS.value)]
        for stop in [*stops, None]:
            data["runs"].append(run_until(_command(model, table, out), out, stop))
        data["check"] = check(out, texts, model)
        data["summary"] = json.loads((out / "summary.json").read_text())
    path = report.result_path("batch_scoring_kills", "json", _OUTPUT_DIR.value)
    report.write_json(path, data)
    columns = list(data["runs"][0])
    text = (
        "# Batch scoring, killed and resumed\n\n"
        + report.describe_header(data)
        + f"{len(texts)} sentences of MRPC in shards of {_SHARD_ROWS.value}, MiniLM-L6 by the op, "
        "padding removed; -9: killed.\n\n"
        + report.markdown_table(columns, [[run[c] for c in columns] for run in data["runs"]])
        + "\n"
        + report.markdown_table(["check", "found"], data["check"].items())
    )
    report.write_text(path.with_suffix(".md"), text)
    print(text)
    found = data["check"]
    if found["missing"] or found["doubled"] or not found["in_order"]:
        sys.exit("rows were lost or doubled")
    if found["largest_difference"] > 1e-4 or data["runs"][-1]["ended_with"] != 0:
        sys.exit("scores differ, or the last run failed")


if __name__ == "__main__":
    app.run(main)
