"""Predictions through the public API are those of the method and of the released program; areas mean what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import openjepa
from openjepa.data.views import whole_view
from openjepa.inference.areas import indices_of
from openjepa.methods.ijepa import VIEW, IJepa
from openjepa.schedules import Progress
from openjepa.settings.methods import IJepaSettings
from openjepa.types import Batch, BlockMasks, normalize
from openjepa.weights.formats import WeightsChoice, load_any
from tests.helpers.images import shape_image
from tests.helpers.parity import DATA, FORWARD, read
from tests.helpers.tiny_encoder import MEAN, STD, write_encoder, write_ijepa

SETTINGS = IJepaSettings(predictor_width=24, predictor_depth=2, export_context_encoder=True)
GRID = (4, 4)
IMAGES = [shape_image(seed, 40) for seed in range(3)]
CONTEXT = [5, 0, 9, 2, 7]
TARGETS = [[3, 4, 8], [10, 15, 11], [1, 12, 6]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IJepa]:
    folder = tmp_path_factory.mktemp("run")
    return folder, write_ijepa(folder, SETTINGS)


@pytest.fixture(scope="module")
def encoder(run: tuple[Path, IJepa]) -> openjepa.Encoder:
    return openjepa.load(run[0])


def batch_of(images: Tensor, context: list[int], targets: list[list[int]], grid: tuple[int, int] = GRID) -> Batch:
    """What the method gets in training, the masks the same for every image."""
    count = len(images)
    masks = BlockMasks(torch.tensor([context] * count), torch.tensor([targets] * count), grid)
    return Batch(torch.arange(count), {VIEW: normalize(images, MEAN, STD)[None]}, {VIEW: masks})


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", ["smooth_l1", "l2", "l1"])
@pytest.mark.parametrize("target_norm", ["layer_norm", "none"])
def test_both_encoders_give_the_loss_of_a_training_step(loss: Any, target_norm: Any, tmp_path: Path) -> None:
    """The method's own forward, also where it was trained for another distance than the released code's."""
    method = write_ijepa(tmp_path, replace(SETTINGS, loss=loss, target_norm=target_norm))
    context, target = openjepa.load(tmp_path, encoder="context"), openjepa.load(tmp_path)
    found = context.predict(IMAGES, CONTEXT, TARGETS, targets_from=target, precision="fp32")
    batch = batch_of(torch.stack([target.prepared(image) for image in IMAGES]), CONTEXT, TARGETS)
    same(found.loss.mean(), method(batch, Progress(0, 1, 1)).total)
    probe = method.probe(batch, Progress(0, 1, 1))
    same(torch.stack([block.actual for block in found.blocks], 1), probe.targets)  # type: ignore[arg-type]
    predicted = torch.stack([block.predicted for block in found.blocks], 1)
    same(predicted.mean((1, 2)), method.predicted_features(batch, Progress(0, 1, 1)))
    same(probe.distance(predicted[1, 2], probe.targets[1, 2]), found.loss[1, 2])  # type: ignore[index,misc]
    own = context.predict(IMAGES, CONTEXT, TARGETS, precision="fp32")
    assert (own.loss - found.loss).abs().max() > 1e-3, "the two encoders differ, and so do their targets"


def test_the_loaded_encoder_alone_gives_both_sides(run: tuple[Path, IJepa], encoder: openjepa.Encoder) -> None:
    """By default the target encoder encodes the context too."""
    method = run[1]
    images = torch.stack([encoder.prepared(image) for image in IMAGES])
    found = encoder.predict(IMAGES, CONTEXT, TARGETS, precision="fp32", batch_size=2)
    with torch.no_grad():
        network = method.target_encoder.network
        where = torch.tensor([CONTEXT] * 3)
        tokens = network(normalize(images, MEAN, STD), where).patches
        expected = method.predictor(tokens, where, torch.tensor([TARGETS] * 3), GRID)
        features = network(normalize(images, MEAN, STD)).patches
    for number, block in enumerate(found.blocks):
        same(block.predicted, expected[:, number], 1e-5)
        same(block.actual, F.layer_norm(features[:, TARGETS[number]], (48,), eps=1e-5), 1e-5)
        same(block.cosine, F.cosine_similarity(block.predicted, block.actual, dim=2))
        assert block.indices.tolist() == TARGETS[number] and not block.in_context.any()
    same(found.cosine, torch.stack([block.cosine.mean(1) for block in found.blocks], 1))
    assert found.context.tolist() == CONTEXT and found.grid == GRID


def test_a_predictor_of_other_targets_is_refused(tmp_path: Path) -> None:
    """Its outputs may even be as many as the encoder's; all else can be used."""
    write_ijepa(tmp_path, replace(SETTINGS, target_space="pixels"))
    encoder = openjepa.load(tmp_path)
    assert encoder.embed(IMAGES).shape == (3, 48)
    with pytest.raises(ValueError, match=r"trained with method.target_space=pixels: its outputs are no features"):
        encoder.predict(IMAGES, CONTEXT, TARGETS)
    encoder.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"trained with method.target_space=pixels"):
        openjepa.load(tmp_path / "saved").predict(IMAGES, CONTEXT, TARGETS)


