"""Parts of a decoder that do not fit are refused with the rule and the nearest valid value."""

from pathlib import Path

import pytest

from harness.config.base import validate
from harness.config.catalog import load_catalog, load_models
from harness.config.model_schema import ModelSpec
from harness.config.yaml_file import merge
from harness.errors import UserError
from harness.models.counts import activated_parameters, matrix_parameters, total_parameters

CONFIG = Path(__file__).parents[2] / "config"
DENSE = {
    "family": "decoder",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "attention": {"kind": "gqa", "num_attention_heads": 8, "num_key_value_heads": 4},
    "feed_forward": {"kind": "swiglu", "intermediate_size": 384},
}
MLA = {"attention": {"kind": "mla", "num_attention_heads": 8, "kv_lora_rank": 128,
                     "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}}  # fmt: skip
EXPERTS = {"feed_forward": {"kind": "moe", "moe_intermediate_size": 128, "n_routed_experts": 16,
                            "num_experts_per_tok": 4}}  # fmt: skip
GROUPS = {"n_group": 4, "topk_group": 2}
FP8 = {"linear": {"scaling": "block"}}

REFUSED = {
    "key-value heads": (
        {"attention": {"num_key_value_heads": 3}},
        "num_key_value_heads 3 does not divide num_attention_heads 8; the nearest valid value is 2",
    ),
    "heads": (
        {"attention": {"num_attention_heads": 12}},
        "num_attention_heads 12 does not divide hidden_size 256",
    ),
    "odd rotary width": (
        merge(MLA, {"attention": {"qk_rope_head_dim": 15}}),
        "qk_rope_head_dim 15 is odd, rotary positions need an even one; the nearest valid value is",
    ),
    "more experts than there are": (
        merge(EXPERTS, {"feed_forward": {"num_experts_per_tok": 17}}),
        "num_experts_per_tok 17 is above n_routed_experts 16; expected at most 16",
    ),
    "uneven groups": (
        merge(EXPERTS, {"feed_forward": {"n_group": 5}}),
        "n_group 5 does not divide n_routed_experts 16; the nearest valid value is 4",
    ),
    "more groups than there are": (
        merge(EXPERTS, {"feed_forward": GROUPS | {"topk_group": 5}}),
        "topk_group 5 is above n_group 4; expected at most 4",
    ),
    "groups that leave too few experts": (
        merge(EXPERTS, {"feed_forward": {"n_group": 8, "topk_group": 1}}),
        "topk_group 1 leaves 2 experts, fewer than num_experts_per_tok 4; expected topk_group of "
        "at least 2",
    ),
    "groups of one expert": (
        merge(EXPERTS, {"feed_forward": {"n_group": 16, "topk_group": 8}}),
        "n_group 16 leaves groups of 1 expert, group_score sum_of_top_two needs at least 2; "
        "expected n_group of at most 8",
    ),
    "dense layers without a width": (
        merge(EXPERTS, {"feed_forward": {"first_k_dense_replace": 1}}),
        "intermediate_size is missing",
    ),
    "only dense layers": (
        merge(EXPERTS, {"feed_forward": {"first_k_dense_replace": 2, "intermediate_size": 384}}),
        "first_k_dense_replace 2 leaves no layer of 2 with experts; expected at most 1",
    ),
    "feed-forward between two blocks": (
        merge(FP8, {"feed_forward": {"intermediate_size": 400}}),
        "intermediate_size is 400, not a multiple of linear.block_size 128; the nearest is 384",
    ),
    "latent between two blocks": (
        merge(merge(MLA, FP8), {"attention": {"kv_lora_rank": 200}}),
        "kv_lora_rank is 200, not a multiple of linear.block_size 128; the nearest is 256",
    ),
    "experts between two blocks": (
        merge(merge(EXPERTS, FP8), {"feed_forward": {"moe_intermediate_size": 100}}),
        "moe_intermediate_size is 100, not a multiple of linear.block_size 128; the nearest is 128",
    ),
    "square blocks without blocks": (
        {"linear": {"scaling": "row", "square_gradient_blocks": True}},
        "square_gradient_blocks needs scaling block, found row",
    ),
    "tiles of a combine": (
        {"combine": {"format": "logfmt8", "tile": 96}},
        "hidden_size is 256, not a multiple of combine.tile 96; the nearest is 288",
    ),
    "unknown format": ({"combine": {"format": "e3m4"}}, "combine.format: found 'e3m4'"),
    "key of another kind": (
        {"attention": {"kv_lora_rank": 64}},
        "unknown key 'kv_lora_rank'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_the_rule(name):
    overlay, expected = REFUSED[name]
    with pytest.raises(UserError) as caught:
        validate(ModelSpec, merge(DENSE, overlay), "models.yaml: mine")
    text = str(caught.value)
    assert text.startswith("models.yaml: mine")
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "parts", [MLA, EXPERTS, merge(MLA, EXPERTS), merge(merge(MLA, EXPERTS), FP8)]
)
def test_parts_combine(parts):
    prediction = {"prediction": {"depth": 2}}
    validate(ModelSpec, merge(merge(DENSE, parts), prediction), "models.yaml: mine")


def test_a_part_of_another_kind_replaces_the_inherited_one(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text(
        (CONFIG / "models.yaml").read_text()
        + "latent: {variant_of: decoder_small, attention: {kind: mla, num_attention_heads: 4, "
        "kv_lora_rank: 64, qk_nope_head_dim: 32, qk_rope_head_dim: 16, v_head_dim: 32}}\n"
        "wider: {variant_of: latent, hidden_size: 256}\n"
    )
    models = load_models(path)
    assert models["wider"].attention == models["latent"].attention
    assert models["wider"].feed_forward == models["decoder_small"].feed_forward


def test_models_that_vary_each_other_are_refused(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text("a: {variant_of: b}\nb: {variant_of: a}\n")
    with pytest.raises(UserError, match=r"a\.variant_of: 'b' is a variant of 'a'|b\.variant_of"):
        load_models(path)


@pytest.mark.parametrize("scale", ["smoke", "gpu", "paper"])
def test_compared_attentions_are_of_equal_size_and_experts_of_equal_work(scale):
    catalog = load_catalog(CONFIG, scale)

    def specs(experiment: str):
        entry = catalog.experiments[experiment]
        return {name: catalog.models[model] for model, name in entry.model_names.items()}

    sizes = [total_parameters(spec, 512) for spec in specs("attention_kinds").values()]
    assert max(sizes) / min(sizes) < 1.01
    work = {name: matrix_parameters(spec, 512) for name, spec in specs("experts").items()}
    # The gate is what the dense model does not have.
    assert 1 <= work["experts"] / work["dense"] < 1.06
    experts = specs("experts")["experts"]
    assert total_parameters(experts, 512) > activated_parameters(experts, 512)
