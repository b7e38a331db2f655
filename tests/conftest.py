"""Settings that all tests share."""

import pytest
import torch
from hypothesis import settings

from harness.torchvision_import import import_torchvision

# transformers, the reference of several tests, imports torchvision by itself.
import_torchvision()

settings.register_profile("shared", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _one_thread():
    # Tests run in parallel processes; more threads each would only fight for the cores.
    torch.set_num_threads(1)
