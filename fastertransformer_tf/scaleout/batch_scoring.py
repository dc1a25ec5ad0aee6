"""Scores a table of texts with all processors of a machine or a cluster, by Ray Data.

The table is cut into shards. A worker reads one, cuts it into tokens, computes batches of similar
lengths and writes the shard's results, all at once, to a file of their own; so a run that was
killed goes on where it was, without rows lost or doubled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import flags

from fastertransformer_tf.data import text_features
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, text_files
from fastertransformer_tf.programs import cli, path_flags
from fastertransformer_tf.scaleout import local_ray, model_flags, scorers, tables

_OWNER = "fastertransformer_tf.batch_scoring"
JOB, SUMMARY = "job.json", "summary.json"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    model_flags.define_flags(flag_values, _OWNER)
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string(
        "input",
        None,
        f"Texts: a file of {', '.join(tables.SUFFIXES)}, or a folder of such files.",
    )
    define.string("text_column", "text", "The column of the texts, or of the first of each pair.")
    define.string("pair_column", None, "For pairs: the column of the second text.")
    define.string(
        "output_dir",
        None,
        "Folder of the results: part-*.jsonl, whose lines are the rows of the input in their "
        "order. The same command goes on after a kill.",
    )
    define.integer("shard_rows", 1000, "Rows of a shard: what a kill loses at most.", minimum=1)
    define.integer(
        "batch_tokens", 4096, "Tokens of a batch at most, padded to its longest.", minimum=1
    )
    define.integer("batch_rows", 256, "Texts of a batch at most.", minimum=1)
    define.integer(
        "workers",
        0,
        "Processes, each with a model; 0: one for each GPU, or one of all processors without one.",
        minimum=0,
    )
    define.integer("threads", 0, "Threads of each; 0: the processors dealt equally.", minimum=0)
    define.boolean("gpu", "Each worker has a GPU of its own.")
    define.string("address", None, "A Ray cluster to use; without it Ray runs on this machine.")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker has to know; goes there by pickle.

    Attributes:
      factory: Makes the scorer.
      columns: Of the texts: one, or two of pairs.
      output_dir: Of the results.
      batch_tokens: Tokens of a batch at most, padded.
      batch_rows: Texts of a batch at most.
      threads: Of each worker.
    """

    factory: scorers.ScorerFactory
    columns: tuple[str, ...]
    output_dir: str
    batch_tokens: int
    batch_rows: int
    threads: int

    def part(self, shard: tables.Shard) -> Path:
        """The file of a shard's results."""
        return Path(self.output_dir) / f"part-{shard.number:06d}.jsonl"


class ShardScorer:
    """Scores shards in a worker of Ray Data: shards in, what was done with each out.

    What is wrong with the user's files is returned, not raised: Ray Data keeps of a worker's
    exception no more than its text among many lines of its own.
    """

    def __init__(self, job: Job) -> None:
        """Loads the model."""
        self._job = job
        self._fault = ""
        try:
            self._scorer = job.factory.load(job.threads)
        except (UserError, OSError) as error:
            self._fault = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Scores the shards of a batch of Ray Data.

        Args:
          batch: Columns of the fields of `tables.Shard`.

        Returns:
          Columns number, rows, tokens, seconds and fault, a sentence where a shard was not scored.
        """
        done: dict[str, list[Any]] = {
            name: [] for name in ("number", "rows", "tokens", "seconds", "fault")
        }
        names = [field.name for field in dataclasses.fields(tables.Shard)]
        for values in zip(*(batch[name].tolist() for name in names), strict=True):
            shard = tables.Shard(**dict(zip(names, values, strict=True)))
            start = time.perf_counter()
            tokens, fault = 0, self._fault
            if not fault:
                try:
                    tokens = self.score(shard)
                except (UserError, OSError) as error:
                    fault = str(error)
            done["number"].append(shard.number)
            done["rows"].append(shard.rows)
            done["tokens"].append(tokens)
            done["seconds"].append(time.perf_counter() - start)
            done["fault"].append(fault)
        return done

    def score(self, shard: tables.Shard) -> int:
        """Writes the results of a shard; returns the number of its tokens."""
        job = self._job
        texts = tables.read_columns(shard, job.columns)
        tokens = self._scorer.tokenize(texts)
        lengths = [len(one) for one in tokens]
        results: list[np.ndarray | None] = [None] * len(tokens)
        for rows in text_features.batches(lengths, job.batch_tokens, job.batch_rows):
            scores = self._scorer.score([tokens[row] for row in rows])
            for row, values in zip(rows, scores, strict=True):
                results[row] = values
        lines = []
        for row, values in enumerate(results):
            assert values is not None
            line = {
                "row": shard.first + row,
                "label": int(values.argmax()),
                "scores": [float(f"{value:.7g}") for value in values],
            }
            lines.append(json.dumps(line) + "\n")
        atomic.write_text(job.part(shard), "".join(lines))
        return sum(lengths)


@contextlib.contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the kernel releases however the process ends."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output_dir={folder}: another run is writing to it") from None
        yield
    finally:
        os.close(lock)


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Begins a job in a folder, or goes on with the same one.

    Raises:
      UserError: The folder holds another job's results.
    """
    path = folder / JOB
    if not path.exists():
        if leftovers := sorted(file.name for file in folder.glob("part-*.jsonl")):
            raise UserError(f"--output_dir={folder} holds {leftovers[0]}, but no {JOB}")
        atomic.write_text(path, json.dumps(description, indent=1) + "\n")
        return
    before = text_files.read_json(path)
    now = json.loads(json.dumps(description))
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise UserError(
                f"--output_dir={folder} holds the results of another job: its {key} is "
                f"{text_files.describe(before.get(key))}, expected "
                f"{text_files.describe(now.get(key))}; give another folder"
            )