def test_a_file_of_the_released_program_gives_its_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read("ijepa_checkpoint_expected")
    path = DATA / "ijepa_checkpoint.pth.tar"
    encoder = openjepa.load(path, encoder="context", heads=2)
    teacher = openjepa.load(path, heads=2)
    for image in range(len(expected["images"])):
        # the recorded images are floats that no file of pixels holds
        recorded = expected["images"][image : image + 1]
        monkeypatch.setattr("openjepa.engine.device.normalize", lambda *_, recorded=recorded: recorded)
        context, target = expected["masks_enc"][image], expected["masks_pred"][image]
        black = np.zeros((48, 48, 3), np.uint8)
        block = encoder.predict(black, context, target, targets_from=teacher, precision="fp32").blocks[0]
        same(block.predicted[0], expected["out/predictions"][image], FORWARD)
        raw = expected["out/target_encoder"][image, target]
        same(block.actual[0], F.layer_norm(raw, raw.shape[-1:], eps=1e-5), 3 * FORWARD)


def test_blocks_do_not_see_one_another(encoder: openjepa.Encoder) -> None:
    """Together and alone, of equal and of different lengths, a block gets the same prediction."""
    blocks = [[3, 4, 8], [10], [1, 12, 6], [15]]
    together = encoder.predict(IMAGES[0], CONTEXT, blocks, precision="fp32")
    for block, found in zip(blocks, together.blocks, strict=True):
        alone = encoder.predict(IMAGES[0], CONTEXT, block, precision="fp32").blocks[0]
        same(found.predicted, alone.predicted, 1e-5)
        same(found.loss, alone.loss, 1e-5)


def test_hidden_pixels_do_not_reach_the_prediction(encoder: openjepa.Encoder) -> None:
    """Other pixels outside the context change what is actually there, and not what is foretold."""
    pixels = encoder.prepared(IMAGES[0])
    other = pixels.clone()
    other[:, 8:, :] = 255 - other[:, 8:, :]  # all rows of patches but the first
    first, second = (encoder.predict(item, [0, 1, 2, 3], [9, 10], view="squash", precision="fp32") for item in (pixels, other))
    assert torch.equal(first.blocks[0].predicted, second.blocks[0].predicted)
    assert (first.blocks[0].actual - second.blocks[0].actual).abs().max() > 0.1


