"""Which precision a machine gets."""

import pytest
import torch

from minillm.common.machine import choose_precision, on_cuda


@pytest.mark.parametrize(
    ("precision", "accelerator", "gpu", "native", "chosen"),
    [
        ("auto", "auto", True, True, "bf16-mixed"),
        ("auto", "gpu", True, True, "bf16-mixed"),
        ("auto", "cpu", True, True, "32-true"),
        ("auto", "auto", True, False, "32-true"),  # a GPU that only emulates it
        ("auto", "auto", False, False, "32-true"),
        ("32-true", "auto", True, True, "32-true"),
        ("bf16-mixed", "auto", False, False, "bf16-mixed"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_native_and_an_explicit_value_wins(
    monkeypatch, precision, accelerator, gpu, native, chosen
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision(precision, accelerator) == chosen


@pytest.mark.parametrize(
    ("name", "gpu", "expected"), [("auto", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_processes_of_a_run_on_the_cpu_touch_no_gpu(monkeypatch, name, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert on_cuda(name) == expected
