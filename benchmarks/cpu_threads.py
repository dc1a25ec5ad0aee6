"""The op on threads: what more of them gain, under a quota, in two sessions at once, after pauses.

Scaling: a process for each number of threads of --scaling, bursts of all in turn, as the CPUs of a
virtual machine change their speed from second to second with what else their cores do. One thread
is put on another CPU in each turn: the mean is what a CPU of those gives alone. With --arithmetic,
after each burst, how many multiplications and additions in registers so many threads do.

Quota: the encoder with --threads threads in a process of a cgroup with a quota of --quota CPUs,
against --quota threads without one; bursts of both in turn. A quota is only made where this process
may make cgroups; else the result says why it was not measured.
Sessions: two TensorFlow sessions with a model each, on the process's one pool of threads, called
at once by two threads, against one of them alone; in turn.
Pauses: calls that come alone, after --pause milliseconds in which the caller has written more than
the caches hold, against calls one after the other: threads then have to be woken.

  python -m benchmarks.cpu_threads --shapes=1x128,8x128
  python -m benchmarks.cpu_threads --measures=scaling --scaling=1,8,16 --arithmetic=PROGRAM
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import cpu_groups, cpu_threads_report, engines, report
from benchmarks.encoder_model import MODELS, random_batch
from fastertransformer_tf.models.encoder_weights import random_weights

_MODEL = flags.DEFINE_enum("model", "bert-base", list(MODELS), "The encoder.")
_SHAPES = flags.DEFINE_list("shapes", ["1x128", "8x128"], "Batch x sequence length.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "int8 mode 2"], "As benchmarks/engines.py.")
_MEASURES = flags.DEFINE_list(
    "measures", ["quota", "sessions", "pauses"], "Of scaling, quota, sessions and pauses."
)
_SCALING = flags.DEFINE_list("scaling", ["1", "2"], "Numbers of threads, 1 among them.")
_ARITHMETIC = flags.DEFINE_string(
    "arithmetic",
    None,
    "bazel build //benchmarks:cpu_arithmetic: `PROGRAM threads seconds first_cpu` prints a JSON "
    "object with gflops, of all threads together.",
)
_QUOTA = flags.DEFINE_integer("quota", 2, "CPUs of the quota, and threads without it.", 1)
_THREADS = flags.DEFINE_integer("threads", 4, "Threads under the quota.", 1)
_SESSION_THREADS = flags.DEFINE_integer("session_threads", 2, "Threads of the sessions' pool.", 1)
_PAUSE = flags.DEFINE_float("pause", 10, "Milliseconds before a call that comes alone.", 0)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each side.", 1)
_BURST = flags.DEFINE_float("burst", 1.5, "Seconds of a turn: many periods of a quota.", 0.1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(report.RESULTS), "Where the results go.")

_WRITTEN_BYTES = 64 << 20  # between calls that come alone

_runs: list[engines.Run] = []  # of a process that measures


class _SharingOp(engines.Op):
    """The op, called by two threads at once."""

    concurrent_calls = 2


def _prepare(
    model: str, dtype: str, shape: tuple[int, int], threads: int, sessions: int, group: str | None
) -> None:
    """Makes the sessions of a process, in a group before any of its threads starts."""
    report.hide_gpus()
    if group is not None:
        cpu_groups.join(pathlib.Path(group))
    for seed in range(sessions):
        op = _SharingOp(MODELS[model], random_weights(MODELS[model], seed), dtype, threads)
        op.compile(*shape)
        _runs.append(op.bind(*random_batch(MODELS[model], *shape, "full")))
    for run in _runs:
        run()


def _burst(seconds: float, sessions: int, cpu: int | None = None) -> float:
    """Calls of all sessions a second, each called in a thread of its own for so long.

    With `cpu` all threads of this process are put there first.
    """
    if cpu is not None:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {cpu})
    calls = [0] * sessions
    start = time.perf_counter()

    def call(session: int) -> None:
        while time.perf_counter() - start < seconds:
            _runs[session]()
            calls[session] += 1

    threads = [threading.Thread(target=call, args=(i,)) for i in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(calls) / (time.perf_counter() - start)


def _process(
    stack: contextlib.ExitStack,
    dtype: str,
    shape: tuple[int, int],
    threads: int,
    sessions: int = 1,
    group: pathlib.Path | None = None,
) -> Any:  # noqa: ANN401 (multiprocessing's pools have no public type)
    """A process with its sessions ready, until `stack` ends."""
    arguments = (_MODEL.value, dtype, shape, threads, sessions, group and str(group))
    pool = multiprocessing.get_context("spawn").Pool(1, _prepare, arguments)

    def end() -> None:
        pool.terminate()
        pool.join()

    stack.callback(end)
    return pool


def _alternate(sides: dict[Any, Callable[[int], Any]], text: str) -> dict[Any, list[Any]]:
    """What each side measures in every turn; sides are called with the number of the turn."""
    measured: dict[Any, list[Any]] = {name: [] for name in sides}
    for turn in tqdm(range(-1, _ROUNDS.value), text, leave=False):  # the first turn warms up
        for name, side in sides.items():
            value = side(turn)
            if turn >= 0:
                measured[name].append(value)
    return measured


def _bursts(process: Any, sessions: int = 1) -> Callable[[int], float]:  # noqa: ANN401
    """A side: calls a second of so many sessions of a process."""
    return lambda turn: process.apply(_burst, (_BURST.value, sessions))


def measure_quota(dtype: str, shape: tuple[int, int]) -> dict[str, Any]:
    """More threads than a quota has CPUs, against as many threads as it has."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(cpu_groups.group_with_quota(_QUOTA.value))
        few, many = f"{_QUOTA.value} threads", f"{_THREADS.value} threads, quota"
        rates = _alternate(
            {
                few: _bursts(_process(stack, dtype, shape, _QUOTA.value)),
                many: _bursts(_process(stack, dtype, shape, _THREADS.value, group=group)),
            },
            f"{dtype} {shape[0]}x{shape[1]}: quota",
        )
        throttled = cpu_groups.throttled_us(group)
    ms = {name: 1000 / statistics.median(values) for name, values in rates.items()}
    ratio = ms[many] / ms[few]
    return {
        "what": "quota",
        "one_ms": round(ms[few], 2),
        "other_ms": round(ms[many], 2),
        "ratio": round(ratio, 3),
        "limit": f"<= {cpu_threads_report.QUOTA_LIMIT}",
        "holds": ratio <= cpu_threads_report.QUOTA_LIMIT,
        "throttled_ms": round(throttled / 1000, 1),
        "calls_per_second": rates,
    }


