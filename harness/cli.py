"""The command line: what the rules of the workflow call, and what a user may call by hand."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from harness.bundle import NODE_HAS
from harness.errors import Interrupted, UserError

if TYPE_CHECKING:
    from harness.jobs.context import Context

# As shells report a process that SIGINT or SIGPIPE ended.
INTERRUPTED, BROKEN_PIPE = 130, 141
# Adds one option to a command.
Option = Callable[[argparse.ArgumentParser], None]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"interrupted: {error}; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted: nothing is recorded of what was not finished", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Nothing is left to flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="harness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, options) in _COMMANDS.items():
        summary = function.__doc__.splitlines()[0] if function.__doc__ else None
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(command=function)
        for option in options:
            _OPTIONS[option](command)
    return parser


def _context(options: argparse.Namespace) -> "Context":
    from harness.config.catalog import load_catalog
    from harness.jobs.context import Context

    return Context(load_catalog(options.config, options.scale), options.results)


def plan(options: argparse.Namespace) -> None:
    """Print the experiments of a scale, their runs and their cost."""
    from harness.plan.summary import summarise
    from harness.plan.verify import verify

    context = _context(options)
    verify(context.catalog, data=False)
    for name, entry in summarise(context.catalog, context.jobs)["experiments"].items():
        print(f"{name}: {entry['runs']} runs, {entry['cost']}: {entry['title']}")
        if "optimizers" in entry:
            print(f"  optimizers: {', '.join(entry['optimizers'])}")


def job(options: argparse.Namespace) -> None:
    """Run one job of the plan and write its result."""
    from harness.files import write_json
    from harness.jobs import run_job

    options.log.parent.mkdir(parents=True, exist_ok=True)
    # Progress goes to the log; what ends the command is printed by `main`.
    with options.log.open("a") as log:
        context = _context(options)
        one = context.job(options.name)
        with redirect_stderr(log), redirect_stdout(log):
            result = run_job(one, context)
    write_json(context.output(one), result)


def run(options: argparse.Namespace) -> None:
    """Run the workflow of a scale for a limited time; what is left goes on next time."""
    from harness.run_for import parse_duration, run_for

    for line in run_for(parse_duration(getattr(options, "for")), options.config, options.scale):
        print(line)


def trace(options: argparse.Namespace) -> None:
    """Write a Chrome trace of the first steps of a job that trains; no run is touched."""
    from harness.jobs.trace import trace as write_trace

    write_trace(options.name, _context(options), options.output)


def collect(options: argparse.Namespace) -> None:
    """Gather the results of all jobs of a scale into its records, or of those that are done."""
    from harness.jobs.collect import collect as gather
    from harness.jobs.collect import collect_so_far

    if options.so_far:
        folder = collect_so_far(_context(options))
        print(f"report: snakemake report --config records={folder}")
    else:
        gather(_context(options))


def tables(options: argparse.Namespace) -> None:
    """Write the tables of a folder of records."""
    from harness.reporting.tables import write_tables

    write_tables(options.records, options.output)


def figures(options: argparse.Namespace) -> None:
    """Draw the figures of a folder of records."""
    from harness.reporting.figures import write_figures

    write_figures(options.records, options.output, options.processes)


def claims(options: argparse.Namespace) -> None:
    """Judge every claim of the ledger by a folder of records."""
    from harness.reporting.claims import write_claims

    write_claims(options.records, options.config / "claims.yaml", options.output)


def recommendations(options: argparse.Namespace) -> None:
    """Set what bears on each recommendation for hardware beside it."""
    from harness.reporting.recommendations import write_recommendations

    write_recommendations(options.records, options.config / "recommendations.yaml", options.output)


def report(options: argparse.Namespace) -> None:
    """Write the report of a folder with records, tables, figures, claims and recommendations."""
    from harness.reporting.report import write_report

    folder = options.output
    write_report(
        options.records,
        folder / "figures",
        folder / "claims.csv",
        folder / "recommendations.csv",
        folder / "report.html",
        folder / "report.md",
    )


def status(options: argparse.Namespace) -> None:
    """Say how the runs of a scale ended and where its report is; fail if some failed."""
    from harness.records.store import load_runs

    folder = options.results / options.scale
    runs = load_runs(folder)
    counts = runs["status"].value_counts()
    print(f"{len(runs)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    print(f"report: {(folder / 'report.html').resolve()}")
    if counts.get("failed", 0):
        raise UserError(
            f"{counts['failed']} runs failed, see the report; 'harness forget --scale "
            f"{options.scale}' and then snakemake tries them again"
        )


def forget(options: argparse.Namespace) -> None:
    """Drop failed runs, and jobs whose runs are gone, so that the next snakemake repeats them."""
    from harness.jobs.forget import forget_failed

    for name in forget_failed(_context(options)):
        print(f"will run again: {name}")


def export(options: argparse.Namespace) -> None:
    """Write the trained decoder of a run as a folder that `transformers` loads."""
    from harness.interchange.commands import export_run

    for line in export_run(options.results, options.run, options.output):
        print(line)


def import_(options: argparse.Namespace) -> None:
    """Write a model of Hugging Face as weights and an entry for config/models.yaml."""
    from harness.interchange.commands import import_model

    for line in import_model(options.folder, options.output):
        print(line)


def mirror(options: argparse.Namespace) -> None:
    """Copy what lm-eval evaluates of its tasks from the hub into a folder for other machines."""
    from harness.evaluation.standard_tasks import mirror_tasks

    for line in mirror_tasks(options.tasks.split(","), options.output):
        print(line)


def bundle(options: argparse.Namespace) -> None:
    """Write checkout, prepared data and wheels as parts for a machine without network."""
    from harness.bundle.write import write_bundle

    lines = write_bundle(
        options.output,
        root=Path(__file__).parents[1],
        results=options.results,
        data=options.data,
        python=options.python,
        platform=options.platform,
        part_size=options.part_size,
        without=options.without,
    )
    print("\n".join(lines))


def unbundle(options: argparse.Namespace) -> None:
    """Check the parts of a bundle and unpack them into a new folder."""
    from harness.bundle.unbundle import BundleError
    from harness.bundle.unbundle import unbundle as unpack

    try:
        print("\n".join(unpack(options.bundle, options.output)))
    except BundleError as error:
        raise UserError(str(error)) from None


def _path(flag: str, default: str | None, text: str) -> Option:
    def add(command: argparse.ArgumentParser) -> None:
        value = None if default is None else Path(default)
        command.add_argument(flag, type=Path, default=value, required=default is None, help=text)

    return add


def _text(flag: str, default: str | None, text: str) -> Option:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(flag, default=default, required=default is None, help=text)

    return add


def _count(flag: str, default: int, text: str) -> Option:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(flag, type=_positive, default=default, metavar="N",
                             help=f"{text} (default: {default})")  # fmt: skip

    return add


def _flag(flag: str, text: str) -> Option:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(flag, action="store_true", help=text)

    return add


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number from 1 on")
    return int(text)


def _names(flag: str, default: Sequence[str], text: str) -> Option:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(flag, nargs="*", default=default, metavar="NAME", help=text)

    return add


def _folder(name: str, text: str) -> Option:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(name, type=Path, metavar="FOLDER", help=text)

    return add


_OPTIONS: dict[str, Option] = {
    "config": _path("--config", "config", "folder of the configuration"),
    "results": _path("--results", "results", "folder of the results"),
    "scale": _text("--scale", os.environ.get("HARNESS_SCALE", "smoke"), "name in config/scales"),
    "name": _text("--name", None, "name of the job"),
    "for": _text("--for", None, "time after which it stops: 90s, 9m or 1.5h"),
    "log": _path("--log", None, "file that progress is appended to"),
    "records": _path("--records", None, "folder with records.parquet and runs.parquet"),
    "run": _text("--run", None, "name of a folder in results/runs"),
    "folder": _path("--folder", None, "folder with config.json and model.safetensors"),
    "tasks": _text("--tasks", None, "names of lm-eval, with commas between them"),
    "bundle": _folder("bundle", "what harness bundle wrote"),
    "data": _names("--data", (), "prepared datasets, or their folders in results/data"),
    "python": _text("--python", "3.12", "version on the other machine"),
    "platform": _text("--platform", "manylinux_2_28_x86_64", "of the other machine's wheels"),
    "part_size": _text("--part-size", "60MiB", "largest size of a part"),
    "without": _names("--without", NODE_HAS, f"packages it has (default: {' '.join(NODE_HAS)})"),
    "output": _path("--output", None, "folder or file to write"),
    "processes": _count("--processes", 1, "that work side by side"),
    "so_far": _flag("--so-far", "what is done already, in a folder of its own"),
}
_SCALE = ("config", "results", "scale")
_COMMANDS = {
    "plan": (plan, _SCALE),
    "job": (job, (*_SCALE, "name", "log")),
    "run": (run, ("config", "scale", "for")),
    "trace": (trace, (*_SCALE, "name", "output")),
    "collect": (collect, (*_SCALE, "so_far")),
    "tables": (tables, ("records", "output")),
    "figures": (figures, ("records", "output", "processes")),
    "claims": (claims, ("config", "records", "output")),
    "recommendations": (recommendations, ("config", "records", "output")),
    "report": (report, ("records", "output")),
    "status": (status, _SCALE),
    "forget": (forget, _SCALE),
    "export": (export, ("results", "run", "output")),
    "import": (import_, ("folder", "output")),
    "mirror": (mirror, ("tasks", "output")),
    "bundle": (bundle, ("results", "data", "python", "platform", "part_size", "without", "output")),
    "unbundle": (unbundle, ("bundle", "output")),
}
