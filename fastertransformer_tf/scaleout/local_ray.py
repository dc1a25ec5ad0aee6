"""Ray as this package's programs start it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from fastertransformer_tf.errors import UserError


def import_ray() -> Any:
    """Imports Ray.

    Raises:
      UserError: It is not installed.
    """
    # Nobody is told how a program was used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            "ray is not installed, which this program needs: pip install "
            "'fastertransformer_tf[scale]'"
        ) from error
    return ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connects to a cluster, or starts Ray on this machine, which ends with the block.

    Args:
      address: Of the cluster, as `ray.init` takes it; None: this machine.

    Raises:
      UserError: Ray is not installed, or there is no such cluster.
    """
    # What goes wrong is told as an error; Ray's notes about its own work are in its log files.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray = import_ray()
    try:
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--address={address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def cause_of(error: BaseException) -> BaseException:
    """What a worker raised, out of what Ray wraps around it."""
    seen = error
    while True:
        inner = getattr(seen, "cause", None) or seen.__cause__
        if not isinstance(inner, BaseException) or inner is seen:
            return seen
        if isinstance(seen, UserError):
            return seen
        seen = inner
