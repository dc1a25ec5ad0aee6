"""Load test of `serve` on loopback: the op against TensorFlow's own graph behind the same server.

One server after the other; clients of one process, each sending a request when its last one is
answered: one to four sentence pairs of MRPC's dev set, and now and then a request that is wrong.
Counted are requests that were lost, that were answered with another status than they deserve, and
pairs whose scores differ from those that the pair got alone.

  python -m benchmarks.serve_load --data=../shared/data --clients=1,8,64
"""

import asyncio
import csv
import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import report

ROOT = pathlib.Path(__file__).resolve().parent.parent

_DATA = flags.DEFINE_string(
    "data", str(ROOT.parent / "shared" / "data"), "Folder with minilm_mrpc and glue_data/MRPC."
)
_CLIENTS = flags.DEFINE_list("clients", ["1", "8", "64"], "Numbers of clients.")
_SECONDS = flags.DEFINE_float("seconds", 12, "Of each number of clients.", 1)
_WARM = flags.DEFINE_float("warm", 3, "Seconds before, untimed.", 0)
_BAD = flags.DEFINE_float("bad", 0.05, "Share of requests that are wrong.", 0, 1)
_THREADS = flags.DEFINE_integer("threads", 0, "Threads of the replica; 0: all processors.", 0)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the results go.")

SERVERS = {
    "op, padding removed": ["--remove_padding"],
    "TensorFlow's graph": ["--use_tensorflow_transformer"],
}
# Scores of a pair in whatever batch, and of both servers: float32.
_TOLERANCE = 1e-4
_BAD_BODIES = (
    b"not json",
    b'{"pairs": []}',
    b'{"pairs": [["only one"]]}',
    b'{"texts": [7]}',
    b'{"texts": ["a"], "pairs": [["a", "b"]]}',
    b'{"pairs": [["good", "pair"], ["bad", null]]}',
)

Pair = tuple[str, str]


@dataclasses.dataclass
class Counts:
    """What became of the requests of one number of clients."""

    latencies_s: list[float] = dataclasses.field(default_factory=list)
    pairs: int = 0
    bad: int = 0
    lost: int = 0
    wrong_status: int = 0
    wrong_scores: int = 0


def read_pairs(folder: pathlib.Path) -> list[Pair]:
    """MRPC's dev set."""
    with (folder / "glue_data" / "MRPC" / "dev.tsv").open(encoding="utf-8-sig") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [(row[3], row[4]) for row in rows]


