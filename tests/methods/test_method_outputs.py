"""What a run says of its method and masks: counts in the log, the line at its start, summary.json."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from openjepa.engine import distributed
from openjepa.engine.checkpoint import TrainerState
from openjepa.masks import MASKS
from openjepa.schedules import Progress
from openjepa.training.loop import train
from openjepa.training.meters import IntervalMeter
from openjepa.training.startup import build_method, default_view
from openjepa.types import Batch, BlockMasks, LoaderPosition, LossOutput, Masks, TokenMask
from openjepa.visualization.view_pictures import read_views
from tests.helpers.images import write_folder
from tests.helpers.small_runs import method_config


def logged(*masks: dict[str, Masks]) -> dict[str, float]:
    """One line of the log after microbatches of two images with these masks."""
    meter = IntervalMeter()
    for drawn in masks:
        batch = Batch(torch.arange(2), {}, masks=drawn)
        meter.add(LossOutput(torch.tensor(1.0)), batch)
    return meter.finish(TrainerState(1, LoaderPosition()), Progress(1, 2, 2), {})


def test_masked_patches_are_averaged_over_views_and_microbatches() -> None:
    masked = torch.zeros(4, 9, dtype=torch.bool)
    masked[0, :3] = masked[1, :1] = True  # 4 of 36
    several = {"global": TokenMask(masked, (3, 3))}
    alike = {"global": TokenMask(torch.arange(9).expand(4, 9) < 2, (3, 3), num_masked=2)}  # 8 of 36
    line = logged(several, alike)
    assert line["masked_tokens"] == 1.5 and line["visible_tokens"] == 7.5
    assert not {"context_tokens", "mask_redrawn", "mask_padded"} & set(line)


def test_repeated_reads_are_summed_over_processes_and_said_only_if_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gathered", lambda counts, *_: [counts, counts])
    meter, lines = IntervalMeter(), []
    for repeated in (0, 3, 3, 4):  # the loader's count grows
        meter.add(LossOutput(torch.tensor(1.0)), Batch(torch.arange(2), {}, masks={}))
        lines.append(meter.finish(TrainerState(1, LoaderPosition()), Progress(1, 2, 2), {}, 0.0, repeated))
    assert [line.get("reads_repeated") for line in lines] == [None, 6, None, 2]


def test_blocks_are_counted_as_before_and_no_masks_not_at_all() -> None:
    blocks = BlockMasks(
        torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 4, 3, dtype=torch.long), (4, 4), redrawn=1, padded=2
    )
    line = logged({"image": blocks}, {"image": blocks})
    assert (line["context_tokens"], line["target_tokens"], line["mask_redrawn"], line["mask_padded"]) == (5, 3, 2, 4)
    assert not [name for name in logged({}) if "token" in name or "mask" in name]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("dino", "none, whole views of 8x8 patches"),
        ("mae", "random_patches/0.75 on 8x8 patches; visible/masked patches: 16/48"),
        ("ijepa", "multiblock/unbiased/random_subset on 8x8 patches; context/target tokens: 16/12"),
    ],
)
def test_the_start_says_what_is_masked(method: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = method_config(method, write_folder(tmp_path / "images", 40), tmp_path)
    assert train(config, dry_run=True) is None
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("masks ")]
    assert words in line


def test_the_summary_says_what_the_method_is_and_sees(tmp_path: Path) -> None:
    config = method_config("ibot", write_folder(tmp_path / "images", 40), tmp_path, total_steps=1)
    run = train(config)
    assert run is not None
    assert json.loads((run / "summary.json").read_text())["about"] == asdict(config.method.about)
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    assert read_views(run) == dict(build_method(config, view, sampler).inputs().views)
