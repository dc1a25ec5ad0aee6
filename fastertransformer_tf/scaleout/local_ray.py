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
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
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
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
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
        # Ray's own class of a user's exception is of that exception's class, too.
        wrapped = getattr(seen, "cause", None)
        if wrapped is None and isinstance(seen, (UserError, OSError)):
            return seen
        inner = wrapped or seen.__cause__
        if not isinstance(inner, BaseException) or inner is seen:
            return seen
        seen = inner
