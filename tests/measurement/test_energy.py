"""Energy from counters: a fake folder of the kernel and a fake NVML take the place of hardware."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.measurement import energy
from harness.measurement.energy import EnergyMeter, energy_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RANGE = 262_143_328_850  # of a server's package, in uJ


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def add_zone(folder, zone, name, microjoules, limit=RANGE):
    path = folder / zone
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return path / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    first = add_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = add_zone(tmp_path, "intel-rapl:1", "package-1-die-0", 0)
    others = [
        add_zone(tmp_path, "intel-rapl:0:0", "core", 0),
        add_zone(tmp_path, "intel-rapl:0:1", "dram", 0),
        add_zone(tmp_path, "intel-rapl:2", "psys", 0),
        add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    meter = EnergyMeter(CPU, tmp_path)
    assert (meter.source, meter.joules()) == ("powercap", 0.0)
    first.write_text("3500000\n")
    second.write_text("1000000\n")
    for file in others:
        file.write_text("999000000\n")
    assert meter.joules() == pytest.approx(3.5)


@given(
    start=st.integers(0, RANGE - 1),
    steps=st.lists(st.integers(0, RANGE - 1), min_size=1, max_size=6),
)
def test_energy_grows_by_what_is_used_however_often_the_counter_wraps(
    start, steps, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("powercap")
    file = add_zone(folder, "intel-rapl:0", "package-0", start)
    meter, used = EnergyMeter(CPU, folder), 0
    for step in steps:
        used += step
        file.write_text(str((start + used) % RANGE))
        assert meter.joules() == pytest.approx(used * 1e-6, abs=1e-6)


def test_energy_is_unknown_for_good_after_a_pause_in_which_a_counter_may_wrap_twice(tmp_path):
    file = add_zone(tmp_path, "intel-rapl:0", "package-0", 0, limit=600_000_000)
    clock = Clock()
    # 600 J last one second at the most watts that are thought possible.
    packages = energy._Packages(tmp_path, clock)
    clock.now = 0.9
    file.write_text("1000000")
    assert packages.joules() == pytest.approx(1.0)
    clock.now = 2.0
    assert packages.joules() is None
    clock.now = 2.1
    assert packages.joules() is None


def test_a_counter_that_cannot_be_read_is_absent_never_zero(tmp_path):
    assert EnergyMeter(CPU, tmp_path / "none").joules() is None
    add_zone(tmp_path, "intel-rapl:0", "psys", 0)
    assert EnergyMeter(CPU, tmp_path).source is None
    assert EnergyMeter(torch.device("meta"), tmp_path).joules() is None
    file = add_zone(tmp_path, "intel-rapl:1", "package-0", 0)
    meter = EnergyMeter(CPU, tmp_path)
    # Root may read any file, but not a file that is gone.
    file.unlink()
    assert meter.joules() is None
    assert EnergyMeter(CPU, tmp_path).source is None


def test_a_context_keeps_the_energy_until_its_end(tmp_path):
    file = add_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with EnergyMeter(CPU, tmp_path) as meter:
        file.write_text("2000000")
    file.write_text("9000000")
    assert meter.joules() == pytest.approx(2.0)


class NvmlError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """A GPU whose total is 5000 mJ; `total` changes it, None takes its counter away."""
    fake = SimpleNamespace(NVMLError=NvmlError, asked=[], total=5000)

    def handle(uuid):
        fake.asked.append(uuid)
        return "handle"

    def total(_):
        if fake.total is None:
            raise NvmlError("Not Supported")
        return fake.total

    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = handle
    fake.nvmlDeviceGetTotalEnergyConsumption = total
    monkeypatch.setattr(energy, "pynvml", fake)
    properties = SimpleNamespace(uuid="01234567-89ab-cdef-0123-456789abcdef")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return fake


def test_a_gpu_is_found_by_its_uuid_and_counted_in_millijoules(nvml):
    meter = EnergyMeter(GPU)
    assert nvml.asked == ["GPU-01234567-89ab-cdef-0123-456789abcdef"]
    nvml.total = 7500
    assert (meter.source, meter.joules()) == ("nvml", 2.5)


def test_a_gpu_without_a_counter_has_no_energy(nvml):
    meter = EnergyMeter(GPU)
    nvml.total = None
    assert meter.joules() is None
    assert EnergyMeter(GPU).source is None


def test_the_energy_of_a_call_is_that_of_many(nvml, monkeypatch):
    def step():
        nvml.total += 200

    monkeypatch.setattr(energy, "timed", lambda step, device: step() or 0.3)
    assert energy_of(step, GPU, seconds=1.0) == pytest.approx(0.2)
    assert nvml.total == 5000 + 4 * 200
    nvml.total = None
    assert energy_of(step, GPU, seconds=1.0) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_products_cost_energy_on_a_gpu():
    meter = EnergyMeter(GPU)
    if meter.source is None:
        pytest.skip("this GPU or this environment has no counter of energy")
    matrix = torch.ones(8192, 8192, device=GPU, dtype=torch.bfloat16)
    for _ in range(1000):
        matrix @ matrix
    torch.cuda.synchronize()
    # A second of a data-centre GPU: more than a watt, less than ten kilowatts.
    assert 1 < meter.joules() < 10_000
