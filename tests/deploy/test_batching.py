"""The queue that makes batches of what arrives one by one."""

import asyncio
import threading

import pytest
import torch

from t2t_vit.deploy.batching import Batcher, QueueFull


def images(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def using(scenario, run=lambda x: 2 * x, *, max_batch=4, max_wait_s=0.05, capacity=8):
    """Runs a scenario with a batcher; returns its result and the sizes of the batches."""
    sizes: list[int] = []

    async def whole():
        batcher = Batcher(run, max_batch=max_batch, max_wait_s=max_wait_s, capacity=capacity)
        batcher.sizes = sizes.append
        batcher.start()
        try:
            return await scenario(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(whole()), sizes


def test_images_that_arrive_together_are_computed_together():
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.submit(images(value)) for value in range(6)))

    found, sizes = using(scenario)
    assert [rows.tolist() for rows in found] == [[[2.0 * value]] for value in range(6)]
    assert sizes == [4, 2]


def test_an_image_waits_for_others_no_longer_than_allowed():
    async def scenario(batcher):
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await batcher.submit(images(1))
        return loop.time() - begin

    took, sizes = using(scenario, max_wait_s=0.2)
    assert 0.19 < took < 2
    assert sizes == [1]
    assert using(scenario, max_wait_s=0.0)[0] < 0.15


def test_nothing_is_waited_for_where_nothing_is_expected():
    async def scenario(batcher):
        batcher.expects_more = lambda: False
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.gather(*(batcher.submit(images(value)) for value in range(3)))
        return loop.time() - begin

    took, sizes = using(scenario, max_wait_s=5.0)
    assert took < 2
    assert sizes == [3]  # what was there already is computed together all the same


def test_a_request_of_many_images_stays_in_order_over_batches():
    async def scenario(batcher):
        return await batcher.submit(images(*range(7)))

    found, sizes = using(scenario)
    assert found.flatten().tolist() == [2.0 * value for value in range(7)]
    assert sizes == [4, 3]


def test_what_finds_no_room_is_refused_whole_and_the_rest_is_answered():
    release = threading.Event()

    def slow(x):
        release.wait(10)
        return x

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(images(1)))
        await asyncio.sleep(0.1)  # it is being computed
        waiting = asyncio.create_task(batcher.submit(images(2, 3, 4)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await batcher.submit(images(5, 6))
        last = asyncio.create_task(batcher.submit(images(7)))
        await asyncio.sleep(0)
        release.set()
        found = [rows.flatten().tolist() for rows in await asyncio.gather(first, waiting, last)]
        assert batcher.num_waiting == 0
        return found

    found, _ = using(scenario, slow, capacity=4, max_wait_s=0.0)
    assert found == [[1], [2, 3, 4], [7]]


def test_nothing_is_computed_for_who_has_gone():
    seen: list[float] = []
    release = threading.Event()

    def slow(x):
        seen.extend(x.flatten().tolist())
        release.wait(10)
        return x

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(images(1)))
        await asyncio.sleep(0.1)
        gone = asyncio.create_task(batcher.submit(images(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(first, batcher.submit(images(3)))

    using(scenario, slow, max_wait_s=0.0)
    assert seen == [1, 3]


def test_a_failure_is_told_to_its_batch_alone():
    def fails_at_two(x):
        if 2 in x:
            raise ArithmeticError("two")
        return x

    async def scenario(batcher):
        found = await asyncio.gather(batcher.submit(images(1)), batcher.submit(images(2)), return_exceptions=True)
        return found, (await batcher.submit(images(3))).item()

    (both, after), _ = using(scenario, fails_at_two)
    assert [type(one) for one in both] == [ArithmeticError, ArithmeticError]
    assert after == 3


def test_too_few_answers_fail_their_batch_and_the_next_is_answered():
    async def scenario(batcher):
        with pytest.raises(RuntimeError, match="1 answers for 2 images"):
            await batcher.submit(images(1, 2))
        assert batcher.is_working
        return (await batcher.submit(images(3))).item()

    assert using(scenario, lambda x: x[:1])[0] == 3


def test_a_job_runs_alone_and_counts_until_it_is_done():
    release, running = threading.Event(), [0, 0]

    def watched(x):
        running[0] += 1
        running[1] = max(running)
        release.wait(0.05)
        running[0] -= 1
        return x

    async def scenario(batcher):
        job = asyncio.create_task(batcher.alone(lambda: watched("done"), num_images=3))
        await asyncio.sleep(0)
        for refused in (batcher.submit(images(1, 2)), batcher.alone(lambda: None, num_images=2)):
            with pytest.raises(QueueFull):
                await refused
        gone = asyncio.create_task(batcher.alone(lambda: watched("gone"), num_images=1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.num_waiting == 4  # the thread has not computed it yet
        found = await job
        image = (await batcher.submit(images(5))).item()
        await asyncio.sleep(0.2)
        assert batcher.num_waiting == 0
        return found, image

    found, _ = using(scenario, watched, capacity=4)
    assert found == ("done", 5.0)
    assert running[1] == 1


def test_what_was_accepted_is_finished_when_it_stops():
    async def scenario():
        batcher = Batcher(lambda x: x + 1, max_batch=2, max_wait_s=10, capacity=8)
        batcher.start()
        task = asyncio.create_task(batcher.submit(images(1, 2, 3)))
        await asyncio.sleep(0)
        await batcher.stop()
        return (await task).flatten().tolist()

    assert asyncio.run(scenario()) == [2, 3, 4]
