"""The one place that imports torchvision.

The index's torchvision wheel is built against CUDA. Beside a CPU-only torch its compiled operators
do not load, and the import fails with ``operator torchvision::nms does not exist`` because the
Python part registers meta implementations for operators that were never defined. Declaring the
missing schemas first is enough for datasets, models and transforms; the detection operators
themselves stay unusable, and nothing here needs them.
"""

from functools import cache
from types import ModuleType

import torch

_SCHEMAS = ("nms", "qnms")
_libraries: list[torch.library.Library] = []


@cache
def import_torchvision() -> ModuleType:
    """Return the torchvision module, importable beside a CPU-only torch too."""
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _SCHEMAS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # The definitions live as long as this object does.
        _libraries.append(library)
    import torchvision

    return torchvision
