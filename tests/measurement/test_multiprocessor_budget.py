"""Products on fewer multiprocessors: records from simulated times, and fake drivers."""

import ctypes
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from harness.errors import UserError
from harness.measurement import green_contexts
from harness.measurement import multiprocessor_budget as module
from harness.measurement.green_contexts import current_multiprocessors, green_budgets
from harness.measurement.multiprocessor_budget import measure, multiprocessor_budget

TOTAL = 132
SHAPE = [256, 512, 1024]
ARGUMENTS = {"shapes": {"some": SHAPE}, "precisions": ["bfloat16", "fp8"], "taken": [20],
             "rounds": 2}  # fmt: skip


@pytest.fixture
def simulated(monkeypatch):
    """Products whose time is what one SM needs over the SMs, or twice that in two waves."""
    state = SimpleNamespace(count=TOTAL, sized_for=TOTAL, entered=[])

    @contextmanager
    def confined(count):
        state.entered.append(count)
        state.count = count
        yield
        state.count = TOTAL

    def timed(step, device):
        step()
        waves = -(-state.sized_for // state.count)
        return module.CALLS * waves / state.sized_for

    monkeypatch.setattr(module, "timed", timed)
    monkeypatch.setattr(torch._C, "_set_sm_carveout_experimental",
                        lambda taken: setattr(state, "sized_for", TOTAL - (taken or 0)),
                        raising=False)  # fmt: skip
    state.budgets = {count: lambda count=count: confined(count) for count in (TOTAL, 112)}
    return state


def values(records, metric):
    return {
        tuple(record["labels"].get(name)
              for name in ("precision", "sized_for", "multiprocessors", "round")): record["value"]
        for record in records
        if record["metric"] == f"gemm/{metric}"
    }  # fmt: skip


def test_kernels_sized_for_the_budget_lose_its_share_and_others_a_wave(simulated):
    works = {("some", precision): lambda: None for precision in ("bfloat16", "fp8")}
    records = measure(works, {"some": SHAPE}, simulated.budgets, TOTAL, 2, torch.device("cpu"))
    shares = values(records, "throughput_share")
    assert shares.pop((None, None, 112, None)) == pytest.approx(1 - 20 / 132)
    assert shares == {
        (precision, sized_for, 112, round_): pytest.approx(share)
        for round_ in (0, 1)
        for precision, sized_for, share in (
            ("bfloat16", "device", 0.5), ("fp8", "device", 0.5), ("fp8", "budget", 112 / 132),
        )
    }  # fmt: skip
    throughput = values(records, "throughput")
    # Two operations per element of the product's sums, in 1 / 132 s.
    assert throughput["fp8", "device", TOTAL, 0] == pytest.approx(2 * 256 * 512 * 1024 * 132 / 1e12)
    assert ("bfloat16", "budget", 112, 0) not in throughput
    assert simulated.sized_for == TOTAL


def test_every_product_and_budget_takes_its_turn_within_a_round(simulated):
    works = {("some", "bfloat16"): lambda: None}
    measure(works, {"some": SHAPE}, simulated.budgets, TOTAL, 3, torch.device("cpu"))
    rounds = 3 + module.WARMUP_ROUNDS
    assert simulated.entered == [TOTAL, 112] * rounds


class Driver:
    """A driver library; `contexts` are the SMs of the current contexts, the last one on top."""

    def __init__(self, contexts, status=0):
        self.contexts, self.status = contexts, status

    def cuCtxGetCurrent(self, context):
        return 0

    def cuCtxGetDevResource(self, context, resource, kind):
        assert kind == 1
        ctypes.memmove(ctypes.byref(resource, 96), self.contexts[-1].to_bytes(4, "little"), 4)
        return self.status


def install(monkeypatch, driver, granularity=8):
    def create(*, num_sms, device_id):
        count = -(-num_sms // granularity) * granularity
        return SimpleNamespace(set_context=lambda: driver.contexts.append(count),
                               pop_context=driver.contexts.pop)  # fmt: skip

    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(green_contexts, "GreenContext", SimpleNamespace(create=create))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    real = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None: real(*shape))


def test_budgets_are_named_by_what_the_driver_gave(monkeypatch):
    driver = Driver([TOTAL])
    install(monkeypatch, driver)
    budgets = green_budgets([110, 112, 60], TOTAL, torch.device("cuda"))
    assert list(budgets) == [TOTAL, 112, 64]
    for count, budget in budgets.items():
        with budget():
            assert current_multiprocessors() == count
        assert driver.contexts == [TOTAL]
    with pytest.raises(ZeroDivisionError), budgets[64]():
        raise ZeroDivisionError
    assert driver.contexts == [TOTAL]


def gpu(monkeypatch):
    properties = SimpleNamespace(multi_processor_count=TOTAL)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver([TOTAL], status=801), "CUDA error 801"),
        (Driver([7]), "a whole GPU of 132 SMs has 7"),
        (SimpleNamespace(), "older than CUDA 12.4"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_recorded_as_unsupported(monkeypatch, driver, reason):
    gpu(monkeypatch)
    install(monkeypatch, driver)
    [record] = multiprocessor_budget(**ARGUMENTS, device="cuda")
    assert (record["metric"], record["value"]) == ("gemm/supported", 0)
    assert reason in record["labels"]["reason"]


def test_a_torch_without_green_contexts_is_recorded_as_unsupported(monkeypatch):
    gpu(monkeypatch)
    install(monkeypatch, Driver([TOTAL]))

    def refuse(**_):
        raise RuntimeError("PyTorch was not built with Green Context support!\nC++ trace")

    monkeypatch.setattr(green_contexts, "GreenContext", SimpleNamespace(create=refuse))
    [record] = multiprocessor_budget(**ARGUMENTS, device="cuda")
    assert record["labels"]["reason"] == "PyTorch was not built with Green Context support!"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cpu"}, "device: found 'cpu', expected 'cuda'"),
        ({"shapes": {"some": [1, 2]}}, "shapes"),
        ({"shapes": {"some": [16, 16, 24]}}, "found N 16 and K 24, expected multiples of 16"),
        ({"precisions": ["fp16"]}, "precisions"),
        ({"taken": [20, 132]}, "found 132, expected less than the 132 multiprocessors"),
    ],
)
def test_mistakes_end_with_one_line(change, message, monkeypatch):
    gpu(monkeypatch)
    with pytest.raises(UserError, match=message) as caught:
        multiprocessor_budget(**{**ARGUMENTS, "device": "cuda", **change})
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_half_a_gpu_is_slower_than_a_whole_one():
    total = torch.cuda.get_device_properties("cuda").multi_processor_count
    arguments = {"shapes": {"square": [4096] * 3}, "precisions": ["bfloat16"]}
    records = multiprocessor_budget(**arguments, taken=[total // 2], rounds=3, device="cuda")
    if not records[0]["value"]:
        pytest.skip(records[0]["labels"]["reason"])
    shares = [record["value"] for record in records if record["labels"].get("method") == "measured"]
    assert len(shares) == 3
    assert all(0.2 < share < 0.9 for share in shares)
