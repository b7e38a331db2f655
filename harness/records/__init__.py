"""The tidy store of everything that was trained, measured or computed."""

from harness.records.store import (
    RECORD_COLUMNS,
    RUN_COLUMNS,
    load_records,
    load_runs,
    write_table,
)

__all__ = ["RECORD_COLUMNS", "RUN_COLUMNS", "load_records", "load_runs", "write_table"]
