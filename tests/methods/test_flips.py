"""Mirrored crops of I-JEPA: half of the images, with the same crops and masks, for context and targets alike."""

from dataclasses import replace
from pathlib import Path

import torch

from openjepa.settings.run import RunConfig
from openjepa.types import Batch
from tests.helpers.images import write_folder
from tests.helpers.method_steps import batch_of, parts
from tests.helpers.small_runs import small_config


def batch(config: RunConfig) -> Batch:
    sampler, method = parts(config)
    return batch_of(config, method, sampler, number=16)


def test_half_of_the_images_are_mirrored_and_nothing_else_changes(tmp_path: Path) -> None:
    config = small_config(write_folder(tmp_path / "images", 40), tmp_path)
    assert not config.data.horizontal_flip, "the paper has no flips"
    plain, mirrored = batch(config), batch(replace(config, data=replace(config.data, horizontal_flip=True)))
    before, after = plain.views["image"][0], mirrored.views["image"][0]
    stays = [torch.equal(first, second) for first, second in zip(before, after, strict=True)]
    flips = [torch.equal(first.flip(-1), second) for first, second in zip(before, after, strict=True)]
    assert all(stay or flip for stay, flip in zip(stays, flips, strict=True)) and 3 <= sum(flips) <= 13
    assert torch.equal(plain.masks["image"].targets, mirrored.masks["image"].targets)  # type: ignore[union-attr]
    assert torch.equal(plain.sample_ids, mirrored.sample_ids)
