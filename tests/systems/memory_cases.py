"""Decoders and deployments that the tests of memory share."""

from pathlib import Path

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec, SwiGLU
from harness.config.yaml_file import merge, read_yaml
from harness.systems.memory.cases import InferenceCase, TrainingCase

CONFIG = Path(__file__).parents[2] / "config"
MODELS = load_models(CONFIG / "models.yaml")
ARGUMENTS = read_yaml(CONFIG / "experiments" / "model_memory.yaml")["arguments"]
MIXED = {"weights": 2, "gradients": 2, "master_weights": 4, "moments": 8,
         "activations": "bfloat16"}  # fmt: skip
GQA = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2}
MLA = {"kind": "mla", "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
       "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}  # fmt: skip
SWIGLU = {"kind": "swiglu", "intermediate_size": 40}
MOE = {"kind": "moe", "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2,
       "n_shared_experts": 1, "first_k_dense_replace": 2, "intermediate_size": 40}  # fmt: skip


def decoder(attention=GQA, feed_forward=SWIGLU, layers=4, **more) -> DecoderSpec:
    return validate(
        DecoderSpec,
        {"family": "decoder", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": layers,
         "attention": attention, "feed_forward": feed_forward} | more,
        "test",
    )  # fmt: skip


# Latent attention at its published size, without the many experts.
LATENT = MODELS["deepseek_v3"].model_copy(
    update={"feed_forward": SwiGLU(intermediate_size=18432), "prediction": None}
)
DENSE, SPARSE = decoder(), decoder(MLA, MOE, layers=6, prediction={"depth": 1})


def training(**changes) -> TrainingCase:
    base = {"model": "m", "device_memory": 80, "layout": {"devices": 1}, "micro_batches": 8,
            "sequence_length": 16, "storage": MIXED}  # fmt: skip
    return validate(TrainingCase, merge(base, changes), "test")


def inference(**changes) -> InferenceCase:
    base = {"model": "m", "device_memory": 80, "layout": {"devices": 1}, "weight_bytes": 2,
            "batch": 3, "context": 20}  # fmt: skip
    return validate(InferenceCase, merge(base, changes), "test")


def of_kind(memory, *kinds: str) -> float:
    return sum(size for (_, kind), size in memory.items() if kind in kinds)
