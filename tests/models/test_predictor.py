"""The predictor: blocks apart, positions, padding, heads, FLOPs."""

from dataclasses import replace

import pytest
import torch

from openjepa.models.predictor import Predictor, build_predictor
from openjepa.settings.models import PredictorConfig

CONFIG = PredictorConfig(encoder_width=16, width=12, depth=2, heads=3, grid=(3, 5))


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    network = build_predictor(CONFIG)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.2 * torch.randn_like(value))  # so that positions and biases matter visibly
    return network


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    context_idx = torch.tensor([[0, 1, 6], [14, 3, 2]])
    target_idx = torch.tensor([[[4, 9], [7, 8]], [[5, 6], [10, 11]]])
    return torch.randn(2, 3, 16), context_idx, target_idx


def test_target_blocks_never_see_one_another(predictor: Predictor) -> None:
    context, context_idx, target_idx = inputs()
    together = predictor(context, context_idx, target_idx)
    assert together.shape == (2, 2, 2, 16)
    for block in range(2):
        alone = predictor(context, context_idx, target_idx[:, block : block + 1])
        torch.testing.assert_close(together[:, block : block + 1], alone, rtol=0, atol=1e-5)


def test_order_of_context_does_not_matter_and_places_do(predictor: Predictor) -> None:
    context, context_idx, target_idx = inputs()
    before = predictor(context, context_idx, target_idx)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(predictor(context[:, order], context_idx[:, order], target_idx), before, rtol=0, atol=1e-5)
    assert (predictor(context, context_idx + torch.tensor([[1], [-2]]), target_idx) - before).abs().max() > 1e-3
    swapped = predictor(context, context_idx, target_idx.flip(2))
    torch.testing.assert_close(swapped.flip(2), before, rtol=0, atol=1e-5)


def test_padding_is_invisible(predictor: Predictor) -> None:
    context, context_idx, target_idx = inputs()
    valid = torch.tensor([[True, True, False], [True, True, True]])
    padded = predictor(context, context_idx, target_idx, None, valid)
    alone = predictor(context[:1, :2], context_idx[:1, :2], target_idx[:1])
    torch.testing.assert_close(padded[:1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded[1:], predictor(context, context_idx, target_idx)[1:], rtol=0, atol=1e-5)


def test_another_grid_has_its_own_positions(predictor: Predictor) -> None:
    """Row and column decide, not the number of the patch: index 7 of a grid with 5 columns is 9 of one with 7."""
    context, context_idx, target_idx = inputs()
    before = predictor(context, context_idx, target_idx, (3, 5))
    moved = [index // 5 * 7 + index % 5 for index in (context_idx, target_idx)]
    torch.testing.assert_close(predictor(context, moved[0], moved[1], (3, 7)), before, rtol=0, atol=1e-5)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"heads=5 do not divide the width 12; use one of \[1, 2, 3, 4, 6\]"):
        build_predictor(replace(CONFIG, heads=5))
    with pytest.raises(ValueError, match="predictor depth 0 is too small"):
        build_predictor(replace(CONFIG, depth=0))


def test_parameter_count_of_the_literature() -> None:
    """ViT-B's predictor, 384 wide and 6 deep, has 11.2 M weights."""
    config = PredictorConfig(encoder_width=768, width=384, depth=6, heads=12, grid=(14, 14))
    with torch.device("meta"):
        network = Predictor(config)
    assert sum(value.numel() for value in network.parameters()) / 1e6 == pytest.approx(11.2, abs=0.05)
