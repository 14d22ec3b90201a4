"""Which device a run takes, and in which precision it computes."""

import pytest
import torch

from openjepa.engine.device import autocast, resolve_device, resolve_precision


def test_a_missing_device_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown"):
        resolve_device("tpu")
    for name in ("cuda:x", "cuda:", "mps:one", "cuda:-1"):
        with pytest.raises(ValueError, match=f"run.device='{name}' is unknown"):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="available: cpu"):
            resolve_device("cuda")


def test_precision_decides_what_a_product_is_computed_in() -> None:
    cpu = torch.device("cpu")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert resolve_precision(precision, cpu) == precision
        with autocast(cpu, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
