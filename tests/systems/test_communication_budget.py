"""Matrix products on fewer multiprocessors against list scheduling and the built model."""

import heapq
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_values import assert_told_apart, only

from harness.config.catalog import load_models
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.models.counts import count_parameters, matrix_parameters
from harness.systems.communication_budget import communication_budget, wave_speed
from harness.systems.layer_products import layer_products
from harness.systems.wave_quantization import Product, Tile, efficiency, product_time, waves
from paper_figures import communication_budget as figure

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENT = read_yaml(CONFIG / "experiments" / "communication_budget.yaml")
MODELS = load_models(CONFIG / "models.yaml")
V3 = MODELS["deepseek_v3"]
GIVEN = {"models": {"deepseek_v3": V3}} | EXPERIMENT["arguments"]
TILES = [Tile(128, 128), Tile(128, 256)]
PRODUCTS = st.builds(Product, st.integers(1, 5000), st.integers(1, 500), st.integers(1, 5000),
                     st.integers(1, 8))  # fmt: skip
UNITS = st.integers(1, 150)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return communication_budget(**GIVEN)


def scheduled(tiles: int, units: int) -> int:
    """Return when the last of equal tiles ends if each goes to the unit that is free first."""
    free = [0] * units
    for _ in range(tiles):
        heapq.heapreplace(free, free[0] + 1)
    return max(free)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


def test_tiles_of_the_published_example():
    # NVIDIA's guide: 1792 x 1792 in tiles of 256 x 128 are 7 x 14, one wave of 108 units.
    product = Product(1792, 4096, 1792)
    assert product.tiles(Tile(256, 128)) == 98
    assert waves(product, Tile(256, 128), 108) == 1
    assert waves(Product(1793, 4096, 1793), Tile(256, 128), 108) == 2


@given(PRODUCTS, UNITS)
def test_waves_are_what_a_schedule_takes_that_never_idles(product, units):
    assert waves(product, TILES[0], units) == scheduled(product.tiles(TILES[0]), units)


@given(PRODUCTS, UNITS)
def test_units_are_never_more_than_fully_used(product, units):
    assert 0 < efficiency(product, TILES, units) <= 1


@given(st.lists(PRODUCTS, min_size=1, max_size=4), st.integers(2, 150), st.data())
def test_speed_never_rises_with_a_unit_taken(products, units, data):
    taken = data.draw(st.integers(0, units - 2))
    speeds = [wave_speed(products, TILES, units, n) for n in (0, taken, taken + 1)]
    assert speeds[0] == 1
    assert speeds[2] <= speeds[1] <= 1


@given(UNITS, st.integers(0, 100))
def test_many_tiles_lose_in_proportion(units, taken):
    taken = min(taken, units - 1)
    many = [Product(128 * 10**6, 64, 128)]
    speed = wave_speed(many, [Tile(128, 128)], units, taken)
    assert speed == pytest.approx(1 - taken / units, rel=2e-4)


@given(PRODUCTS, UNITS)
def test_more_tiles_to_choose_from_are_never_slower(product, units):
    assert product_time(product, TILES, units) <= product_time(product, TILES[:1], units)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2_lite", "qwen2_5_72b"])
def test_products_of_all_layers_are_the_matrices_that_a_token_uses(name):
    spec = MODELS[name]
    products = [product for layer in range(spec.num_hidden_layers)
                for product in layer_products(spec, layer, tokens=1024).values()]  # fmt: skip
    counted = matrix_parameters(spec) - count_parameters(spec)["head"].matrices
    assert sum(product.multiply_adds for product in products) == 1024 * counted


def test_devices_share_experts_and_their_tokens():
    alone, shared = (layer_products(V3, 3, 4096, devices) for devices in (1, 64))
    assert shared["expert_down"] == Product(8192, 2048, 7168, group=4)
    assert shared["expert_down"].multiply_adds == alone["expert_down"].multiply_adds


def test_twenty_of_132_are_fifteen_percent_and_cost_the_layer_about_as_much(records):
    lost = 1 - only(records, "budget/speed", communicating=20, method="proportional")
    assert lost == pytest.approx(0.152, abs=0.0005)
    layer = only(records, "budget/speed", communicating=20, product="layer", tile="best")
    assert layer == pytest.approx(1 - lost, abs=0.01)


def test_figure_has_a_line_for_every_tile_and_product(records, results_of):
    [(_, drawn)] = figure.draw(results_of("communication_budget", records)).values()
    left, right = ({line.get_label() for line in ax.lines} for ax in drawn.axes)
    assert {"proportional", "best", *GIVEN["budget"]["tiles"]} <= left
    assert {"proportional", *layer_products(V3, 3, 4096)} <= right


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("budget", "largest"), 132, "budget.*found 132, expected less than the 132 units"),
        (("budget", "tiles"), {}, "budget.tiles: found {}"),
        (("budget", "tiles", "128x128"), [128], "budget.tiles.128x128"),
        (("layers", "experts", "devices"), 60, "experts.devices: found 60, expected a divisor"),
        (("layers", "experts", "layer"), 61, "experts.layer: found 61, expected at most 60"),
        (("layers", "experts"), {"layer": 3, "tokens": 1, "devices": 16}, "tokens: found 1, expec"),
    ],
)
def test_bad_arguments_are_named(path, value, message):
    changed = deepcopy(GIVEN)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        communication_budget(**changed)
