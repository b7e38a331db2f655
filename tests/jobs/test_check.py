"""The job before all others finds what would end every run."""

from types import SimpleNamespace

import pytest
import torch

from harness.errors import UserError
from harness.jobs.check import check
from harness.training import compilation

JOB = SimpleNamespace(work=[])


@pytest.fixture
def context(tmp_path):
    scale = SimpleNamespace(device="cpu", compile=True)
    catalog = SimpleNamespace(folder="config", scale_name="gpu", scale=scale)
    return SimpleNamespace(catalog=catalog, device_key="config/scales/gpu.yaml: device")


def test_layers_that_cannot_be_compiled_are_refused_before_any_run(context, monkeypatch):
    def compile_layers(model):
        def fail(graph, inputs):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

        model.blocks[0].compile(backend=fail)

    monkeypatch.setattr(compilation, "compile_layers", compile_layers)
    message = r"^config/scales/gpu\.yaml: compile: found true, .* C compiler.*, or false$"
    with pytest.raises(UserError, match=message) as refused:
        check(JOB, context)
    assert "\n" not in str(refused.value)
    torch.compiler.reset()


def test_only_scales_that_compile_need_a_compiler(context, monkeypatch):
    compiled = []
    monkeypatch.setattr(compilation, "compile_layers", compiled.append)
    check(JOB, context)
    assert len(compiled) == 1
    context.catalog.scale.compile = False
    check(JOB, context)
    assert len(compiled) == 1
