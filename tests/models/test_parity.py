"""The whole decoder against `transformers`, which loads the same weights from an exported folder.

In float64 the reference is made as exact as ours: torch's norms take the place of its own, which
compute in float32, and `rope_theta` is 2^16 with rotary widths that divide 32, so that the
frequencies are powers of two, exact in float32 on both sides. What stays in float32 is the routing
of its experts and, in DeepSeek-V2, the rotation: there the tolerance is 1e-5 instead of 1e-11.
"""

import copy
import re

import pytest
import torch
from torch.nn.functional import rms_norm
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_layers import MtpModel

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.interchange.folder import export_folder, import_folder
from harness.interchange.weights import publish
from harness.models.decoder import Decoder

# Layers without shared experts have some of width 0 in `transformers`.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
VOCABULARY, LENGTH = 61, 17


def grouped(**options):
    return {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2, **options}


def latent(**options):
    return {"kind": "mla", "num_attention_heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4, "v_head_dim": 10, **options}  # fmt: skip


def dense():
    return {"kind": "swiglu", "intermediate_size": 48}


def experts(**options):
    return {"kind": "moe", "moe_intermediate_size": 16, "n_routed_experts": 8,
            "num_experts_per_tok": 3, "routed_scaling_factor": 2.5, **options}  # fmt: skip


GROUPS = {"n_group": 4, "topk_group": 2}
FIRST_DENSE = {"first_k_dense_replace": 1, "intermediate_size": 40}
SOFTMAX = {"scoring_func": "softmax", "group_score": "max", "norm_topk_prob": False}
PUBLISHED_EPS = {"rms_norm_eps": 1e-6}
DENSE = {
    "llama": {"attention": grouped(), "feed_forward": dense()},
    "llama-multi_head": {
        "attention": grouped(num_key_value_heads=4), "feed_forward": dense()
    },
    "llama-multi_query-wide-tied": {
        "attention": grouped(num_key_value_heads=1, head_dim=16), "feed_forward": dense(),
        "tie_word_embeddings": True,
    },
    "llama-biases": {"attention": grouped(attention_bias=True), "feed_forward": dense()},
    "v3-dense": {"attention": latent(), "feed_forward": dense(), **PUBLISHED_EPS},
    "v3-dense-query_latent-tied": {
        "attention": latent(q_lora_rank=10), "feed_forward": dense(),
        "tie_word_embeddings": True, **PUBLISHED_EPS,
    },
}  # fmt: skip
EXPERTS = {
    "glm": {"attention": grouped(head_dim=16), "feed_forward": experts(n_shared_experts=1)},
    "glm-biases-groups-first_dense-predicts": {
        "attention": grouped(attention_bias=True),
        "feed_forward": experts(n_shared_experts=2, **GROUPS, **FIRST_DENSE),
        "prediction": {"depth": 1},
    },
    "v3": {
        "attention": latent(), "feed_forward": experts(norm_topk_prob=False), **PUBLISHED_EPS
    },
    "v3-query_latent-groups-shared-first_dense": {
        "attention": latent(q_lora_rank=10),
        "feed_forward": experts(n_shared_experts=2, **GROUPS, **FIRST_DENSE), **PUBLISHED_EPS,
    },
    "v3-predicts_two-tied": {
        "attention": latent(), "feed_forward": experts(n_shared_experts=1),
        "prediction": {"depth": 2}, "tie_word_embeddings": True, **PUBLISHED_EPS,
    },
    "v2": {
        "attention": latent(q_lora_rank=10),
        "feed_forward": experts(n_shared_experts=1, **SOFTMAX), **PUBLISHED_EPS,
    },
    "v2-groups-first_dense": {
        "attention": latent(),
        "feed_forward": experts(n_shared_experts=2, **SOFTMAX, **GROUPS, **FIRST_DENSE),
        **PUBLISHED_EPS,
    },
}  # fmt: skip
CASES = DENSE | EXPERTS
PREDICTING = [name for name, case in CASES.items() if "prediction" in case]
LATENT = [name for name, case in CASES.items() if case["attention"]["kind"] == "mla"]


def decoder(case):
    shared = {"family": "decoder", "hidden_size": 32, "num_hidden_layers": 3, "rope_theta": 2.0**16}
    spec = validate(DecoderSpec, shared | case, "test")
    torch.manual_seed(0)
    model = Decoder(spec, VOCABULARY).double().eval()
    # Wide enough for every part to matter, biases of the routing too.
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.3)
    for mixture in model.mixtures:
        if mixture.moe.scoring_func == "sigmoid":
            torch.nn.init.normal_(mixture.routing_bias, std=0.2)
    return model


def widen(reference):
    """Compute the norms of a model of `transformers` in the type of their input."""
    for module in reference.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: rms_norm(
                x, norm.weight.shape, norm.weight, norm.variance_epsilon
            )


def load(folder):
    # The default implementation of experts has no float64.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", experts_implementation="eager", output_loading_info=True
    )


