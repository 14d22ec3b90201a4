"""The projection head of DINO and iBOT: unit rows, batch statistics without buffers, last layers, FLOPs."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.engine import distributed
from openjepa.models.heads import FeatureNorm, ProjectionHead, UnitRows, projection_layers
from tests.helpers.ranks import on_ranks


def head(**options: Any) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(12, 20, **{"hidden": 16, "bottleneck": 8, **options})


def test_outputs_are_cosines() -> None:
    """Of the bottleneck's direction with each row, whatever the lengths of both."""
    network, x = head(), torch.randn(5, 12)
    with torch.no_grad():
        network.last_layer.weight_v.mul_(torch.rand(20, 1) * 10)
        bottleneck = network.mlp(x)
    expected = F.cosine_similarity(bottleneck[:, None], network.last_layer.weight_v[None], dim=-1)
    torch.testing.assert_close(network(x), expected)


def test_rows_have_the_length_that_is_trained() -> None:
    free = UnitRows(4, 6, fixed_lengths=False)
    with torch.no_grad():
        free.weight_g.copy_(torch.arange(1.0, 7)[:, None])
    torch.testing.assert_close(free(torch.eye(4)).norm(dim=0), torch.arange(1.0, 7))
    assert free.weight_g.requires_grad and not UnitRows(4, 6, fixed_lengths=True).weight_g.requires_grad


def test_any_leading_axes_and_the_number_of_layers() -> None:
    x = torch.randn(2, 3, 4, 12)
    for layers in (1, 2, 3, 4):
        network = head(layers=layers)
        assert sum(isinstance(module, nn.Linear) for module in network.mlp) == layers
        torch.testing.assert_close(network(x), network(x.flatten(0, 2)).view(2, 3, 4, 20))


def test_batch_norm_takes_the_statistics_of_the_batch_and_keeps_nothing() -> None:
    """In training and in evaluation; over all leading axes together."""
    norm, x = FeatureNorm(6), torch.randn(3, 4, 6) * 5 + 2
    for mode in (True, False):
        found = norm.train(mode)(x)
        expected = (x - x.mean(dim=(0, 1))) / (x.var(dim=(0, 1), correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not list(norm.buffers()) and not list(head(batch_norm=True).buffers())
    names = [type(module).__name__ for module in projection_layers((4, 5, 6, 7), batch_norm=True)]
    assert names == ["Linear", "FeatureNorm", "GELU", "Linear", "FeatureNorm", "GELU", "Linear"]


def norm_share(shares: tuple[Tensor, Tensor], factors: Tensor) -> tuple[Tensor, ...]:
    """Output for this process's rows, and gradients of the mean over all rows, as the mean of the processes' losses."""
    norm, rows = FeatureNorm(6), shares[distributed.rank()].clone().requires_grad_()
    found = norm(rows)
    number = sum(map(len, shares)) / len(shares)
    ((found**3).sum(dim=1) @ factors[: len(rows)] / number).backward()
    return (found.detach(), *(value.grad for value in (rows, norm.weight, norm.bias)))  # type: ignore[misc]


def test_batch_norm_takes_the_statistics_of_all_processes(tmp_path: Path) -> None:
    """Five rows in one process and three in the other, far from zero. As torch's for the eight rows, also its gradients."""
    torch.manual_seed(0)
    shares, factors = (torch.randn(5, 6) * 3 + 100, torch.randn(3, 6) * 5 + 90), torch.rand(5)
    first, second = on_ranks(2, tmp_path, norm_share, shares, factors)
    rows = torch.cat(shares).double().requires_grad_()
    weight, bias = (torch.full((6,), value, dtype=torch.float64, requires_grad=True) for value in (1.0, 0.0))
    expected = F.batch_norm(rows, None, None, weight, bias, training=True)
    ((expected**3).sum(dim=1) @ torch.cat([factors, factors[:3]]).double() / 8).backward()  # type: ignore[no-untyped-call]
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, check_dtype=False)
    close(torch.cat([first[0], second[0]]), expected.detach())
    close(torch.cat([first[1], second[1]]) / 2, rows.grad)
    close((first[2] + second[2]) / 2, weight.grad)
    close((first[3] + second[3]) / 2, bias.grad)


def test_patches_have_their_own_last_layer_or_share_it() -> None:
    x = torch.randn(5, 12)
    own, shared, without = head(patch_outputs=7), head(patch_outputs="shared"), head()
    assert own(x, patches=True).shape == (5, 7) and own(x).shape == (5, 20)
    assert torch.equal(shared(x, patches=True), shared(x))
    assert shared.state_dict().keys() == without.state_dict().keys()


def test_only_the_last_layers_lose_their_gradients() -> None:
    network, x = head(patch_outputs=7, norm_last_layer=False), torch.randn(5, 12)
    (network(x).square().sum() + network(x, patches=True).square().sum()).backward()
    network.drop_last_gradients()
    without = {name for name, value in network.named_parameters() if value.grad is None}
    assert without == {name for name, _ in network.named_parameters() if name.startswith("last_layer")} and len(without) == 4


def test_weights_are_drawn_small_and_biases_zero() -> None:
    network = head(hidden=400, bottleneck=300)
    for layer in (module for module in network.mlp if isinstance(module, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any()
    assert torch.equal(network.last_layer.weight_g, torch.ones(20, 1))
