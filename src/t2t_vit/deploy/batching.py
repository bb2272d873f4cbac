"""Images that arrive one by one are computed together: a queue, and a loop that empties it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class QueueFull(Exception):
    """No more images can wait."""


@dataclass(frozen=True)
class _Waiting:
    image: Tensor
    answer: "asyncio.Future[Tensor]"


class Batcher:
    """Computes the rows of `run` for images that are submitted at different times.

    A batch begins with the first image that waits, and is computed when it is full, when no more are expected, or
    `max_wait_s` later. While one is computed the next one fills. It belongs to the event loop in which `start` was
    called.

    Args:
        run: maps (B, C, H, W) to (B, ...), in a thread of its own, one batch at a time.
        max_batch: the most images in a batch.
        max_wait_s: how long an image may wait for others.
        capacity: how many images may wait.

    Attributes:
        thread: in which the network computes.
        num_waiting: images that wait.
        expects_more: whether others are on their way, so that it is worth while to wait.
        sizes: is told the size of each batch.
        waiting: is told how many wait whenever that changes.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], *, max_batch: int, max_wait_s: float, capacity: int) -> None:
        self.run, self.max_batch, self.max_wait_s, self.capacity = run, max_batch, max_wait_s, capacity
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._loop: asyncio.Task[None] | None = None
        self.num_waiting = 0
        self.expects_more: Callable[[], bool] = lambda: True
        self.sizes: Callable[[int], None] = lambda size: None
        self.waiting: Callable[[int], None] = lambda count: None

    def start(self) -> None:
        """Begins to compute."""
        self._loop = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Ends when what was submitted is computed."""
        if self._loop is not None:
            self._queue.put_nowait(None)
            await self._loop
        self.thread.shutdown()

    async def submit(self, images: Tensor) -> Tensor:
        """The rows of some images, (n, C, H, W), in their order.

        Raises:
            QueueFull: there is no room for all of them; then none is computed.
        """
        self._take(len(images))
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(image, loop.create_future()) for image in images]
        for one in waiting:
            self._queue.put_nowait(one)
        try:
            return torch.stack(await asyncio.gather(*(one.answer for one in waiting)))
        finally:
            for one in waiting:  # where the caller has gone, or another one failed
                one.answer.cancel()

    async def alone(self, job: Callable[[], Result], *, num_images: int) -> Result:
        """What a job of so many images gives, which runs in the network's thread between two batches.

        Raises:
            QueueFull: there is no room for them.
        """
        self._take(num_images)
        try:
            task = asyncio.get_running_loop().run_in_executor(self.thread, job)
        except BaseException:
            self._release(num_images)
            raise
        task.add_done_callback(lambda _: self._release(num_images))  # also where the caller has gone
        return await asyncio.shield(task)

    @property
    def is_working(self) -> bool:
        """Whether what is submitted will be computed."""
        return self._loop is not None and not self._loop.done()

    def _take(self, num_images: int) -> None:
        if self.num_waiting + num_images > self.capacity:
            raise QueueFull
        self.num_waiting += num_images
        self.waiting(self.num_waiting)

    def _release(self, num_images: int) -> None:
        self.num_waiting -= num_images
        self.waiting(self.num_waiting)

    async def _work(self) -> None:
        while (batch := await self._next_batch()) is not None:
            self._release(len(batch))
            wanted = [one for one in batch if not one.answer.done()]
            if not wanted:
                continue
            try:
                self.sizes(len(wanted))
                images = torch.stack([one.image for one in wanted])
                rows = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, images)
                if len(rows) != len(wanted):
                    raise RuntimeError(f"the network gave {len(rows)} answers for {len(wanted)} images")
            except Exception as error:  # tells those who wait, and goes on with the next
                for one in wanted:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            for one, row in zip(wanted, rows, strict=True):
                if not one.answer.done():
                    one.answer.set_result(row)

    async def _next_batch(self) -> list[_Waiting] | None:
        """The next images; None after the last."""
        first = await self._queue.get()
        if first is None:
            return None
        batch, deadline = [first], asyncio.get_running_loop().time() + self.max_wait_s
        while len(batch) < self.max_batch:
            remaining_s = deadline - asyncio.get_running_loop().time() if self.expects_more() else 0.0
            try:
                if remaining_s <= 0:  # what is there already costs no time
                    one = self._queue.get_nowait()
                else:
                    one = await asyncio.wait_for(self._queue.get(), remaining_s)
            except (TimeoutError, asyncio.QueueEmpty):
                break
            if one is None:
                self._queue.put_nowait(None)  # for the next turn
                break
            batch.append(one)
        return batch
