"""Groups of processes with a quota of CPU time (Linux's cgroups, version 1 and 2)."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

_MOUNTS = pathlib.Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


class GroupsUnavailable(Exception):
    """No group with a quota can be made here; the message says why."""


def _parents() -> list[tuple[pathlib.Path, int]]:
    """This process's own groups of CPU time: folders with their versions of the interface."""
    found = []
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and "cpu" not in controllers.split(","):
            continue
        mounts = [controllers, "cpu"] if version == 1 else ["", "unified"]
        for mount in dict.fromkeys(mounts):
            # Where a container sees its own group mounted, only the mount itself is there.
            for folder in (_MOUNTS / mount / path.lstrip("/"), _MOUNTS / mount):
                if (folder / "cgroup.procs").exists():
                    found.append((folder, version))
                    break
    return found


def _set_quota(group: pathlib.Path, version: int, cpus: int) -> None:
    quota = cpus * _PERIOD_US
    if version == 2:
        (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        return
    (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(quota))


@contextlib.contextmanager
def group_with_quota(cpus: int) -> Iterator[pathlib.Path]:
    """Makes a group below this process's own, and removes it when its processes have ended.

    Args:
      cpus: CPU time for each time that passes, in CPUs.

    Yields:
      The group's folder, for `join`.

    Raises:
      GroupsUnavailable: none can be made here.
    """
    reasons = []
    for parent, version in _parents():
        group = parent / f"ft_quota_{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            reasons.append(f"{group}: {error.strerror}")
            continue
        try:
            try:
                _set_quota(group, version, cpus)
            except OSError as error:
                # Also where version 2 does not hand CPU time on to groups below.
                reasons.append(f"{error.filename or group}: {error.strerror}")
                continue
            yield group
            return
        finally:
            group.rmdir()
    raise GroupsUnavailable(
        "; ".join(reasons) or f"no cgroup of CPU time under {_MOUNTS} holds this process"
    )


def join(group: pathlib.Path) -> None:
    """Moves this process with all its threads into a group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def throttled_us(group: pathlib.Path) -> int:
    """Microseconds for which the group's threads were kept waiting by its quota."""
    for line in (group / "cpu.stat").read_text().splitlines():
        key, value = line.split()
        if key == "throttled_usec":
            return int(value)
        if key == "throttled_time":  # version 1: nanoseconds
            return int(value) // 1000
    return 0
