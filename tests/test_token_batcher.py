"""Batches filled by tokens: nothing lost, nothing mixed up, errors told apart."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from fastertransformer_tf.data.text_features import TokenRow
from fastertransformer_tf.scaleout import token_batcher


def tokens(length: int, first: int = 1) -> TokenRow:
    return TokenRow([first] * length, length)


class Model:
    """Gives the first id and the length; notes its batches; fails where an id is 13."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.seconds, self.running, self.lock = seconds, 0, threading.Lock()

    def __call__(self, batch: list[TokenRow]) -> np.ndarray:
        with self.lock:
            self.running += 1
            assert self.running == 1, "two batches at once"
        try:
            time.sleep(self.seconds)
            self.batches.append([len(one) for one in batch])
            if any(one.ids[0] == 13 for one in batch):
                raise ArithmeticError("thirteen")
            return np.array([[one.ids[0], len(one)] for one in batch], np.float32)
        finally:
            with self.lock:
                self.running -= 1


def test_each_caller_gets_its_own_scores_and_batches_keep_the_limits() -> None:
    model = Model(0.001)
    limits = token_batcher.Limits(tokens=40, rows=6, wait_s=0.001)

    async def call(batcher: token_batcher.TokenBatcher, number: int) -> None:
        asked = [tokens(1 + (number * 7 + i) % 20, 100 + number) for i in range(1 + number % 4)]
        scores = await batcher.submit(asked)
        assert scores.tolist() == [[100 + number, len(one)] for one in asked]

    async def main() -> None:
        batcher = token_batcher.TokenBatcher(model, limits)
        await asyncio.gather(*(call(batcher, number) for number in range(64)))
        assert batcher.waiting == 0

    asyncio.run(main())
    assert sum(map(len, model.batches)) == sum(1 + n % 4 for n in range(64))
    for batch in model.batches:
        assert len(batch) <= 6
        assert len(batch) == 1 or len(batch) * max(batch) <= 40
    assert len(model.batches) < 100, "requests were not put together"


def test_only_the_request_that_fails_alone_gets_the_error() -> None:
    async def main() -> None:
        batcher = token_batcher.TokenBatcher(Model(), token_batcher.Limits(wait_s=0.01))
        results = await asyncio.gather(
            *(batcher.submit([tokens(3, 10 + i)]) for i in range(8)), return_exceptions=True
        )
        for i, result in enumerate(results):
            if 10 + i == 13:
                assert isinstance(result, ArithmeticError)
            else:
                assert isinstance(result, np.ndarray) and result[0, 0] == 10 + i

    asyncio.run(main())


def test_what_nobody_waits_for_is_not_computed() -> None:
    model = Model(0.05)

    async def main() -> None:
        batcher = token_batcher.TokenBatcher(model, token_batcher.Limits(wait_s=0.0))
        first = asyncio.create_task(batcher.submit([tokens(1)]))
        await asyncio.sleep(0.02)  # It is being computed.
        gone = asyncio.create_task(batcher.submit([tokens(5)]))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await first
        assert (await batcher.submit([tokens(2)])).shape == (1, 2)

    asyncio.run(main())
    assert model.batches == [[1], [2]]
