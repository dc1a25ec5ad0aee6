"""Batches of requests that come one by one, filled by tokens; free of Ray."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from fastertransformer_tf.data.text_features import TokenRow


@dataclasses.dataclass(frozen=True)
class Limits:
    """How batches are filled.

    Attributes:
      tokens: Of a batch at most, padded to its longest; a longer text is alone.
      rows: Texts of a batch at most.
      wait_s: How long a text waits for others, seconds, while nothing is computed.
    """

    tokens: int = 4096
    rows: int = 128
    wait_s: float = 0.002


@dataclasses.dataclass
class _Waiting:
    tokens: TokenRow
    result: asyncio.Future[np.ndarray]


class TokenBatcher:
    """Computes what many callers wait for, in batches, one after the other.

    While a batch is computed, what comes in collects: the next batch is the larger the more comes,
    without anybody waiting for a clock. A batch takes the texts that came first, whatever their
    lengths: nobody is passed over.
    """

    def __init__(
        self,
        score: Callable[[Sequence[TokenRow]], np.ndarray],
        limits: Limits,
        seen: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Makes it; it starts with the first `submit`, in that call's event loop.

        Args:
          score: Computes [len(batch), C]; called in a thread of its own, one call at a time.
          limits: How batches are filled.
          seen: Told of each batch: its texts, its tokens with padding, its seconds.
        """
        self._score, self._limits, self._seen = score, limits, seen
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "score")
        self._loop: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Texts that no batch has taken yet."""
        return len(self._waiting)

    async def submit(self, texts: Sequence[TokenRow]) -> np.ndarray:
        """Computes the scores of one caller's texts, [len(texts), C].

        Raises:
          Exception: What `score` raised for one of these texts, and not for others' in its batch.
        """
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        loop = asyncio.get_running_loop()
        mine = [_Waiting(tokens, loop.create_future()) for tokens in texts]
        self._waiting.extend(mine)
        self._arrived.set()
        try:
            return np.stack(await asyncio.gather(*(one.result for one in mine)))
        except BaseException:  # A cancelled caller's, too, need not be computed.
            for one in mine:
                one.result.cancel()
            raise

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._is_full():
                await asyncio.sleep(self._limits.wait_s)
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if batch:
                await self._compute(batch)

    def _is_full(self) -> bool:
        longest = rows = 0
        for one in self._waiting:
            longest, rows = max(longest, len(one.tokens)), rows + 1
            if rows >= self._limits.rows or longest * rows >= self._limits.tokens:
                return True
        return False

    def _take(self) -> list[_Waiting]:
        """The next batch: what came first, as much as the limits let in."""
        batch: list[_Waiting] = []
        longest = 0
        while self._waiting and len(batch) < self._limits.rows:
            one = self._waiting[0]
            if one.result.done():  # Nobody waits for it any more.
                self._waiting.popleft()
                continue
            longest = max(longest, len(one.tokens))
            if batch and longest * (len(batch) + 1) > self._limits.tokens:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            scores = await loop.run_in_executor(
                self._thread, self._score, [one.tokens for one in batch]
            )
        except Exception as error:
            await self._told_apart(batch, error)
            return
        for one, row in zip(batch, scores, strict=True):
            if not one.result.done():
                one.result.set_result(row)
        if self._seen is not None:
            padded = len(batch) * max(len(one.tokens) for one in batch)
            self._seen(len(batch), padded, loop.time() - start)

    async def _told_apart(self, batch: list[_Waiting], error: Exception) -> None:
        """After a batch that failed: only those get the error that fail alone."""
        if len(batch) == 1:
            if not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for one in batch:
            await self._compute([one])
