"""Redraw all figures: ``python -m paper_figures --records results/smoke --output FOLDER``."""

import argparse
from pathlib import Path

from harness.reporting.figures import write_figures


def main() -> None:
    """Draw every figure that the records allow and print the files."""
    parser = argparse.ArgumentParser(prog="paper_figures", description=__doc__)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    for path in write_figures(options.records, options.output):
        print(path)


if __name__ == "__main__":
    main()
