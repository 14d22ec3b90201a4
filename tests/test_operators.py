"""Private operators of torch against what replaces them in a version that does not have them."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from openjepa import operators

PACKAGE = Path(operators.__file__).parent


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,), (2, 2, 2))]


def test_averages_are_moved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("", "_foreach_lerp_"):
        if name:
            monkeypatch.delattr(torch, name)
        averages = tensors(0)
        operators.lerp_(averages, tensors(1), 0.25)
        found.append(averages)
    for fused, plain, old, new in zip(*found, tensors(0), tensors(1), strict=True):
        torch.testing.assert_close(fused, plain)
        torch.testing.assert_close(plain, 0.75 * old + 0.25 * new)


def test_norms_and_factors_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for names in ((), ("_foreach_norm", "_foreach_mul_")):
        for name in names:
            monkeypatch.delattr(torch, name)
        values = tensors(0)
        operators.scale_(values, operators.norms(values).reciprocal())
        found.append(values)
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain)
        assert abs(float(plain.square().sum()) - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_softmax_is_autograds(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(4, 6, 40, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    incoming = torch.randn(4, 6, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = scores.softmax(dim=-1)
    (expected,) = torch.autograd.grad(weights, scores, incoming)
    weights = weights.detach()
    assert torch.equal(operators.softmax_gradient(incoming, weights), expected)
    monkeypatch.delattr(torch, "_softmax_backward_data")
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(operators.softmax_gradient(incoming, weights), expected, **tolerance)


@pytest.mark.skipif(
    not (operators.has_fused_linear() and operators.has_bf16_products()), reason="needs a CPU with bf16 products"
)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_layer_is_the_layer(gelu: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, offset = (torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 9, 48), (96, 48), (96,)))
    fused = operators.fused_linear(x, weight, offset if bias else None, gelu)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not operators.has_fused_linear()
    plain = operators.fused_linear(x, weight, offset if bias else None, gelu)
    # sums of about 7 are rounded to eight bits before the GELU, whose slope is at most 1.13
    torch.testing.assert_close(fused, plain, atol=2**-4, rtol=2**-7)


def test_the_processor_has_what_torch_says_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    if not operators.CPU_INFO.exists():
        pytest.skip("needs the list of flags that Linux gives")
    said = operators.has_bf16_products(), operators.has_tile_products()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert (operators.has_bf16_products(), operators.has_tile_products()) == said


def test_without_an_answer_of_torch_the_flags_of_the_processor_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    for flags, expected in (("sse avx512_bf16 avx", (True, False)), ("amx_tile", (True, True)), ("avx", (False, False))):
        monkeypatch.setattr(operators, "CPU_INFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
        assert (operators.has_bf16_products(), operators.has_tile_products()) == expected
    (tmp_path / "cpuinfo").unlink()
    assert not operators.has_bf16_products()


def test_shared_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("", "_new_shared"):
        if missing:
            monkeypatch.setattr(torch, "UntypedStorage", object)
        memory = operators.shared_bytes(12)
        assert memory.is_shared() and memory.shape == (12,) and memory.dtype == torch.uint8


def private_names(tree: ast.AST) -> list[str]:
    """Private names of torch in a file: `torch.a._b`, also behind `import torch.a as y`, and `from torch.a import _b`."""
    modules = {"torch"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname for alias in node.names if alias.asname and alias.name.startswith("torch.")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"from {node.module} import {name}" for name in names if name.startswith("_")]
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            written = ast.unparse(node)
            if written.split(".")[0] in modules:
                found.append(written)
    return found


def test_no_other_file_calls_a_private_name_of_torch() -> None:
    assert private_names(ast.parse("import torch.x as y\ny._z; torch._C.a; F._b; torch.__version__")) == ["y._z", "torch._C"]
    files = {path: private_names(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    own = files.pop(Path(operators.__file__))
    assert {path.name: names for path, names in files.items() if names} == {}
    assert len(own) >= 4
