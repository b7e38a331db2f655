"""The identity of a run: a readable prefix and a hash of its fully resolved specification.

Raise a version here when a change of the code alters the results of that stage: every run then
gets a new identity beside the old one, and nothing already computed is overwritten.
"""

import hashlib
import json
from typing import Any

DATA_VERSION = 1
TRAINING_VERSION = 4
EVALUATION_VERSION = 2
PRECISION_VERSION = 1
FAULTS_VERSION = 1


def canonical(spec: Any) -> str:
    """Return ``spec`` as JSON that does not depend on the order of keys."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(spec: Any) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of ``spec``."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:12]


def identify(prefix: str, spec: Any) -> str:
    """Return ``<prefix>-<digest>``: same specification, same identity; names only decorate it."""
    return f"{prefix}-{digest(spec)}"
