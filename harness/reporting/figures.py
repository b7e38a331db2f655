"""Drawing every module of ``paper_figures`` and saving it as PNG, SVG and PDF."""

import importlib
import os
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.files import read_json, write_json
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


def write_figures(records: Path, output: Path, processes: int = 1) -> list[Path]:
    """Draw all figures of a folder of records; return the PNG files.

    Beside them goes ``index.json``, from which the report takes titles, captions and experiments.

    Args:
        records: The folder.
        output: Folder to write into.
        processes: How many draw side by side.
    """
    # Also where other processes draw: records that cannot be read end here, in one line.
    results = Results(records)
    output.mkdir(parents=True, exist_ok=True)
    names = [module.__name__ for module in modules()]
    if processes == 1:
        entries = [_draw(name, results, output) for name in names]
    else:
        # Not forked: pandas has started threads.
        with ProcessPoolExecutor(processes, get_context("spawn"), _read, (records,)) as pool:
            entries = list(pool.map(partial(_draw_own, output=output), names))
    index = list(chain.from_iterable(entries))
    write_json(output / INDEX, index)
    return [output / f"{entry['name']}.png" for entry in index]


def _draw(module_name: str, results: Results, output: Path) -> list[dict[str, str]]:
    """Draw the figures of one module and return their entries of the index."""
    module = importlib.import_module(module_name)
    entries = []
    with house_style():
        for name, (experiment, figure) in module.draw(results).items():
            _save(figure, output / name)
            entries.append({"name": name, "title": module.TITLE, "experiment": experiment,
                            "caption": _caption(module, results)})  # fmt: skip
    return entries


# Of a process that draws beside others: read once, for all figures that fall to it.
_own_results: Results


def _read(records: Path) -> None:
    global _own_results
    _own_results = Results(records)


def _draw_own(module_name: str, output: Path) -> list[dict[str, str]]:
    return _draw(module_name, _own_results, output)


def read_index(figures: Path) -> list[dict[str, str]]:
    """Return name, title, caption and experiment of every figure in a folder."""
    return read_json(figures / INDEX)


def _caption(module: ModuleType, results: Results) -> str:
    return module.caption(results) if hasattr(module, "caption") else module.CAPTION


def _save(figure: Figure, stem: Path) -> None:
    for suffix in FORMATS:
        unfinished = stem.with_name(f"{stem.name}.partial.{suffix}")
        figure.savefig(unfinished, dpi=200, metadata=_METADATA[suffix])
        os.replace(unfinished, stem.with_name(f"{stem.name}.{suffix}"))
        # The first format lays out all of them, which takes a quarter less time.
        figure.set_layout_engine("none")
    plt.close(figure)
