"""The block-wise masks against statistics of 3,000 masks each from the released data2vec and iBOT programs."""

import json
from pathlib import Path

import numpy as np
import pytest

from openjepa.masks.blockwise import Blockwise
from openjepa.seeds import derive_samples
from openjepa.settings.masks import BlockwiseSettings

FILE = Path(__file__).parent / "data" / "blockwise_masks.json"
STANDARD_ERRORS, SAMPLES = 4, 6000


def recorded(program: str, case: str) -> dict:
    return json.loads(FILE.read_text())[program]["stats"][case]


def drawn(settings: BlockwiseSettings, grid: tuple[int, int]) -> np.ndarray:
    seeds = derive_samples("mask", 0, np.zeros(1, np.int64), np.arange(SAMPLES))
    return Blockwise(settings, grid)(seeds, 0, 0).masked.numpy().reshape(-1, *grid)


def error(std: float, draws: int) -> float:
    """Four standard errors of the difference of our mean and theirs."""
    return STANDARD_ERRORS * std * (1 / SAMPLES + 1 / draws) ** 0.5


def assert_share(ours: float, theirs: float, draws: int) -> None:
    assert abs(ours - theirs) <= error((theirs * (1 - theirs)) ** 0.5, draws)


def assert_map(masked: np.ndarray, center: float, corner: float, edge: float, draws: int) -> None:
    """How often the middle patch, the first one and those of the border are masked."""
    rows, columns = masked.shape[1:]
    assert_share(masked[:, rows // 2, columns // 2].mean(), center, draws)
    assert_share(masked[:, 0, 0].mean(), corner, draws)
    # the patches of one image hang together, so each image counts once
    sides = np.stack([masked[:, 0].mean(1), masked[:, -1].mean(1), masked[:, :, 0].mean(1), masked[:, :, -1].mean(1)])
    assert abs(sides.mean() - edge) < error(sides.mean(axis=0).std(), draws)


@pytest.mark.parametrize("case", ("g14_120", "g14_75"))
def test_data2vec(case: str) -> None:
    golden = recorded("data2vec", case)
    asked, counts = golden["asked"], golden["masked"]
    settings = BlockwiseSettings(ratios=(asked / 196,), min_block=golden["min_block"], max_block=golden["max_block"])
    masked = drawn(settings, (14, 14))
    ours = masked.sum(axis=(1, 2))
    assert ours.max() == counts["max"] == asked
    assert abs(ours.min() - counts["min"]) <= 8  # the least of several thousand
    assert abs(ours.mean() - counts["mean"]) < error(counts["std"], golden["draws"])
    assert ours.std() == pytest.approx(counts["std"], rel=0.15)
    assert_share((ours == asked).mean(), counts["share_full"], golden["draws"])
    map_of = [golden[f"p_masked_{place}"] for place in ("centre", "corner", "edge")]
    assert_map(masked, *map_of, golden["draws"])


@pytest.mark.parametrize("case", ("g14_r0.3", "g14_r0_0.3_var0.2", "g6_local96_r0.3"))
def test_ibot(case: str) -> None:
    golden = recorded("ibot", case)
    ratio, spread = golden["pred_ratio"], golden["pred_ratio_var"]
    settings = BlockwiseSettings(
        ratios=tuple(ratio) if isinstance(ratio, list) else (ratio,),
        spreads=tuple(spread) if isinstance(spread, list) else (spread,),
    )
    masked = drawn(settings, tuple(golden["grid"]))
    ours, theirs = masked.mean(axis=(1, 2)), golden["ratio"]
    assert ours.max() == pytest.approx(theirs["max"], abs=0 if spread == 0.0 else 0.01)
    assert ours.min() == pytest.approx(theirs["min"], abs=0.03)
    assert abs(ours.mean() - theirs["mean"]) < error(theirs["std"], golden["draws"])
    assert_share((ours == 0).mean(), theirs["share_zero"], golden["draws"])
    nonzero = ours[ours > 0]
    assert (
        abs(nonzero.mean() - theirs["mean_nonzero"]) < error(nonzero.std(), golden["draws"]) / (1 - theirs["share_zero"]) ** 0.5
    )
    if spread == 0.0:
        fullest = max(map(int, golden["histogram"]))
        share = golden["histogram"][str(fullest)] / golden["draws"]
        assert_share((masked.sum(axis=(1, 2)) == fullest).mean(), share, golden["draws"])
    map_of = [golden[f"p_{place}"] for place in ("centre", "corner", "edge")]
    assert_map(masked, *map_of, golden["draws"])