def measure_sessions(dtype: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Two sessions at once against one."""
    with contextlib.ExitStack() as stack:
        process = _process(stack, dtype, shape, _SESSION_THREADS.value, sessions=2)
        rates = _alternate(
            {"one session": _bursts(process, 1), "two sessions": _bursts(process, 2)},
            f"{dtype} {shape[0]}x{shape[1]}: sessions",
        )
    one, two = (statistics.median(values) for values in rates.values())
    return {
        "what": "sessions",
        "one_ms": round(1000 / one, 2),
        "other_ms": round(1000 / two, 2),
        "ratio": round(two / one, 3),
        "limit": f">= {cpu_threads_report.SESSIONS_LIMIT}",
        "holds": two / one >= cpu_threads_report.SESSIONS_LIMIT,
        "calls_per_second": rates,
    }


def _call_after_pauses(seconds: float, pause: float) -> list[float]:
    """Seconds of each call of the first session, for so long, with a pause before each."""
    written = np.zeros(_WRITTEN_BYTES, np.uint8)
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        written += 1
        time.sleep(pause)
        begin = time.perf_counter()
        _runs[0]()
        times.append(time.perf_counter() - begin)
    return times


def measure_pauses(dtype: str, shape: tuple[int, int]) -> dict[str, Any]:
    """The slow tenth of the calls that come alone, against calls one after the other."""
    with contextlib.ExitStack() as stack:
        process = _process(stack, dtype, shape, _SESSION_THREADS.value)
        seconds = (_BURST.value, _PAUSE.value / 1000)
        measured = _alternate(
            {
                "calls": _bursts(process),
                "paused": lambda turn: process.apply(_call_after_pauses, seconds),
            },
            f"{dtype} {shape[0]}x{shape[1]}: pauses",
        )
    rates, times = measured["calls"], list(itertools.chain(*measured["paused"]))
    one, slow = statistics.median(rates), statistics.quantiles(times, n=10)[-1]
    return {
        "what": "pauses",
        "one_ms": round(1000 / one, 2),
        "other_ms": round(1000 * slow, 2),
        "ratio": round(slow * one, 3),
        "limit": f"<= {cpu_threads_report.PAUSES_LIMIT}",
        "holds": slow * one <= cpu_threads_report.PAUSES_LIMIT,
        "paused_median_ms": round(1000 * statistics.median(times), 2),
        "calls_per_second": rates,
        "paused_seconds": [round(value, 6) for value in times],
    }


def _scaling_burst(process: Any, threads: int, cpus: list[int], turn: int) -> float:  # noqa: ANN401
    """Calls a second; of one thread on another CPU in each turn."""
    cpu = cpus[turn % len(cpus)] if threads == 1 else None
    return process.apply(_burst, (_BURST.value, 1, cpu))


def _arithmetic(threads: int, cpus: list[int], turn: int) -> float:
    """GFLOP/s of so many threads that do nothing but multiply and add in registers."""
    first_cpu = cpus[turn % len(cpus)]
    command = [_ARITHMETIC.value, str(threads), str(_BURST.value / 4), str(first_cpu)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["gflops"]


def measure_scaling(dtype: str, shape: tuple[int, int], counts: list[int]) -> dict[str, Any]:
    """Bursts with each number of threads in turn."""
    cpus = sorted(os.sched_getaffinity(0))
    sides: dict[tuple[str, int], Callable[[int], float]] = {}
    with contextlib.ExitStack() as stack:
        for count in counts:
            process = _process(stack, dtype, shape, count)
            sides["op", count] = functools.partial(_scaling_burst, process, count, cpus)
            if _ARITHMETIC.value:
                sides["arithmetic", count] = functools.partial(_arithmetic, count, cpus)
        measured = _alternate(sides, f"{dtype} {shape[0]}x{shape[1]}: scaling")
    rates = {count: measured["op", count] for count in counts}
    arithmetic = {count: measured.get(("arithmetic", count), []) for count in counts}
    result: dict[str, Any] = {"calls_per_second": rates, "gflops": arithmetic, "threads": {}}
    for count in counts:
        speed = statistics.mean(rates[count])
        one = {"ms": 1000 / speed, "times": speed / statistics.mean(rates[1])}
        if arithmetic[count]:
            mean = statistics.mean(arithmetic[count])
            one["arithmetic_times"] = mean / statistics.mean(arithmetic[1])
        result["threads"][count] = {name: round(value, 3) for name, value in one.items()}
    return result


def _parse_shape(text: str) -> tuple[int, int]:
    batch, _, seq = text.partition("x")
    if not (batch.isdecimal() and seq.isdecimal() and int(batch) and int(seq)):
        raise app.UsageError(f"--shapes has {text!r}, expected BATCHxLENGTH such as 8x128")
    return int(batch), int(seq)


def _parse_counts() -> list[int]:
    counts = [int(text) if text.isdecimal() else 0 for text in _SCALING.value]
    if min(counts, default=0) < 1 or 1 not in counts:
        raise app.UsageError(
            f"--scaling is {_SCALING.value}, expected numbers of threads with 1 among them"
        )
    if _ARITHMETIC.value and not os.access(_ARITHMETIC.value, os.X_OK):
        raise app.UsageError(f"--arithmetic is {_ARITHMETIC.value}, expected a program")
    cpus = len(os.sched_getaffinity(0))
    if _ARITHMETIC.value and max(counts) > cpus:
        raise app.UsageError(
            f"--scaling is {_SCALING.value}; --arithmetic wants a CPU for each thread, this "
            f"process has {cpus}"
        )
    return counts


def main(argv: list[str]) -> None:
    """Measures, writes JSON, Markdown and plots, and fails where a limit is broken."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    measures = {"quota": measure_quota, "sessions": measure_sessions, "pauses": measure_pauses}
    unknown = set(_MEASURES.value) - {"scaling", *measures}
    if unknown or not _MEASURES.value:
        raise app.UsageError(
            f"--measures is {_MEASURES.value}, expected of scaling, {', '.join(measures)}"
        )
    counts = _parse_counts()
    shapes = [_parse_shape(text) for text in _SHAPES.value]
    data: dict[str, Any] = {
        **report.header(),
        "model": _MODEL.value,
        "quota": _QUOTA.value,
        "threads": _THREADS.value,
        "session_threads": _SESSION_THREADS.value,
        "rounds": _ROUNDS.value,
        "burst_s": _BURST.value,
        "pause_ms": _PAUSE.value,
        "scaling": [],
        "missing": [],
        "rows": [],
    }
    path = report.result_path("cpu_threads", "json", _OUTPUT_DIR.value)

    def save() -> None:  # after every row, so that an interrupted run is not lost
        report.write_json(path, data)
        report.write_text(path.with_suffix(".md"), cpu_threads_report.to_markdown(data))

    for dtype in _DTYPES.value:
        for shape in shapes:
            name = {"dtype": dtype, "shape": f"{shape[0]}x{shape[1]}"}
            if "scaling" in _MEASURES.value:
                data["scaling"].append(name | measure_scaling(dtype, shape, counts))
                save()
            for measure in (m for what, m in measures.items() if what in _MEASURES.value):
                try:
                    data["rows"].append(name | measure(dtype, shape))
                except cpu_groups.GroupsUnavailable as error:
                    reason = f"quota, as no cgroup can be made: {error}"
                    if reason not in data["missing"]:
                        data["missing"].append(reason)
                save()
    plots = cpu_threads_report.plot(data, path)
    print(cpu_threads_report.to_markdown(data))
    print(f"Written: {path}, beside it .md, {', '.join(plots)}")
    broken = [row for row in data["rows"] if not row["holds"]]
    if broken:
        sys.exit("Over the limit: " + ", ".join(f"{r['what']} {r['shape']}" for r in broken))


if __name__ == "__main__":
    app.run(main)
