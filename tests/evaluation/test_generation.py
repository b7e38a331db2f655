"""Generation against recomputation without a cache and against `transformers`, in float64."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.evaluation.generation import GREEDY, Sampling, generate
from harness.models import build_model

VOCABULARY = 31
GQA = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2}
MLA = {"kind": "mla", "num_attention_heads": 2, "kv_lora_rank": 12, "qk_nope_head_dim": 6,
       "qk_rope_head_dim": 4, "v_head_dim": 5}  # fmt: skip
PARTS = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "embedding.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
}


def build(attention):
    spec = {"family": "decoder", "hidden_size": 32, "num_hidden_layers": 2, "attention": attention,
            "feed_forward": {"kind": "swiglu", "intermediate_size": 48}}  # fmt: skip
    torch.manual_seed(0)
    model = build_model(validate(ModelSpec, spec, "test"), vocab_size=VOCABULARY).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def as_llama(model):
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         rms_norm_eps=1e-5, tie_word_embeddings=False)  # fmt: skip
    llama = LlamaForCausalLM(config).double().eval()

    def their_name(name):
        if name in PARTS:
            return PARTS[name]
        _, layer, part = name.split(".", 2)
        return f"model.layers.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"

    llama.load_state_dict({their_name(name): w for name, w in model.state_dict().items()})
    return llama


def prompts(count: int, length: int):
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def recomputed(model, tokens, new_tokens, sampling, generator):
    for _ in range(new_tokens):
        probabilities = sampling.probabilities(model(tokens)[:, -1])
        tokens = torch.cat((tokens, sampling.draw(probabilities, generator)[:, None]), dim=1)
    return tokens[:, -new_tokens:]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=0.7, top_k=5)])
@pytest.mark.parametrize(
    ("attention", "form"), [(GQA, "absorbed"), (MLA, "absorbed"), (MLA, "naive")]
)
def test_tokens_equal_those_recomputed_without_a_cache(attention, form, sampling):
    model, start = build(attention), prompts(3, 5)
    tokens = generate(model, start, 12, sampling=sampling, form=form,
                      generator=torch.Generator().manual_seed(2))  # fmt: skip
    expected = recomputed(model, start, 12, sampling, torch.Generator().manual_seed(2))
    assert torch.equal(tokens, expected)
    assert len(tokens.unique()) > 5


@pytest.mark.parametrize("ends", [False, True])
def test_greedy_tokens_equal_those_of_transformers(ends):
    model, start = build(GQA), prompts(3, 5)
    # A token that one of the sequences reaches before the others.
    end_token = generate(model, start, 12)[0, 4].item() if ends else None
    tokens = generate(model, start, 12, end_token=end_token)
    llama = as_llama(model)
    llama.generation_config.eos_token_id = llama.generation_config.pad_token_id = end_token
    expected = llama.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=12,
                              do_sample=False)  # fmt: skip
    assert torch.equal(tokens, expected[:, 5:])
    if ends:
        assert (tokens[0, 4:] == end_token).all()
        assert not (tokens[1:] == end_token).all(dim=1).any()


def test_generation_stops_once_all_sequences_have_ended():
    model, start = build(GQA), prompts(1, 5)
    tokens = generate(model, start, 12)
    end_token = tokens[0, 4].item()
    first = tokens[0].tolist().index(end_token)
    assert torch.equal(generate(model, start, 12, end_token=end_token), tokens[:, : first + 1])


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.3, None), (2.5, 4), (1.0, 99)])
def test_probabilities_equal_those_of_transformers(temperature, top_k):
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0))
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    probabilities = Sampling(temperature=temperature, top_k=top_k).probabilities(logits)
    torch.testing.assert_close(probabilities, expected.softmax(-1), rtol=1e-6, atol=0)


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    sampling, count = Sampling(), 20_000
    p = sampling.probabilities(torch.tensor([[0.0, 1.0, -1.0, 2.0]])).expand(count, -1)
    drawn = sampling.draw(p, torch.Generator().manual_seed(0)).bincount() / count
    # Four standard errors of a share.
    assert ((drawn - p[0]).abs() < 4 * (p[0] * (1 - p[0]) / count).sqrt()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature: found -1.0, expected 0 or more"),
        ({"top_k": 0}, "top_k: found 0, expected 1 or more, or None"),
    ],
)
def test_impossible_sampling_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


@pytest.mark.parametrize(
    ("shape", "new_tokens", "message"),
    [((2, 0), 3, r"prompts: found shape \(2, 0\)"), ((2, 3), 0, "new_tokens: found 0")],
)
def test_an_impossible_request_is_refused(shape, new_tokens, message):
    with pytest.raises(ValueError, match=message):
        generate(build(GQA), prompts(*shape), new_tokens)
