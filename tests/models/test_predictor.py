"""The predictor: blocks apart, positions, padding, heads, FLOPs."""

import re
from dataclasses import replace

import pytest
import torch

from openjepa.models.predictor import Predictor, build_predictor
from openjepa.models.transformer import ImageSlots
from openjepa.refusals import Refusal
from openjepa.settings.models import SIZES, PredictorConfig, Shape

CONFIG = PredictorConfig(encoder_width=16, width=12, depth=2, heads=3, grid=(3, 5))


def built(config: PredictorConfig) -> Predictor:
    torch.manual_seed(0)
    network = build_predictor(config)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.2 * torch.randn_like(value))  # so that positions and biases matter visibly
    return network


@pytest.fixture(params=["separate", "joint", "cross"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return built(replace(CONFIG, passes=request.param))


@pytest.fixture
def joint() -> Predictor:
    return built(replace(CONFIG, passes="joint"))


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


def test_a_joint_pass_equals_joint_passes_over_single_blocks_in_values_and_gradients(joint: Predictor) -> None:
    context, context_idx, target_idx = inputs()
    valid = torch.tensor([[True, True, False], [True, True, True]])

    def gradients(blocks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        joint.zero_grad()
        sum(joint(context, context_idx, block, None, valid).pow(3).sum() for block in blocks).backward()
        return {name: value.grad.clone() for name, value in joint.named_parameters() if value.grad is not None}

    together, alone = gradients([target_idx]), gradients(list(target_idx.split(1, dim=1)))
    assert len(together) == len(dict(joint.named_parameters()))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-5 * value.abs().max().item(), msg=name)


def test_the_context_of_a_joint_pass_does_not_see_the_blocks(joint: Predictor) -> None:
    """In separate passes it does, so that the two are different networks."""
    context, context_idx, target_idx = inputs()
    separate = build_predictor(CONFIG)
    separate.load_state_dict(joint.state_dict())
    for network, sees in ((joint, False), (separate, True)):
        blocks, of_context = network(context, context_idx, target_idx, with_context=True)
        torch.testing.assert_close(blocks, network(context, context_idx, target_idx), rtol=0, atol=1e-5)
        assert of_context.shape == (2, 2 if sees else 1, 3, 16)
        _, moved = network(context, context_idx, (target_idx + 1) % 15, with_context=True)
        assert ((moved - of_context).abs().max().item() > 1e-3) is sees
    assert (joint(context, context_idx, target_idx) - separate(context, context_idx, target_idx)).abs().max() > 1e-3


def test_in_cross_passes_a_token_sees_the_context_alone(predictor: Predictor) -> None:
    """In the others, it also sees its block."""
    context, context_idx, target_idx = inputs()
    before = predictor(context, context_idx, target_idx)
    changed = target_idx.clone()
    changed[:, :, 1] = (changed[:, :, 1] + 1) % 15
    moved = (predictor(context, context_idx, changed) - before).abs().amax(dim=(0, 1, 3))
    assert moved[1] > 1e-3 and (moved[0].item() < 1e-5) is (predictor.config.passes == "cross")
    assert (predictor(context + 1, context_idx, target_idx) - before).abs().max() > 1e-3


def test_noise_moves_mask_tokens_in_training_alone_with_the_covariance_of_the_paper() -> None:
    """Sigma = variance A A^T, where A is the matrix that projects the context."""
    network, quiet = built(replace(CONFIG, position_noise=0.25)), built(CONFIG)
    context, context_idx, target_idx = inputs()
    assert torch.equal(network.eval()(context, context_idx, target_idx), quiet(context, context_idx, target_idx))
    network.train()
    many = target_idx.repeat(1, 1, 5000)
    (seen, asked), (kept, still) = (net._embedded(context, context_idx, many, CONFIG.grid) for net in (network, quiet))
    assert torch.equal(seen, kept), "the context gets no noise"
    noise = (asked - still).flatten(0, 2)
    expected = 0.25 * network.embed.weight @ network.embed.weight.T
    torch.testing.assert_close(noise.T.cov(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    assert noise.mean(dim=0).abs().max() < 0.05 * noise.std()
    assert not torch.equal(network(context, context_idx, target_idx), network(context, context_idx, target_idx))


def test_noise_is_that_of_the_image_in_whatever_part_of_the_batch() -> None:
    """Here with two contexts for each image."""
    network = built(replace(CONFIG, position_noise=0.25)).train()
    target_idx = torch.arange(6 * 2 * 2).view(6, 2, 2) % 15

    def drawn(first: int, number: int) -> torch.Tensor:
        ImageSlots(network).set(2 * first, 2 * number, 6)
        torch.manual_seed(4)
        noise = network.noise(target_idx[2 * first : 2 * (first + number)], 16, torch.float32)
        assert noise is not None
        return noise

    parts = torch.cat([drawn(0, 1), drawn(1, 2)])
    assert torch.equal(parts, drawn(0, 3)) and len(set(parts.flatten().tolist())) == parts.numel()


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


@pytest.mark.parametrize("shape", {shape.heads: shape for shape in SIZES.values()}.values(), ids=str)
def test_widths_of_the_paper_at_every_number_of_heads(shape: Shape) -> None:
    """Table 14: 384 and 1024. Heads that do not divide are refused with some that do."""
    for width in (384, 1024):
        config = PredictorConfig(encoder_width=shape.width, width=width, depth=1, heads=shape.heads, grid=(4, 4))
        with torch.device("meta"):
            if width % shape.heads:
                with pytest.raises(Refusal, match=f"do not divide the width {width}; use one of") as refused:
                    Predictor(config)
                config = replace(config, heads=int(re.findall(r"\d+", str(refused.value))[-1]))
            assert Predictor(config).embed.out_features == width


def test_parameter_count_of_the_literature() -> None:
    """ViT-B's predictor, 384 wide and 6 deep, has 11.2 M weights."""
    config = PredictorConfig(encoder_width=768, width=384, depth=6, heads=12, grid=(14, 14))
    with torch.device("meta"):
        network = Predictor(config)
    assert sum(value.numel() for value in network.parameters()) / 1e6 == pytest.approx(11.2, abs=0.05)
