"""A few rows of every standard task in the columns of the hub, and small decoders."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.models import build_model

Row = dict[str, Any]
GQA = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2}
MLA = {"kind": "mla", "num_attention_heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 8,
       "qk_rope_head_dim": 4, "v_head_dim": 8}  # fmt: skip
TEXTS = [
    "def spam(eggs):\n    return eggs + 1\n",
    "import os\n\nfor name in os.listdir('.'):\n    print(name)\n",
    "A caf\u00e9 costs 3 \u20ac; \u00bfno?",
    "The river is wide, so the boat takes an hour to reach the other side of the river.",
    "x" * 100,
]


class OnHub(NamedTuple):
    """Where lm-eval finds a task on the hub, the split that it evaluates, and rows of ours."""

    path: str
    name: str
    split: str
    rows: list[Row]


def _choices(question: str, key: str, answer: str, *texts: str) -> Row:
    labels = [chr(ord("A") + place) for place in range(len(texts))]
    return {"id": key, question: f"What is {key} of the river?", "answerKey": answer,
            "choices": {"text": list(texts), "label": labels}}  # fmt: skip


def _wsc(text: str, pronoun: str, options: list[str], label: int) -> Row:
    return {"text": text, "pronoun": pronoun, "pronoun_loc": text.index(f" {pronoun} ") + 1,
            "quote": "", "quote_loc": 0, "options": options, "label": label,
            "source": "made up"}  # fmt: skip


def _hellaswag(activity: str, start: str, more: str, label: str, *endings: str) -> Row:
    return {"ind": 1, "activity_label": activity, "ctx_a": start, "ctx_b": more,
            "ctx": f"{start} {more}", "endings": list(endings), "source_id": "none",
            "split": "val", "split_type": "indomain", "label": label}  # fmt: skip


ARC = [
    _choices("question", "the depth", "B", "one metre", "one", "one metre and a half", "ten"),
    _choices("question", "the width", "A", "a mile", "two miles", "wide"),
]
STANDARD = {
    "hellaswag": OnHub("Rowan/hellaswag", "default", "validation", [
        _hellaswag("Rowing", "A man rows [title] a boat. he", "", "2", "swims.", "swims away fast.",
                   "reaches the other side.", "[step] sings"),
        _hellaswag("Baking", "She mixes flour.", "she", "0", "bakes a cake.", "sleeps  long.",
                   "runs.", "bakes"),
        _hellaswag("Reading", "He opens a book.", "then", "3", "a", "b", "c", "reads it."),
    ]),
    "boolq": OnHub("aps/super_glue", "boolq", "validation", [
        {"passage": "Rivers flow to the sea.", "question": "do rivers flow", "idx": 0, "label": 1},
        {"passage": "Rivers flow to the sea.", "question": "are they dry", "idx": 1, "label": 0},
    ]),
    "piqa": OnHub("baber/piqa", "default", "validation", [
        {"goal": "cross a river", "sol1": "use a boat ", "sol2": "use a spoon", "label": 0},
        {"goal": "bake", "sol1": "heat the oven", "sol2": "heat", "label": 1},
    ]),
    "arc_easy": OnHub("allenai/ai2_arc", "ARC-Easy", "test", ARC),
    "arc_challenge": OnHub("allenai/ai2_arc", "ARC-Challenge", "test", ARC[::-1]),
    "openbookqa": OnHub("allenai/openbookqa", "main", "test", [
        _choices("question_stem", "the side", "A", "left", "right", "the left bank", "none"),
    ]),
    "sciq": OnHub("allenai/sciq", "default", "test", [
        {"question": "What flows?", "distractor1": "rock", "distractor2": "sand",
         "distractor3": "a stone", "correct_answer": "water", "support": " Water flows."},
        {"question": "What burns?", "distractor1": "water", "distractor2": "ice",
         "distractor3": "snow", "correct_answer": "wood", "support": ""},
    ]),
    "winogrande": OnHub("allenai/winogrande", "winogrande_xl", "validation", [
        {"sentence": "The boat fit the river because the _ was wide.", "option1": "river",
         "option2": "boat", "answer": "1"},
        {"sentence": "Ann thanked Eve as _ had helped her.", "option1": "Ann", "option2": "Eve",
         "answer": "2"},
    ]),
    "wsc273": OnHub("lighteval/winograd_wsc", "wsc273", "test", [
        _wsc("The boat left the bank because it was fast.", "it", ["The boat", "The bank"], 0),
        _wsc("Ann asked Eve for  her boat and left.", "her", ["Ann", "Eve"], 1),
    ]),
    "lambada_openai": OnHub("EleutherAI/lambada_openai", "default", "test", [
        {"text": "The river is wide and the boat is slow, so we wait for the boat"},
        {"text": "He said yes, and then he said it again: yes"},
    ]),
    "wikitext": OnHub("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", [
        {"page": " = River = \n\n A river is 1 @,@ 000 metres wide , and \" deep \" . \n" * 6},
        {"page": " = Boat = \n\n The boat 's side ( left ) . \n"},
    ]),
}  # fmt: skip


def write_rows(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def decoder(attention: dict[str, Any], vocabulary: int):
    spec = {"family": "decoder", "hidden_size": 32, "num_hidden_layers": 2,
            "attention": attention,
            "feed_forward": {"kind": "swiglu", "intermediate_size": 48}}  # fmt: skip
    torch.manual_seed(0)
    model = build_model(validate(ModelSpec, spec, "test"), vocab_size=vocabulary).eval()
    for name, parameter in model.named_parameters():
        # Confident enough that some greedy answers are right, and no two are alike.
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model