def imported(folder):
    spec, state = import_folder(folder)
    model = Decoder(spec, VOCABULARY).double().eval()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return what makes our model, theirs in float64 and in float32, and the report of loading."""
    made = {}

    def pair(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("folder") / "model"
            ours = decoder(CASES[name])
            export_folder(ours, folder, max_position_embeddings=LENGTH)
            theirs, said = load(folder)
            narrow = copy.deepcopy(theirs).float()
            widen(theirs)
            made[name] = ours, theirs, narrow, said
        return made[name]

    return pair


def draw_tokens():
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def tolerance(name):
    return {"rtol": 0, "atol": 1e-11 if name in DENSE else 1e-5}


def architecture(name):
    letters = {"llama": "Llama", "glm": "Glm4Moe", "v3": "DeepseekV3", "v2": "DeepseekV2"}
    return f"{letters[name.partition('-')[0]]}ForCausalLM"


@pytest.mark.parametrize("name", CASES)
def test_a_folder_has_all_tensors_of_its_architecture_and_no_others(pairs, name):
    ours, theirs, _, said = pairs(name)
    assert type(theirs).__name__ == architecture(name)
    assert theirs.dtype == torch.float64
    assert not said["missing_keys"]
    assert not said["mismatched_keys"]
    # The modules of multi-token prediction follow the layers, as in the released weights.
    modules = ours.spec.prediction.depth if ours.spec.prediction else 0
    layers = {int(re.match(r"model\.layers\.(\d+)\.", key)[1]) for key in said["unexpected_keys"]}
    assert layers == set(range(3, 3 + modules))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_in_float64(pairs, name):
    ours, theirs, *_ = pairs(name)
    tokens = draw_tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **tolerance(name))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_in_float32(pairs, name):
    ours, _, theirs, _ = pairs(name)
    tokens = draw_tokens()
    with torch.no_grad():
        logits = copy.deepcopy(ours).float()(tokens)
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def their_gradients(theirs, experts):
    """Yield gradients by published name; version 5 of `transformers` stacks the experts."""
    for name, parameter in theirs.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            gate, up = parameter.grad.chunk(2, dim=1)
            parts = {"gate_proj": gate, "up_proj": up}
        elif name.endswith("experts.down_proj"):
            parts = {"down_proj": parameter.grad}
        else:
            yield name, parameter.grad
            continue
        for part, gradients in parts.items():
            for expert in range(experts):
                yield f"{name.rpartition('.')[0]}.{expert}.{part}.weight", gradients[expert]


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal(pairs, name):
    ours, theirs, *_ = pairs(name)
    ours.zero_grad()
    theirs.zero_grad()
    tokens = draw_tokens()
    ours(tokens).square().mean().backward()
    theirs(tokens).logits.square().mean().backward()
    gradients = {
        key: torch.zeros_like(value) if value.grad is None else value.grad
        for key, value in ours.state_dict(keep_vars=True).items()
    }
    published = publish(ours.spec, gradients)
    compared = 0
    for key, gradient in their_gradients(theirs, experts=8):
        if key.endswith("o_proj.bias") or gradient.numel() == 0:
            continue
        torch.testing.assert_close(
            published[key].double(), gradient.double(), **tolerance(name),
            msg=lambda text, key=key: f"{key}: {text}",
        )  # fmt: skip
        compared += gradient.numel()
    main = [p for key, p in ours.named_parameters() if not key.startswith("prediction")]
    assert compared == sum(parameter.numel() for parameter in main)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "absorbed") for name in CASES] + [(name, "naive") for name in LATENT],
)
def test_decoding_with_a_cache_equals_one_pass(pairs, name, form):
    """A first part, then three tokens at once, then one at a time."""
    ours, theirs, *_ = pairs(name)
    tokens = draw_tokens()
    cache = ours.new_cache(len(tokens), LENGTH, form=form)
    with torch.no_grad():
        steps = [ours(part, cache) for part in tokens.split([7, 3] + [1] * 7, dim=1)]
        expected = theirs(tokens).logits
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, **tolerance(name))


@pytest.mark.parametrize("name", PREDICTING)
def test_states_of_multi_token_prediction_equal(pairs, name, monkeypatch):
    """`transformers` finds the modules of its own models only, by the number of their layers."""
    ours, theirs, *_ = pairs(name)
    monkeypatch.setattr(theirs, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[34]\."])
    modules = MtpModel.from_pretrained(theirs)
    widen(modules)
    tokens = draw_tokens()
    with torch.no_grad():
        features = ours.features(tokens)
        states = ours.prediction.states(features, ours.embedding(tokens))
        reference = theirs.model(tokens).last_hidden_state
        for depth, state in enumerate(states):
            positions = torch.arange(depth + 1, LENGTH).expand(2, -1)
            reference = modules.forward_layer(
                depth, reference[:, :-1], positions, None, input_ids=tokens[:, depth + 1 :]
            )
            torch.testing.assert_close(state, reference, **tolerance(name))
    assert depth + 1 == ours.spec.prediction.depth


@pytest.mark.parametrize("name", ["llama", "llama-biases", "v3", "v2", "glm"])
def test_a_model_that_transformers_saved_can_be_imported(pairs, name, tmp_path):
    _, theirs, *_ = pairs(name)
    theirs.save_pretrained(tmp_path)
    ours, tokens = imported(tmp_path), draw_tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **tolerance(name))


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2_can_be_imported(tied, tmp_path):
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 2.0**16},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = Qwen2ForCausalLM(config).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    widen(theirs)
    ours, tokens = imported(tmp_path), draw_tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["llama", "v3-dense"])
def test_other_frequencies_equal_as_far_as_float32_goes(name, tmp_path):
    ours = decoder(CASES[name] | {"rope_theta": 500000.0})
    export_folder(ours, tmp_path / "model", max_position_embeddings=LENGTH)
    theirs, _ = load(tmp_path / "model")
    tokens = draw_tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_the_loss_is_that_of_transformers(pairs):
    ours, theirs, *_ = pairs("llama")
    tokens = draw_tokens()
    with torch.no_grad():
        # transformers shifts the labels itself; both take logits to float32.
        expected = theirs(tokens, labels=tokens).loss
        found = ours.loss(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=0)
