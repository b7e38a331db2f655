"""What the commands `harness export` and `harness import` do."""

from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from harness.config.decoder_schema import DecoderSpec
from harness.data.text import read_manifest
from harness.errors import UserError, closest
from harness.files import new_folder, write_atomically
from harness.interchange.folder import export_folder, import_folder
from harness.interchange.write_config import without_unknown_modules
from harness.jobs.trained_model import load_trained
from harness.records.run_folder import RunFolder


def export_run(results: Path, run_id: str, output: Path) -> list[str]:
    """Write the trained decoder of a run, with its tokenizer, as a folder of Hugging Face.

    Returns:
        What the user should know, a line each.

    Raises:
        UserError: If there is no such run, it has no whole weights, it is no decoder that a
            published architecture computes, or ``output`` has something in it.
    """
    runs = results / "runs"
    known = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    if run_id not in known:
        hint = closest(run_id, known) if known else "; expected runs that training has left there"
        raise UserError(f"{runs}: found no run '{run_id}'{hint}")
    folder = RunFolder(runs, run_id)
    summary = folder.summary()
    status = "unfinished" if summary is None else summary["status"]
    if summary is None or status != "completed":
        raise UserError(f"{folder.path}: found a run that is {status}, expected a completed one")
    where = f"{folder.path / 'summary.json'}: spec.model"
    family = summary["spec"]["model"]["family"]
    if family != "decoder":
        raise UserError(f"{where}.family: found '{family}', expected 'decoder'")
    model = load_trained(folder, summary)
    export_folder(
        model,
        output,
        max_position_embeddings=summary["spec"]["training"]["sequence_length"],
        tokenizer_file=_tokenizer(results / "data", summary["spec"]["dataset"]),
        where=where,
    )
    return [f"wrote {output}", *_notes(model.spec)]


def import_model(folder: Path, output: Path) -> list[str]:
    """Write what a folder of Hugging Face holds as weights of the harness and an entry for models.

    Args:
        folder: Of Hugging Face.
        output: Gets `weights.safetensors` and `model.yaml`, whose entry has the name of this
            folder.

    Returns:
        What the user should know, a line each.

    Raises:
        UserError: If the harness has no such decoder or ``output`` has something in it.
    """
    spec, state = import_folder(folder)
    entry = {output.name: spec.model_dump(exclude_unset=True, exclude_none=True)}
    with new_folder(output) as partial:
        # Tied weights share storage, which safetensors refuses.
        save_file({k: v.clone() for k, v in state.items()}, partial / "weights.safetensors")
        text = yaml.safe_dump(entry, sort_keys=False)
        write_atomically(partial / "model.yaml", text.encode())
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    return [
        f"wrote {output}: {len(state)} tensors of type {' and '.join(types)}",
        f"{output / 'model.yaml'} is an entry for config/models.yaml",
    ]


def _tokenizer(data: Path, dataset: dict[str, Any]) -> Path:
    """Return the tokenizer of the prepared dataset whose specification is ``dataset``."""
    for manifest in sorted(data.glob("*/manifest.json")):
        if read_manifest(manifest.parent)["spec"] == dataset:
            return manifest.parent / "tokenizer.json"
    raise UserError(f"{data}: found no prepared dataset of this run; expected the one that it was "
                    "trained on, whose tokenizer belongs to the model")  # fmt: skip


def _notes(spec: DecoderSpec) -> list[str]:
    notes = []
    if spec.linear is not None:
        notes.append("the weights are the float32 ones that training in FP8 keeps: readers of the "
                     "folder compute products in a precision of their own")  # fmt: skip
    if spec.prediction != without_unknown_modules(spec).prediction:
        notes.append("the modules of multi-token prediction are left out: the architecture in "
                     "config.json has none, and logits do not depend on them")  # fmt: skip
    return notes