class ServerProcess:
    """`serve` in a process of its own."""

    def __init__(self, arguments: list[str], folder: pathlib.Path) -> None:
        """Starts it and waits until it can compute."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        model = pathlib.Path(_DATA.value) / "minilm_mrpc"
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "server.log"
        command = [
            sys.executable, "-m", "fastertransformer_tf.serve", f"--port={port}",
            f"--init_checkpoint={model}/model.ckpt", f"--vocab_file={model}/vocab.txt",
            f"--bert_config_file={model}/bert_config.json", f"--threads={_THREADS.value}",
            *arguments,
        ]  # fmt: skip
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 300
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def get(self, path: str) -> str:
        """A page."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def score(self, pairs: list[Pair]) -> np.ndarray:
        """Scores of pairs in one request."""
        request = urllib.request.Request(
            f"{self.url}/score", json.dumps({"pairs": pairs}).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return np.array(json.load(answer)["scores"])

    def end(self) -> None:
        """Ends it as an operator does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


async def _client(
    session: Any, url: str, pairs: list[Pair], alone: np.ndarray, seed: int, counts: Counts,
    times: tuple[float, float],
) -> None:  # fmt: skip
    """One client until the end: `times` are those of the first counted request and the end."""
    choose = random.Random(seed)
    while (begin := time.perf_counter()) < times[1]:
        is_bad = choose.random() < _BAD.value
        chosen = [choose.randrange(len(pairs)) for _ in range(choose.randint(1, 4))]
        body = json.dumps({"pairs": [pairs[i] for i in chosen]}).encode()
        try:
            sent = choose.choice(_BAD_BODIES) if is_bad else body
            async with session.post(f"{url}/score", data=sent) as answer:
                status, result = answer.status, await answer.json()
        except Exception:
            counts.lost += 1
            continue
        if begin < times[0]:
            continue
        if is_bad:
            counts.bad += 1
            counts.wrong_status += status != 400 or "error" not in result
            continue
        counts.latencies_s.append(time.perf_counter() - begin)
        counts.pairs += len(chosen)
        if status != 200:
            counts.wrong_status += 1
        elif not np.allclose(result["scores"], alone[chosen], atol=_TOLERANCE, rtol=0):
            counts.wrong_scores += 1


async def _load(url: str, pairs: list[Pair], alone: np.ndarray, clients: int) -> Counts:
    import aiohttp

    counts = Counts()
    start = time.perf_counter() + _WARM.value
    times = (start, start + _SECONDS.value)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(
            *(_client(session, url, pairs, alone, i, counts, times) for i in range(clients))
        )
    return counts


def measure(name: str, pairs: list[Pair]) -> tuple[list[dict[str, Any]], np.ndarray, str]:
    """All numbers of clients with one server: rows, each pair's scores alone, its metrics."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(SERVERS[name], pathlib.Path(folder))
        try:
            alone = np.concatenate([server.score([p]) for p in tqdm(pairs, name, leave=False)])
            for clients in map(int, _CLIENTS.value):
                counts = asyncio.run(_load(server.url, pairs, alone, clients))
                seconds = np.array(counts.latencies_s)
                rows.append(
                    {
                        "server": name,
                        "clients": clients,
                        "requests": len(seconds),
                        "requests_per_s": round(len(seconds) / _SECONDS.value, 1),
                        "pairs_per_s": round(counts.pairs / _SECONDS.value, 1),
                        "p50_ms": round(1000 * statistics.median(seconds), 1),
                        "p99_ms": round(1000 * float(np.quantile(seconds, 0.99)), 1),
                        "bad_requests": counts.bad,
                        "lost": counts.lost,
                        "wrong_status": counts.wrong_status,
                        "wrong_scores": counts.wrong_scores,
                    }
                )
            metrics = server.get("/metrics")
        finally:
            server.end()
    return rows, alone, metrics


def to_markdown(data: dict[str, Any]) -> str:
    """The report."""
    columns = list(data["rows"][0])
    return (
        "# Load test of serve\n\n"
        + report.describe_header(data)
        + f"Server and clients on this machine, over loopback; {data['threads']}; "
        f"{data['seconds']} s each after {data['warm_s']} s; requests of 1 to 4 pairs of MRPC dev, "
        f"MiniLM-L6, max_seq_length 128; {100 * data['bad']:.0f} % of the requests are wrong and "
        "must get 400. wrong_scores: requests with a score that differs from the pair's alone by "
        f"more than {_TOLERANCE}. Largest difference between the two servers' scores: "
        f"{data['largest_difference']:.1e}.\n\n"
        + report.markdown_table(columns, [[row[c] for c in columns] for row in data["rows"]])
    )


def plot(data: dict[str, Any], path: pathlib.Path) -> None:
    """Throughput, and times, over clients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in SERVERS:
        rows = [row for row in data["rows"] if row["server"] == name]
        clients = [row["clients"] for row in rows]
        axes[0].plot(clients, [row["pairs_per_s"] for row in rows], marker="o", label=name)
        for key, style in (("p50_ms", "-"), ("p99_ms", "--")):
            label = f"{name}, {key.removesuffix('_ms')}"
            axes[1].plot(clients, [row[key] for row in rows], style, marker="o", label=label)
    for axis, label in zip(axes, ("pairs / s", "ms"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("clients")
        axis.set_ylabel(label)
        axis.legend(fontsize=8)
    axes[1].set_yscale("log")
    report.save_figure(figure, path)
    pyplot.close(figure)


def main(argv: list[str]) -> None:
    """Measures, writes JSON, Markdown and a plot, and fails where a request was."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not all(text.isdecimal() and int(text) for text in _CLIENTS.value):
        raise app.UsageError(f"--clients is {_CLIENTS.value}, expected numbers such as 1,8,64")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    pairs = read_pairs(pathlib.Path(_DATA.value))
    data: dict[str, Any] = {
        **report.header(),
        "threads": f"{_THREADS.value} threads" if _THREADS.value else "as many threads as CPUs",
        "seconds": _SECONDS.value,
        "warm_s": _WARM.value,
        "bad": _BAD.value,
        "rows": [],
        "metrics": {},
    }
    scores = []
    for name in SERVERS:
        rows, alone, metrics = measure(name, pairs)
        data["rows"] += rows
        data["metrics"][name] = metrics
        scores.append(alone)
    data["largest_difference"] = float(np.abs(scores[0] - scores[1]).max())
    path = report.result_path("serve_load", "json", _OUTPUT_DIR.value)
    report.write_json(path, data)
    report.write_text(path.with_suffix(".md"), to_markdown(data))
    plot(data, path.with_suffix(".png"))
    print(to_markdown(data))
    print(f"Written: {path}, .md and .png beside it")
    faults = sum(row[k] for row in data["rows"] for k in ("lost", "wrong_status", "wrong_scores"))
    if faults or data["largest_difference"] > _TOLERANCE:
        sys.exit(f"{faults} requests failed, or the servers differ")


if __name__ == "__main__":
    app.run(main)
