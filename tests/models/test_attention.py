"""Attentions against `transformers`, and decoding with a cache against the whole sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config, Qwen2Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.models import build_model
from harness.models.attention import make_attention
from harness.models.cache import make_layer_cache
from harness.models.rotary import rotary_angles

LENGTH = 13
ROPE_THETA = 5000.0
EPS = 1e-6
LATENT = {"kind": "mla", "num_attention_heads": 4, "kv_lora_rank": 20, "qk_nope_head_dim": 10,
          "qk_rope_head_dim": 6, "v_head_dim": 12}  # fmt: skip
ATTENTIONS = {
    "mha": {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 4},
    "gqa": {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10},
    "mqa": {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 1},
    "mla": LATENT,
    "mla_query_latent": LATENT | {"q_lora_rank": 18},
    "mla_wide_values": LATENT | {"v_head_dim": 24},
    "mla_equal_widths": LATENT | {"v_head_dim": 16},
}
# Every attention in every form that it can be cached in.
CACHED = [(name, "absorbed") for name in ATTENTIONS] + [
    (name, "naive") for name in ATTENTIONS if name.startswith("mla")
]


def decoder_spec(attention, **options):
    spec = {"family": "decoder", "hidden_size": 32, "num_hidden_layers": 2,
            "attention": attention, "rope_theta": ROPE_THETA, "rms_norm_eps": EPS,
            "feed_forward": {"kind": "swiglu", "intermediate_size": 48}}  # fmt: skip
    return validate(DecoderSpec, spec | options, "test")


def random_attention(spec, dtype=torch.float64):
    torch.manual_seed(0)
    attention = make_attention(spec).to(dtype)
    for parameter in attention.parameters():
        # Norms near one, matrices that make the softmax uneven.
        mean, std = (1.0, 0.2) if parameter.ndim == 1 else (0.0, 0.3)
        torch.nn.init.normal_(parameter, mean, std)
    return attention


def states(batch=2, length=LENGTH, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, 32, generator=generator, dtype=torch.float64).to(dtype)


def angles(spec, start, length):
    return rotary_angles(start, length, spec.rotary_dim, spec.rope_theta, torch.device("cpu"))


def cached(attention, spec, x, form, ends, memory=None):
    """Return the outputs of the chunks of ``x`` that end at ``ends``, fed one after the other."""
    if memory is None:
        memory = make_layer_cache(spec, len(x), x.shape[1], form, x.dtype, x.device)
        for tensor in memory.values():
            # What has not been written must not be read.
            tensor.fill_(float("nan"))
    outputs, start = [], 0
    for end in ends:
        chunk = x[:, start:end]
        outputs.append(attention(chunk, angles(spec, start, end - start), memory, start))
        start = end
    return torch.cat(outputs, dim=1)


def reference_latent(attention, spec):
    options = spec.attention
    config = DeepseekV3Config(
        hidden_size=spec.hidden_size,
        num_attention_heads=options.num_attention_heads,
        num_key_value_heads=options.num_attention_heads,
        q_lora_rank=options.q_lora_rank,
        kv_lora_rank=options.kv_lora_rank,
        qk_nope_head_dim=options.qk_nope_head_dim,
        qk_rope_head_dim=options.qk_rope_head_dim,
        v_head_dim=options.v_head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attn_implementation="eager",
    )
    names = {"query": "q_proj", "query_down": "q_a_proj", "query_norm": "q_a_layernorm",
             "query_up": "q_b_proj", "key_value_norm": "kv_a_layernorm",
             "key_value_up": "kv_b_proj", "output": "o_proj"}  # fmt: skip
    ours = {name.removesuffix(".weight"): value for name, value in attention.state_dict().items()}
    joined = torch.cat((ours.pop("key_value_down"), ours.pop("key_rope")))
    theirs = DeepseekV3Attention(config, layer_idx=0).double().eval()
    theirs.load_state_dict(
        {f"{names[name]}.weight": value for name, value in ours.items()}
        | {"kv_a_proj_with_mqa.weight": joined}
    )

    def gradients():
        found = {name.removesuffix(".weight"): p.grad for name, p in theirs.named_parameters()}
        split = (options.kv_lora_rank, options.qk_rope_head_dim)
        down, rope = found["kv_a_proj_with_mqa"].split(split)
        return {f"{name}.weight": found[names[name]] for name in ours} | {
            "key_value_down.weight": down,
            "key_rope.weight": rope,
        }

    return theirs, gradients


def reference_qwen(attention, spec):
    options = spec.attention
    config = Qwen2Config(
        hidden_size=spec.hidden_size,
        num_attention_heads=options.num_attention_heads,
        num_key_value_heads=options.num_key_value_heads,
        attn_implementation="eager",
    )
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}

    def renamed(name):
        part, kind = name.split(".")
        return f"{names[part]}.{kind}"

    theirs = Qwen2Attention(config, layer_idx=0).double().eval()
    theirs.load_state_dict({renamed(k): v for k, v in attention.state_dict().items()})

    def gradients():
        found = {name: p.grad for name, p in theirs.named_parameters()}
        return {name: found[renamed(name)] for name, _ in attention.named_parameters()}

    return theirs, gradients


@pytest.mark.parametrize(
    ("attention", "reference"),
    [
        (LATENT, reference_latent),
        (LATENT | {"q_lora_rank": 18}, reference_latent),
        (LATENT | {"v_head_dim": 24}, reference_latent),
        ({**ATTENTIONS["mha"], "num_key_value_heads": 2, "attention_bias": True}, reference_qwen),
        ({**ATTENTIONS["mha"], "attention_bias": True}, reference_qwen),
    ],
)
def test_outputs_and_gradients_equal_transformers(attention, reference):
    spec = decoder_spec(attention)
    ours = random_attention(spec)
    theirs, their_gradients = reference(ours, spec)
    x = states().requires_grad_()
    same_x = x.detach().clone().requires_grad_()
    cosine, sine = (part.double() for part in angles(spec, 0, LENGTH))
    mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1).double()
    output = ours(x, (cosine, sine))
    expected, _ = theirs(same_x, (cosine[None], sine[None]), mask)
    # The reference takes softmax and norms in float32.
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    output.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(x.grad, same_x.grad, rtol=1e-4, atol=1e-6)
    gradients = their_gradients()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.norm() > 1e-3, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "ends",
    [[LENGTH], [7, LENGTH], [1, 4, 5, 9, LENGTH], list(range(1, LENGTH + 1))],
    ids=["prefill", "chunk", "chunks", "token_by_token"],
)
@pytest.mark.parametrize(("name", "form"), CACHED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cached_attention_equals_that_of_training(name, form, ends, dtype, tolerance):
    spec = decoder_spec(ATTENTIONS[name])
    attention, x = random_attention(spec, dtype), states(dtype=dtype)
    expected = attention(x, angles(spec, 0, LENGTH))
    with torch.no_grad():
        output = cached(attention, spec, x, form, ends)
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(
    cached_as=st.sampled_from(CACHED),
    batch=st.integers(1, 3),
    cuts=st.sets(st.integers(1, LENGTH - 1)),
)
def test_cuts_into_chunks_do_not_matter(cached_as, batch, cuts):
    name, form = cached_as
    spec = decoder_spec(ATTENTIONS[name])
    attention, x = random_attention(spec), states(batch)
    with torch.no_grad():
        whole = attention(x, angles(spec, 0, LENGTH))
        output = cached(attention, spec, x, form, [*sorted(cuts), LENGTH])
    torch.testing.assert_close(output, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "form"), CACHED)
def test_rejected_tokens_leave_no_trace(name, form):
    spec = decoder_spec(ATTENTIONS[name])
    attention, x = random_attention(spec), states()
    memory = make_layer_cache(spec, 2, LENGTH, form, x.dtype, x.device)
    rejected = torch.cat((x[:, :6], x[:, :4] + 1), dim=1)
    with torch.no_grad():
        expected = attention(x, angles(spec, 0, LENGTH))
        cached(attention, spec, rejected, form, [6, 10], memory)
        output = attention(x[:, 6:], angles(spec, 6, LENGTH - 6), memory, 6)
    torch.testing.assert_close(output, expected[:, 6:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "form"), CACHED)
def test_a_cache_may_be_of_a_narrower_type(name, form):
    spec = decoder_spec(ATTENTIONS[name])
    attention, x = random_attention(spec, torch.float32), states(dtype=torch.float32)
    memory = make_layer_cache(spec, 2, LENGTH, form, torch.bfloat16, x.device)
    with torch.no_grad():
        expected = attention(x, angles(spec, 0, LENGTH))
        output = cached(attention, spec, x, form, range(1, LENGTH + 1), memory)
    # Bfloat16 rounds by at most 2^-9, which a few products amplify.
    error = (output - expected).norm() / expected.norm()
    assert 0 < error < 0.03


@pytest.mark.parametrize(("name", "form"), CACHED)
def test_input_beyond_the_capacity_is_refused(name, form):
    spec = decoder_spec(ATTENTIONS[name])
    attention, x = random_attention(spec), states()
    memory = make_layer_cache(spec, 2, LENGTH - 1, form, x.dtype, x.device)
    with pytest.raises(AssertionError, match="holds 12 positions, the input ends at 13"):
        cached(attention, spec, x, form, [7, LENGTH], memory)


@pytest.mark.parametrize(("name", "form"), CACHED)
def test_a_decoder_with_a_cache_gives_the_logits_of_one_without(name, form):
    torch.manual_seed(0)
    model = build_model(decoder_spec(ATTENTIONS[name]), vocab_size=31).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(31, (2, LENGTH))
    cache = model.new_cache(2, LENGTH, form=form)
    with torch.no_grad():
        expected = model(tokens)
        parts = [model(part, cache) for part in tokens.split((5, 1, 4, 3), dim=1)]
    assert cache.length == LENGTH
    # Angles are in float32, whose sine and cosine may depend on how many are taken at once.
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-6, atol=1e-6)


# Published sizes; elements by the closed forms of arXiv 2405.04434, table 1, times two bytes.
DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "attention": {"kind": "mla", "num_attention_heads": 128, "q_lora_rank": 1536,
                  "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                  "v_head_dim": 128},
}  # fmt: skip
QWEN_72B = {
    "hidden_size": 8192,
    "attention": {"kind": "gqa", "num_attention_heads": 64, "num_key_value_heads": 8},
}
LLAMA_405B = {
    "hidden_size": 16384,
    "attention": {"kind": "gqa", "num_attention_heads": 128, "num_key_value_heads": 8},
}


@pytest.mark.parametrize(
    ("sizes", "layers", "form", "bytes_per_token"),
    [
        (DEEPSEEK_V3, 61, "absorbed", 70_272),  # arXiv 2505.09343, table 1
        (DEEPSEEK_V3, 61, "naive", 61 * 128 * (192 + 128) * 2),
        (QWEN_72B, 80, "absorbed", 327_680),  # table 1
        (LLAMA_405B, 126, "naive", 516_096),  # table 1
    ],
)
def test_caches_have_the_published_bytes_per_token(sizes, layers, form, bytes_per_token):
    spec = decoder_spec(**sizes, num_hidden_layers=layers)
    with torch.device("meta"):
        model = build_model(spec, vocab_size=8)
    cache = model.new_cache(3, 1000, form=form, dtype=torch.bfloat16)
    assert cache.nbytes == 3 * 1000 * bytes_per_token


def test_modules_of_multi_token_prediction_have_a_cache_each():
    plain = decoder_spec(ATTENTIONS["gqa"])
    with torch.device("meta"):
        model = build_model(plain, vocab_size=8)
        deeper = build_model(decoder_spec(ATTENTIONS["gqa"], prediction={"depth": 2}), vocab_size=8)
    assert len(model.new_cache(1, 5).layers) == 2
    assert len(deeper.new_cache(1, 5).layers) == 4


def test_autocast_equals_single_precision_to_bfloat16_and_norms_stay_in_float32():
    spec = decoder_spec(ATTENTIONS["mla_query_latent"])
    attention, x = random_attention(spec, torch.float32), states(dtype=torch.float32)
    types = set()
    for norm in (attention.query_norm, attention.key_value_norm):
        norm.register_forward_pre_hook(lambda _, inputs: types.add(inputs[0].dtype))
    expected = attention(x, angles(spec, 0, LENGTH))
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(x, angles(spec, 0, LENGTH))
        decoded = cached(attention, spec, x, "absorbed", range(1, LENGTH + 1))
    assert types == {torch.float32}
    for result in (output, decoded):
        assert result.dtype == torch.bfloat16
        assert (result - expected).norm() / expected.norm() < 0.03
