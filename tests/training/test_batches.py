"""Reading one batch ahead changes when a batch is read, never which."""

import threading

import pytest
import torch

from harness.training.batches import Batches

CPU = torch.device("cpu")


def batch(step: int):
    return torch.tensor([step]), torch.tensor([-step])


def counting():
    read = []

    def read_batch(step: int):
        read.append(step)
        return batch(step)

    return read, read_batch


@pytest.mark.parametrize("first", [0, 3])
def test_batches_ahead_are_those_read_when_asked_for(first):
    read, read_batch = counting()
    ahead = Batches(read_batch, 6, CPU, ahead=True)
    plain = Batches(batch, 6, CPU)
    for step in range(first, 6):
        for one, other in zip(ahead.take(step), plain.take(step), strict=True):
            assert torch.equal(one, other)
    ahead.close()
    assert read == list(range(first, 6))


def test_the_next_batch_is_read_before_it_is_asked_for():
    started = threading.Event()

    def read_batch(step: int):
        if step == 1:
            started.set()
        return batch(step)

    batches = Batches(read_batch, 2, CPU, ahead=True)
    batches.take(0)
    assert started.wait(10)
    batches.close()


def test_on_a_cpu_nothing_is_read_before_it_is_asked_for():
    read, read_batch = counting()
    Batches(read_batch, 6, CPU).take(0)
    assert read == [0]


def test_a_mistake_while_reading_surfaces_where_the_batch_is_taken():
    def read_batch(step: int):
        if step == 1:
            raise OSError("the disk is gone")
        return batch(step)

    batches = Batches(read_batch, 3, CPU, ahead=True)
    batches.take(0)
    with pytest.raises(OSError, match="the disk is gone"):
        batches.take(1)
    batches.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_on_another_stream_arrive_whole():
    device = torch.device("cuda")

    def read_batch(step: int):
        host = torch.full((1 << 22,), step).pin_memory()
        return host.to(device, non_blocking=True), torch.tensor([step], device=device)

    batches = Batches(read_batch, 8, device)
    for step in range(8):
        values, _ = batches.take(step)
        # Keeps the device busy, so that the copy of the next batch overlaps.
        assert int((values * 1).sum()) == step << 22
    batches.close()