@pytest.mark.parametrize("size", [48, (24, 56)])
def test_other_sizes_and_whole_views(size: Any, run: tuple[Path, IJepa], encoder: openjepa.Encoder) -> None:
    """Positions of encoder and predictor are computed for the grid."""
    image = shape_image(1, 64).crop((0, 0, 64, 40))
    grid = encoder.grid(size)
    targets = [[grid[1] + 1, grid[1] + 2]]
    found = encoder.predict(image, openjepa.PatchBox(0, 0, 1, grid[1]), targets, size=size, precision="fp32")
    assert found.grid == grid
    batch = batch_of(encoder.prepared(image, size=size)[None], list(range(grid[1])), targets, grid)
    method = run[1]
    images, masks = batch.views[VIEW][0], batch.masks[VIEW]
    assert isinstance(masks, BlockMasks)
    with torch.no_grad():
        tokens = method.target_encoder.network(images, masks.context).patches
        expected = method.predictor(tokens, masks.context, masks.targets, grid)
    same(found.blocks[0].predicted, expected[:, 0], 1e-5)
    whole = encoder.predict(image, None, [0], view="whole", size=size, precision="fp32")
    side = size if isinstance(size, int) else min(size)
    assert whole.grid == tuple(s // 8 for s in whole_view(torch.from_numpy(np.array(image)), side, 8).shape[1:])


# ------------------------------------------------------------------------------------------------------------- areas

MASK = np.zeros((3, 5), dtype=bool)
MASK[1:3, 2:4] = True
INDICES = [7, 8, 12, 13]


@pytest.mark.parametrize(
    "area",
    [
        openjepa.PatchBox(1, 2, 2, 2),
        INDICES,
        tuple(INDICES),
        range(7, 9),
        np.array(INDICES, np.int32),
        torch.tensor(INDICES),
        MASK,
        torch.from_numpy(MASK),
        MASK.tolist(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_area_in_every_form(area: Any) -> None:
    expected = [7, 8] if isinstance(area, range) else INDICES
    assert [found.tolist() for found in indices_of(area, (3, 5), "targets")] == [expected]
    assert [found.tolist() for found in indices_of([area, [0]], (3, 5), "targets")] == [expected, [0]]


def test_several_areas_in_every_form() -> None:
    both = [INDICES, [0, 1, 5, 6]]
    other = np.zeros_like(MASK)
    other[:2, :2] = True
    forms: list[Any] = [
        both,
        torch.tensor(both),
        np.array(both),
        np.stack([MASK, other]),
        [MASK, torch.from_numpy(other)],
        [openjepa.PatchBox(1, 2, 2, 2), openjepa.PatchBox(0, 0, 2, 2)],
    ]
    for areas in forms:
        assert [found.tolist() for found in indices_of(areas, (3, 5), "targets")] == both
    assert [found.tolist() for found in indices_of([[3], [1, 2]], (3, 5), "targets")] == [[3], [1, 2]]
    assert indices_of([4, 2, 3], (3, 5), "targets")[0].tolist() == [4, 2, 3], "listed patches keep their order"


@pytest.mark.parametrize(
    ("area", "message"),
    [
        ([], "targets: no area is given"),
        ([[]], "targets: no patch is chosen"),
        (np.zeros((3, 5), bool), "targets: no patch is chosen"),
        (openjepa.PatchBox(0, 0, 0, 3), "no patch is chosen"),
        (np.ones((5, 3), bool), r"targets: a mask of the shape \[5, 3\] does not fit the grid of 3 rows and 5 columns"),
        (np.ones(15, bool), r"shape \[15\] does not fit"),
        ([15], r"targets: patch 15 is not on the grid of 3 x 5 patches, whose numbers are 0 to 14"),
        ([[0], [-1]], r"targets\[1\]: patch -1 is not on the grid"),
        (openjepa.PatchBox(1, 3, 1, 3), r"PatchBox\(top=1, left=3, height=1, width=3\) reaches beyond the grid of 3 rows"),
        (openjepa.PatchBox(-1, 0, 2, 2), "reaches beyond"),
        ([1, 2, 1], "a patch is listed twice"),
        ([0.5, 1.0], "targets: torch.float64 numbers"),
        (torch.tensor(3), "shape"),
        (7, "targets cannot be of type int: give a PatchBox"),
        ("all", "targets cannot be of type str"),
        (["a"], r"is no area"),
    ],
)
def test_areas_that_cannot_be(area: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        indices_of(area, (3, 5), "targets")


def test_contexts(encoder: openjepa.Encoder) -> None:
    """Joined areas, all patches outside the targets, and patches that are in both."""
    box = openjepa.PatchBox
    image = IMAGES[0]
    joined = encoder.predict(image, [box(0, 0, 2, 2), box(1, 1, 2, 2)], [15])
    assert joined.context.tolist() == [0, 1, 4, 5, 6, 9, 10]
    rest = encoder.predict(image, None, [box(0, 0, 3, 4), box(0, 0, 4, 3)])
    assert rest.context.tolist() == [15]
    overlapping = encoder.predict(image, [0, 1, 2], [[2, 3], [4, 5]])
    assert [block.in_context.tolist() for block in overlapping.blocks] == [[True, False], [False, False]]
    with pytest.raises(ValueError, match="these cover the whole grid: name a context"):
        encoder.predict(image, None, box(0, 0, 4, 4))
    with pytest.raises(ValueError, match="context: no patch is chosen"):
        encoder.predict(image, np.zeros((4, 4), bool), [0])
    with pytest.raises(ValueError, match="context: patch 16 is not on the grid"):
        encoder.predict(image, [16], [0])


def test_the_map_of_cosines(encoder: openjepa.Encoder) -> None:
    found = encoder.predict(IMAGES, [15], [[0, 1], [1, 2]])
    places = found.cosine_map()
    first, second = (block.cosine for block in found.blocks)
    assert places.shape == (3, 4, 4)
    same(places[:, 0, :3], torch.stack([first[:, 0], (first[:, 1] + second[:, 0]) / 2, second[:, 1]], 1))
    assert places.isnan().sum() == 3 * 13


def test_what_cannot_predict(tmp_path: Path, run: tuple[Path, IJepa], encoder: openjepa.Encoder) -> None:
    alone = openjepa.load(write_encoder(tmp_path))
    with pytest.raises(ValueError, match=r"came without a predictor; there is one in runs of I-JEPA \(give the run folder"):
        alone.predict(IMAGES[0], [0], [1])
    assert load_any(run[0], WeightsChoice(predictor=False)).predictor is None
    with pytest.raises(ValueError, match="images is empty"):
        encoder.predict([], [0], [1])
    wide = [shape_image(0, 40).crop((0, 0, 40, 20)), IMAGES[0]]
    with pytest.raises(ValueError, match="view='whole' gives these images different grids"):
        encoder.predict(wide, [0], [1], view="whole")
    with pytest.raises(ValueError, match="targets_from is an encoder of another width"):
        encoder.predict(IMAGES[0], [0], [1], targets_from=openjepa.load(DATA / "ijepa_checkpoint.pth.tar", heads=2))
