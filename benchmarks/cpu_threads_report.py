"""The report of cpu_threads: tables and plots of what it measured."""

import pathlib
from typing import Any

from benchmarks import report

# Of a row's ratio: the quota's time over that without, at most; the sessions' throughput together
# over one's, at least; the time of a call that comes alone over that of others, at most, in nine of
# ten calls.
QUOTA_LIMIT, SESSIONS_LIMIT, PAUSES_LIMIT = 1.10, 0.95, 1.6


def to_markdown(data: dict[str, Any]) -> str:
    """The report."""
    return (
        "# The op on threads\n\n"
        + report.describe_header(data)
        + _scaling_table(data)
        + (_sharing_table(data) if data["rows"] or data["missing"] else "")
    )


def _scaling_table(data: dict[str, Any]) -> str:
    """What each number of threads gains over one; empty where that was not measured."""
    rows = []
    for row in data["scaling"]:
        for count, one in row["threads"].items():
            efficiency = one["times"] / int(count)
            allowed = one.get("arithmetic_times")
            rows.append(
                [row["dtype"], row["shape"], count, one["ms"], one["times"], round(efficiency, 2)]
                + ["" if allowed is None else round(allowed / int(count), 2)]
            )
    if not rows:
        return ""
    columns = ["dtype", "shape", "threads", "ms", "times", "efficiency", "of bare arithmetic"]
    return (
        f"\n## Scaling\n\n{data['model']}, calls with each number of threads in turn, a process "
        f"each, means of {data['rounds']} turns of {data['burst_s']} s; one thread on another CPU "
        "in each turn. times: the calls a second over those of one thread; efficiency: that by the "
        "number of threads; of bare arithmetic: the same of threads that multiply and add in "
        "registers, in the same turns.\n\n" + report.markdown_table(columns, rows)
    )


def _sharing_table(data: dict[str, Any]) -> str:
    columns = ["what", "dtype", "shape", "one_ms", "other_ms", "ratio", "limit", "holds"]
    rows = [[row.get(c) for c in columns] for row in data["rows"]]
    notes = "".join(f"\n* not measured: {reason}" for reason in data["missing"])
    return (
        f"\n## Threads that share CPUs or have to be woken\n\n{data['model']}, medians of "
        f"{data['rounds']} turns of {data['burst_s']} s. "
        f"quota: a call's time with {data['quota']} threads and no quota (one), and with "
        f"{data['threads']} threads in a cgroup with a quota of {data['quota']} CPUs (other); "
        "ratio: other over one. sessions: time for each call of one session alone (one) and of two "
        f"at once (other), on one pool of {data['session_threads']} threads; ratio: the calls a "
        "second of two over those of one. pauses: a call's time one after the other (one), and the "
        f"time that one call in ten exceeds after {data['pause_ms']:g} ms without one, in which "
        "the caller writes 64 MiB (other); ratio: other over one."
        f"\n{notes}\n\n" + report.markdown_table(columns, rows)
    )


def _plot_scaling(data: dict[str, Any], path: pathlib.Path) -> None:
    """Lines: times the speed of one thread, over threads, and what bare arithmetic gains."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1,
        len(data["scaling"]),
        figsize=(5 * len(data["scaling"]), 4.5),
        squeeze=False,
        layout="constrained",
    )
    for axis, row in zip(axes[0], data["scaling"], strict=True):
        counts = sorted(row["threads"], key=int)
        for name, label in (("times", "op"), ("arithmetic_times", "bare arithmetic")):
            if name in row["threads"][counts[0]]:
                times = [row["threads"][count][name] for count in counts]
                axis.plot([int(count) for count in counts], times, marker="o", label=label)
        most = int(counts[-1])
        axis.plot([1, most], [1, most], color="grey", linewidth=0.8, label="ideal")
        axis.set_title(f"{row['dtype']} {row['shape']}")
        axis.set_xlabel("threads")
        axis.set_ylabel("times the speed of one thread")
        axis.legend(fontsize=8)
    report.save_figure(figure, path)
    pyplot.close(figure)


def _plot_sharing(data: dict[str, Any], path: pathlib.Path) -> None:
    """Bars: each row's ratio beside its limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [
        ("quota", QUOTA_LIMIT, "time under the quota / without"),
        ("sessions", SESSIONS_LIMIT, "throughput of two sessions / of one"),
        ("pauses", PAUSES_LIMIT, "slow tenth after pauses / one after the other"),
    ]
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(15, 4), layout="constrained")
    for axis, (kind, limit, label) in zip(axes, kinds, strict=True):
        rows = [row for row in data["rows"] if row["what"] == kind]
        axis.bar([f"{row['dtype']}\n{row['shape']}" for row in rows], [r["ratio"] for r in rows])
        axis.axhline(limit, color="grey", linewidth=0.8)
        axis.set_ylabel(label)
        axis.tick_params(axis="x", labelsize=8)
    report.save_figure(figure, path)
    pyplot.close(figure)


def plot(data: dict[str, Any], path: pathlib.Path) -> list[str]:
    """Draws what was measured beside the report at `path`; returns the files' names."""
    written = []
    if data["rows"]:
        _plot_sharing(data, path.with_suffix(".png"))
        written.append(f"{path.stem}.png")
    if data["scaling"]:
        _plot_scaling(data, path.with_name(f"{path.stem}_scaling.png"))
        written.append(f"{path.stem}_scaling.png")
    return written
