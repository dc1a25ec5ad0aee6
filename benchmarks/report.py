"""What every benchmark writes: the machine, the versions, JSON, Markdown and plots."""

import ctypes
import datetime
import gc
import json
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
# Instruction sets that decide how fast GEMMs can be.
_ISA_FLAGS = (
    "avx2 fma avx512f avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8"
)


def describe_machine() -> dict[str, Any]:
    """CPU model, count and instruction sets, memory, kernel and Python of this machine."""
    fields: dict[str, str] = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    memory = pathlib.Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpu_family_model_stepping": "/".join(
            fields.get(key, "?") for key in ("cpu family", "model", "stepping")
        ),
        "cpus": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in _ISA_FLAGS.split() if flag in flags],
        "memory_gib": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def other_cpu_seconds() -> float:
    """CPU seconds that the machine has spent on anything but this process (proc(5), stat)."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system


def resident_mib(field: str) -> float:
    """VmRSS or VmHWM (the highest VmRSS since reset_peak) of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


def release_free_memory() -> None:
    """Gives what malloc holds free back to the system, so that its use shows in VmRSS (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Sets VmHWM to VmRSS (proc(5), clear_refs)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def hide_gpus() -> None:
    """Keeps this process and those that it starts on the CPU; call it before anything is computed.

    Frameworks take a GPU where there is one, and TensorFlow's float32 reference would then be TF32.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def gpu_state() -> dict[str, str]:
    """What nvidia-smi says of the first GPU."""
    fields = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return {"name": "no GPU"}
    return dict(zip(fields.split(","), map(str.strip, done.stdout.split(",")), strict=True))


def git_commit() -> str:
    """The commit of this checkout, with "+changes" where tracked files differ from it.

    In a bundle (scripts/gpu_bundle.sh), which has no commits, what its file VERSION says.
    """
    version = RESULTS.parent.parent / "VERSION"
    if version.exists():
        return version.read_text().strip()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(RESULTS.parent), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def timestamp() -> str:
    """Now, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def header() -> dict[str, Any]:
    """Date, commit and machine: the first fields of every JSON file."""
    return {
        "date": timestamp(),
        "commit": git_commit(),
        "machine": describe_machine(),
    }


def result_path(
    name: str, suffix: str, directory: str | os.PathLike[str] = RESULTS
) -> pathlib.Path:
    """`directory`/<name>_<date>.<suffix>."""
    return pathlib.Path(directory) / f"{name}_{datetime.date.today().isoformat()}.{suffix}"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes `data` as JSON, one innermost list a line being left to the encoder."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def save_figure(figure: Any, path: pathlib.Path) -> None:  # noqa: ANN401 (matplotlib has no stubs)
    """Saves a matplotlib figure under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; None is an empty cell."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def describe_header(data: dict[str, Any]) -> str:
    """One paragraph of Markdown that says where and when a result was measured."""
    machine = data["machine"]
    return (
        f"{data['date']}, commit {data['commit']}, {machine['cpu']} "
        f"(family/model/stepping {machine['cpu_family_model_stepping']}), {machine['cpus']} CPUs, "
        f"{' '.join(machine['isa'])}, {machine['memory_gib']} GiB, Python {machine['python']}.\n"
    )
