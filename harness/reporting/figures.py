"""Drawing every module of ``paper_figures`` and saving it as PNG, SVG and PDF."""

import importlib
import json
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.files import write_json
from harness.reporting.results import Results
from harness.reporting.style import house_style

FORMATS = ("png", "svg", "pdf")
INDEX = "index.json"
# Dates would make equal figures differ.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def modules() -> Iterator[ModuleType]:
    """Yield the figure modules in their ``ORDER``.

    Each has ``TITLE``, ``CAPTION``, ``ORDER`` and ``draw(results)``, which returns its figures by
    name: none if the records it needs are absent. A function ``caption(results)`` takes the place
    of a ``CAPTION`` that depends on records.
    """
    import paper_figures

    names = [info.name for info in pkgutil.iter_modules(paper_figures.__path__)]
    found = [importlib.import_module(f"paper_figures.{name}") for name in names if name[0] != "_"]
    yield from sorted(found, key=lambda module: (module.ORDER, module.__name__))


def write_figures(records: Path, output: Path) -> list[Path]:
    """Draw all figures of a folder of records; return the PNG files.

    Beside them goes ``index.json``, from which the report takes titles, captions and experiments.
    """
    results = Results(records)
    output.mkdir(parents=True, exist_ok=True)
    index, written = [], []
    for module in modules():
        with house_style():
            for name, (experiment, figure) in module.draw(results).items():
                written.append(_save(figure, output / name))
                index.append({"name": name, "title": module.TITLE, "experiment": experiment,
                              "caption": _caption(module, results)})  # fmt: skip
    write_json(output / INDEX, index)
    return written


def read_index(figures: Path) -> list[dict[str, str]]:
    """Return name, title, caption and experiment of every figure in a folder."""
    return json.loads((figures / INDEX).read_text())


def _caption(module: ModuleType, results: Results) -> str:
    return module.caption(results) if hasattr(module, "caption") else module.CAPTION


def _save(figure: Figure, stem: Path) -> Path:
    for suffix in FORMATS:
        partial = stem.with_name(f"{stem.name}.partial.{suffix}")
        figure.savefig(partial, dpi=200, metadata=_METADATA[suffix])
        os.replace(partial, stem.with_name(f"{stem.name}.{suffix}"))
    plt.close(figure)
    return stem.with_name(f"{stem.name}.png")
