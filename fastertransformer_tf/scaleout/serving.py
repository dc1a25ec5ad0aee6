"""Serves a classifier behind HTTP, by Ray Serve.

POST /score   {"texts": [...]} or {"pairs": [[first, second], ...]}
              -> {"scores": [[...], ...], "labels": [...]}
GET  /healthz 200 where the replica that answers can compute
GET  /metrics the counters of the replica that answers, as Prometheus reads them
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import cli
from fastertransformer_tf.scaleout import (
    local_ray,
    model_flags,
    requests,
    scorers,
    token_batcher,
)

_OWNER = "fastertransformer_tf.serve"
APPLICATION = "fastertransformer_tf"
# Upper ends of the histogram of request times, seconds.
_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    model_flags.define_flags(flag_values, _OWNER)
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: all of this machine.")
    define.integer("port", 8000, "Port to listen at.", minimum=1)
    define.integer("replicas", 1, "Processes, each with a model.", minimum=1)
    define.integer("threads", 0, "Threads of each; 0: the processors dealt equally.", minimum=0)
    define.boolean("gpu", "Each replica has a GPU of its own.")
    define.integer(
        "batch_tokens", 4096, "Tokens of a batch at most, padded to its longest.", minimum=1
    )
    define.integer("batch_rows", 128, "Texts of a batch at most.", minimum=1)
    define.number("wait_ms", 2.0, "How long a text waits for others to fill a batch.", 0, 1000)
    define.integer("request_texts", 1024, "Texts of a request at most.", minimum=1)
    define.integer(
        "ongoing", 512, "Requests that a replica works on at most; others wait.", minimum=1
    )
    define.string("address", None, "A Ray cluster to use; without it Ray runs on this machine.")


class Counters:
    """What a replica has done, in Prometheus' text format."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.requests = {200: 0, 400: 0, 500: 0}
        self.texts = self.batches = self.batch_rows = self.batch_tokens = 0
        self.compute_s = self.request_s = 0.0
        self._times = [0] * (len(_TIMES) + 1)

    def saw_batch(self, rows: int, tokens: int, seconds: float) -> None:
        """Counts a batch: its texts, its tokens with padding, its time."""
        self.batches += 1
        self.batch_rows += rows
        self.batch_tokens += tokens
        self.compute_s += seconds

    def saw_request(self, status: int, seconds: float) -> None:
        """Counts a request."""
        self.requests[status] += 1
        self.request_s += seconds
        self._times[bisect.bisect_left(_TIMES, seconds)] += 1

    def text(self, waiting: int) -> str:
        """The counters, and how many texts wait."""
        label = f'replica="{os.getpid()}"'
        lines = [
            "# TYPE ft_requests_total counter",
            *(f'ft_requests_total{{{label},status="{s}"}} {n}' for s, n in self.requests.items()),
            "# TYPE ft_request_seconds histogram",
        ]
        total = 0
        for end, count in zip((*_TIMES, "+Inf"), self._times, strict=True):
            total += count
            lines.append(f'ft_request_seconds_bucket{{{label},le="{end}"}} {total}')
        lines += [
            f"ft_request_seconds_sum{{{label}}} {self.request_s:.6f}",
            f"ft_request_seconds_count{{{label}}} {total}",
        ]
        for name, kind, value in (
            ("ft_texts_total", "counter", self.texts),
            ("ft_batches_total", "counter", self.batches),
            ("ft_batch_texts_total", "counter", self.batch_rows),
            ("ft_batch_tokens_total", "counter", self.batch_tokens),
            ("ft_compute_seconds_total", "counter", round(self.compute_s, 6)),
            ("ft_texts_waiting", "gauge", waiting),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name}{{{label}}} {value}"]
        return "\n".join(lines) + "\n"