def _workers(values: flags.FlagValues, ray: Any) -> tuple[int, int]:
    """Processes, and threads of each."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if values.gpu and gpus < max(1, values.workers):
        raise UserError(f"--gpu with {values.workers or 1} workers, but Ray has {gpus} GPUs")
    workers = values.workers or (gpus if values.gpu else 1)
    threads = values.threads or max(1, cpus // workers)
    if workers * threads > cpus:
        raise UserError(
            f"{workers} workers with {threads} threads each, but Ray has {cpus} processors"
        )
    return workers, threads


def _score_all(
    job: Job, shards: Sequence[tables.Shard], workers: int, gpu: bool, total: int
) -> Iterator[dict[str, Any]]:
    """Scores shards; yields what was done with each, in any order.

    Raises:
      UserError: One could not be scored.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A worker's error is a bug: another attempt gives the same.
    context.actor_task_retry_on_errors = False
    dataset = ray.data.from_items(
        [dataclasses.asdict(shard) for shard in shards], override_num_blocks=len(shards)
    ).map_batches(
        ShardScorer,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_cpus=job.threads,
        num_gpus=1 if gpu else None,
    )
    with tqdm.tqdm(total=total, initial=total - sum(s.rows for s in shards), unit="row") as bar:
        for done in dataset.iter_rows():
            if done["fault"]:
                raise UserError(done["fault"])
            bar.update(done["rows"])
            yield done


def run(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the program with parsed flags.

    Returns:
      What it writes to summary.json.

    Raises:
      UserError: A flag, a file or a text is wrong.
      OSError: A file is not there.
    """
    cli.require_flags(values, ("input", "output_dir", "text_column"))
    path_flags.check_paths(values, ("input", "output_dir"))
    factory = model_flags.factory(values)
    files = tables.find_files(os.path.abspath(values.input))
    shards = tables.make_shards(files, values.shard_rows)
    total = sum(shard.rows for shard in shards)
    if not total:
        raise UserError(f"--input={values.input} has no rows")
    columns = (values.text_column, *([values.pair_column] if values.pair_column else []))
    path_flags.make_output_dir(values.output_dir)
    folder = Path(os.path.abspath(values.output_dir))
    with _only_run(folder), local_ray.connected(values.address) as ray:
        workers, threads = _workers(values, ray)
        job = Job(factory, columns, str(folder), values.batch_tokens, values.batch_rows, threads)
        description = {
            "model": factory.identity(),
            "files": tables.file_states(files),
            "columns": list(columns),
            "shard_rows": values.shard_rows,
        }
        _claim(folder, description)
        left = [shard for shard in shards if not job.part(shard).exists()]
        start = time.perf_counter()
        tokens = rows = 0
        if left:
            for done in _score_all(job, left, workers, values.gpu, total):
                tokens += int(done["tokens"])
                rows += int(done["rows"])
        seconds = time.perf_counter() - start
        missing = [job.part(shard).name for shard in shards if not job.part(shard).exists()]
        if missing:
            raise RuntimeError(f"no results of {missing}")
        summary = {
            "rows": total,
            "shards": len(shards),
            "scored_in_this_run": rows,
            "tokens_in_this_run": tokens,
            "seconds_of_this_run": round(seconds, 3),
            "workers": workers,
            "threads": threads,
        }
        atomic.write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    print(
        f"{total} rows in {len(shards)} parts of {folder}; {rows} of this run, in {seconds:.1f} s"
        f" ({rows / max(seconds, 1e-9):.0f} rows/s) by {workers} x {threads} threads"
    )
    return summary
