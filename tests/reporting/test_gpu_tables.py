"""Tables of GPU measurements, from records whose medians are known."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.reporting.gpu_tables import gpu_tables


def tables(*records):
    frame = pd.DataFrame([
        {"metric": metric, "value": value, "labels": json.dumps(labels)}
        for metric, value, labels in records
    ])  # fmt: skip
    return list(gpu_tables(SimpleNamespace(of=lambda experiment: frame), "some"))


def test_streams_are_medians_over_rounds():
    pair = {"first": "gemm", "second": "host_to_device", "ratio": 1}
    records = []
    for measured, hidden in ((1.2, 0.2), (1.5, 0.5), (1.9, 0.9)):
        records += [
            ("streams/speedup", measured, pair | {"method": "measured"}),
            ("streams/speedup", 2.0, pair | {"method": "closed_form"}),
            ("streams/hidden_share", hidden, pair),
        ]
    [table] = tables(*records)
    row = table.numbers.iloc[0]
    assert (row["measured"], row["closed_form"], row["hidden_share"]) == (1.5, 2.0, 0.5)
    assert list(table.text.iloc[0])[3:] == ["1.50", "2.00", "50% (35% to 70%)"]


def test_products_stand_below_the_share_of_multiprocessors():
    product = {"shape": "square", "precision": "fp8", "sized_for": "budget", "method": "measured"}
    [table] = tables(
        ("gemm/supported", 1, {"what": "green contexts"}),
        *(("gemm/throughput_share", count / 132, {"method": "closed_form",
                                                  "multiprocessors": count})
          for count in (64, 112)),
        *(("gemm/throughput_share", share, product | {"multiprocessors": count})
          for count, share in ((64, 0.4), (64, 0.5), (64, 0.9), (112, 0.8))),
    )  # fmt: skip
    assert list(table.text.columns)[3:] == ["112 (84.8%)", "64 (48.5%)"]
    assert list(table.text.iloc[0]) == ["square", "fp8", "budget", "80.0%", "50.0%"]


def test_measured_sums_stand_beside_emulated_ones():
    place = {"distribution": "normal", "length": 4096}
    [table] = tables(
        ("tensor_cores/supported", 1, {}),
        ("tensor_cores/max_error", 0.01, place | {"promotion": "none", "method": "measured"}),
        ("tensor_cores/max_error", 0.03, place | {"promotion": "none", "method": "measured"}),
        ("tensor_cores/max_error", 0.002, place | {"promotion": 128, "method": "emulated"}),
        ("tensor_cores/equal_to_emulation", 0.75, place | {"promotion": "none"}),
    )
    row = table.numbers.iloc[0]
    assert row["measured, no promotion"] == pytest.approx(0.02)
    assert row["emulated, promoted every 128"] == pytest.approx(0.002)
    assert table.text.iloc[0]["equal sums, no promotion"] == "75.0%"


@pytest.mark.parametrize(
    ("metric", "labels", "shown"),
    [
        ("gemm/supported", {"what": "green contexts", "reason": "driver too old"},
         ["green contexts", "driver too old"]),
        ("tensor_cores/supported", {"what": "FP8 tensor cores", "reason": "this device has none"},
         ["FP8 tensor cores", "this device has none"]),
    ],
)  # fmt: skip
def test_what_a_device_does_not_have_is_said(metric, labels, shown):
    [table] = tables((metric, 0, labels))
    assert list(table.text.iloc[0]) == shown


def test_other_experiments_have_none_of_these_tables():
    assert not tables(("limit/communication", 1.0, {}))