class Server:
    """A replica: one model, and the batches that its requests share."""

    def __init__(
        self,
        factory: scorers.ScorerFactory,
        threads: int,
        limits: token_batcher.Limits,
        request_texts: int,
    ) -> None:
        """Loads the model and computes once, so that the first client does not wait for that."""
        self._scorer = factory.load(threads)
        self._request_texts = request_texts
        self.counters = Counters()
        self._batcher = token_batcher.TokenBatcher(
            self._scorer.score, limits, self.counters.saw_batch
        )
        self._scorer.score(self._scorer.tokenize([("",)]))

    async def check_health(self) -> None:
        """Ray's and clients' health check: a text comes through the batches in time."""
        await asyncio.wait_for(self._batcher.submit(self._scorer.tokenize([("",)])), 30)

    async def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, str]:
        """Answers a request: status, type and text."""
        if (method, path) == ("GET", "/healthz"):
            await self.check_health()
            return 200, "text/plain", "ok\n"
        if (method, path) == ("GET", "/metrics"):
            return 200, "text/plain; version=0.0.4", self.counters.text(self._batcher.waiting)
        if path != "/score":
            message = f"there is no {path}, expected /score, /healthz or /metrics"
            return _error(404, message)
        if method != "POST":
            return _error(405, f"/score by {method}, expected POST")
        start = time.perf_counter()
        status, kind, text = await self._score(body)
        self.counters.saw_request(status, time.perf_counter() - start)
        return status, kind, text

    async def _score(self, body: bytes) -> tuple[int, str, str]:
        try:
            asked = requests.parse(body, self._request_texts)
            tokens = self._scorer.tokenize(asked)
        except UserError as error:
            return _error(400, str(error))
        try:
            scores = await self._batcher.submit(tokens)
        except Exception as error:  # Of this request: see TokenBatcher.
            return _error(500, f"the model failed: {type(error).__name__}: {error}")
        self.counters.texts += len(tokens)
        result = {
            "scores": [[float(f"{x:.7g}") for x in row] for row in scores],
            "labels": [int(label) for label in scores.argmax(axis=-1)],
        }
        return 200, "application/json", json.dumps(result)

    async def __call__(self, request: Any) -> Any:
        """Answers a request of Ray Serve: starlette's in, starlette's out."""
        from starlette.responses import Response

        status, kind, text = await self.answer(
            request.method, request.url.path, await request.body()
        )
        return Response(text, status, media_type=kind)


def _error(status: int, message: str) -> tuple[int, str, str]:
    return status, "application/json", json.dumps({"error": message})


def start(ray: Any, values: flags.FlagValues, factory: scorers.ScorerFactory) -> None:
    """Starts the server; returns when all replicas can compute.

    Raises:
      UserError: Ray has fewer processors or GPUs than are asked for.
    """
    from ray import serve

    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    threads = values.threads or max(1, cpus // values.replicas)
    if values.replicas * threads > cpus or (values.gpu and values.replicas > gpus):
        raise UserError(
            f"{values.replicas} replicas with {threads} threads each, but Ray has {cpus} "
            f"processors and {gpus} GPUs"
        )
    deployed = serve.deployment(
        name="Server",
        num_replicas=values.replicas,
        max_ongoing_requests=values.ongoing,
        # All processors are the replicas': Ray's own processes ask for none.
        ray_actor_options={"num_cpus": threads, "num_gpus": 1 if values.gpu else 0},
        health_check_period_s=10,
        health_check_timeout_s=60,
    )(Server)
    limits = token_batcher.Limits(values.batch_tokens, values.batch_rows, values.wait_ms / 1000)
    serve.start(proxy_location="HeadOnly", http_options={"host": values.host, "port": values.port})
    serve.run(
        deployed.bind(factory, threads, limits, values.request_texts),
        name=APPLICATION,
        route_prefix="/",
    )


def run(values: flags.FlagValues) -> None:
    """Runs the program with parsed flags, until it is interrupted.

    Raises:
      UserError: A flag or a file is wrong.
      OSError: A file is not there.
    """
    factory = model_flags.factory(values)
    with _told_to_end() as ended, local_ray.connected(values.address) as ray:
        from ray import serve

        try:
            start(ray, values, factory)
        except RuntimeError as error:
            raise local_ray.cause_of(error) from error
        print(f"serving at http://{values.host}:{values.port}/score; Ctrl-C ends it", flush=True)
        ended.wait()
        # Requests that are under way are answered first.
        serve.shutdown()
        print("ended")


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C and by SIGTERM, while the block lasts."""
    event = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in signals]
    try:
        yield event
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
