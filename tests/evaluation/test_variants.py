"""What a result's file is called: every evaluation that is not the run's own has a file of its own.

Every setting that a protocol reads is part of the name, and none that it does not read.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.protocol import FeatureProbe, LabeledFeatures
from openjepa.evaluation.suite_run import _row_variant as suite_variant
from openjepa.evaluation.tasks import SUITES, data_name, variant_name
from openjepa.settings.evaluation import (
    DenseSettings,
    EvaluationSettings,
    FinetuneSettings,
    FullLinearSettings,
    LogisticSettings,
    LowShotSettings,
)
from openjepa.settings.protocols import PROTOCOLS
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.colors import CONFIG as COLOR_CONFIG
from tests.helpers.colors import color_probe
from tests.helpers.dense import probe as dense_probe
from tests.helpers.dense import side
from tests.helpers.evaluated_run import CONFIG, SETTINGS, encoder
from tests.helpers.images import write_folder


@pytest.mark.parametrize(
    ("changed", "variant"),
    [
        ({"selection": "paper"}, "paper"),
        ({"image_size": 24}, "24px"),
        ({"image_size": (32, 24)}, "32x24px"),
        ({"image_size": 32}, ""),
        ({"max_train_images": 20, "selection": "paper"}, "paper-max20"),
        ({"protocols": ("linear",)}, "linear-only"),
        ({"protocols": ("knn", "linear")}, ""),
        ({"baselines": ("pixels",)}, "no-untrained"),
        ({"encoder": "context"}, "context"),
        ({"neighbors": (1, 3), "seed": 7}, "seed-7-neighbors-1-3"),
        ({"finetune": FinetuneSettings(epochs=10)}, ""),  # no protocol heeds it
        ({"protocols": ("linear",), "weight_decays": (1.0,), "iterations": 2}, "linear-only-weight_decays-1.0-iterations-2"),
    ],
)
def test_an_evaluation_with_other_settings_has_its_own_file(run: Path, changed: dict[str, Any], variant: str) -> None:
    save_network(run / "context_encoder", Export(CONFIG, encoder(2)))
    own = run / "eval" / "classification.json"
    own.parent.mkdir()
    own.write_text('{"subjects": "the run\'s own"}')
    (result,) = evaluate_run(run, replace(SETTINGS, **changed))
    name = f"classification-{variant}.json" if variant else "classification.json"
    assert result.variant == variant and json.loads((run / "eval" / name).read_text())["variant"] == variant
    assert (own.read_text() == '{"subjects": "the run\'s own"}') == bool(variant)


def test_other_data_has_its_own_file(run: Path, images: Path, tmp_path: Path) -> None:
    own = FolderSettings(path=str(images), image_size=32)
    other = write_folder(tmp_path / "other", 40)
    for data, variant in (
        (own, ""),
        (replace(own, image_size=64, crop_scale=(0.1, 1.0), path=f"{images}/"), ""),  # how training saw the images
        (FolderSettings(path=str(other)), "other"),
        (replace(own, test_fraction=0.5), f"{images.name}-test_fraction-0.5"),
        (replace(own, path=str(tmp_path / "x" / images.name)), f"{images.name}-path-"),
    ):
        assert data_name(own, data).startswith(variant) and bool(data_name(own, data)) == bool(variant)
    evaluate_run(run, SETTINGS)
    before = (run / "eval" / "classification.json").read_bytes()
    evaluate_run(run, SETTINGS, FolderSettings(path=str(other)))
    assert (run / "eval" / "classification.json").read_bytes() == before
    assert json.loads((run / "eval" / "classification-other.json").read_text())["num_test"] == 8


def test_folders_of_one_name_have_results_of_their_own(run: Path, tmp_path: Path) -> None:
    for place, number in (("a", 24), ("b", 32), ("a", 24)):
        folder = (
            write_folder(tmp_path / place / "photos", number)
            if not (tmp_path / place).exists()
            else tmp_path / place / "photos"
        )
        evaluate_run(run, SETTINGS, FolderSettings(path=str(folder), test_fraction=0.5))
    found = {path.name: json.loads(path.read_text())["num_test"] for path in (run / "eval").glob("classification-photos*.json")}
    assert found == {"classification-photos.json": 12, "classification-photos-2.json": 16}


def test_names_of_files_end_somewhere() -> None:
    """Settings that make long words are a hash; two of them differ."""
    size = (32, 32)
    many, other = (
        EvaluationSettings(
            protocols=tuple(PROTOCOLS), logistic=LogisticSettings(penalties=tuple(first + i / 7 for i in range(20)))
        )
        for first in (1, 2)
    )
    names = [variant_name(settings, size, size, "x" * 300) for settings in (many, other)]
    assert names[0] != names[1] and all(len(name) < 200 for name in names)
    (words,) = re.findall(r"logistic\..*", variant_name(replace(many, protocols=("logistic",)), size, size))
    assert re.fullmatch(r"logistic\.settings-[0-9a-f]{8}", words)
    dense = EvaluationSettings(protocols=("dense-linear", "dense-knn"), dense=DenseSettings(max_patches=9))
    assert variant_name(dense, size, size) == "dense_linear-dense_knn-dense.max_patches-9"


def test_a_result_holds_every_setting(run: Path) -> None:
    evaluate_run(run, replace(SETTINGS, protocols=("knn",)))
    found = json.loads((run / "eval" / "classification-knn-only.json").read_text())["settings"]
    assert found["neighbors"] == [10, 20, 100] and found["finetune"]["epochs"] is None


# ---- settings in the name


SIZE = (32, 32)
OTHERS: dict[str, Any] = {
    **{"recipe": "mae", "rate_unit": "per_256", "head_norm": "encoder", "optimizer": "sgd", "augmentation": "none"},
    **{"randaugment": False, "precision": "fp32", "feature_dtype": "bf16", "heads": 3, "pooling": "average", "image_size": 64},
    **{"selection": "paper", "max_train_images": 9, "baselines": ("pixels",), "low_shot": LowShotSettings(percent=10.0)},
    **{"low_shot.list": "some/list.txt", "tasks": ("classification",), "device": "cpu", "encoder": "context"},
    **{"workers": 1, "lidar_images": 9},
}
"""Another value than the default, where it cannot be derived from that."""
OF_NO_RESULT = {"tasks", "device", "workers", "feature_batch_size", "max_skipped", "encoder"}
OF_FEATURES = {"feature_dtype", "lidar_images", "lidar_views"}
"""`tasks` and `encoder` are named by other means; the rest changes no number of a protocol."""
OF_EVERY_PROTOCOL = {"selection", "seeds", "image_size", "pooling", "max_train_images", "baselines", "low_shot", "seed"}
OF_EVERY_PROTOCOL |= {"heads", "precision"}
GROUPS = {name for name, value in vars(EvaluationSettings()).items() if is_dataclass(value)}


def other(name: str, value: Any) -> Any:
    """Another value of a setting than `value`."""
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, tuple):
        return (*value, 7)
    return 0.25 if value is None and name in {"mixup", "drop_path"} else 3 if value is None else value + 1


def changes() -> Iterator[tuple[str, EvaluationSettings]]:
    """Settings of which one is not the default, by its name: `iterations`, `dense.max_patches`."""
    usual = EvaluationSettings()
    for item in fields(usual):
        value = getattr(usual, item.name)
        if item.name == "protocols":
            continue
        if not is_dataclass(value) or item.name == "low_shot":
            yield item.name, replace(usual, **{item.name: other(item.name, value)})
            continue
        for inner in fields(value):
            changed = replace(value, **{inner.name: other(inner.name, getattr(value, inner.name))})
            yield f"{item.name}.{inner.name}", replace(usual, **{item.name: changed})


def name_of(settings: EvaluationSettings, protocol: str) -> str:
    size = (settings.image_size,) * 2 if isinstance(settings.image_size, int) else SIZE
    return variant_name(replace(settings, protocols=(protocol,)), SIZE, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_setting_is_in_the_name_exactly_where_it_is_read(protocol: str) -> None:
    own = name_of(EvaluationSettings(), protocol)
    entry = PROTOCOLS[protocol]
    assert (set(entry.reads) >= OF_FEATURES) == (entry.works_on == "features")
    read = OF_EVERY_PROTOCOL | set(entry.reads)
    names = {setting: name_of(changed, protocol) for setting, changed in changes()}
    assert len(names) == len(list(changes())) > 50
    is_read = {setting: setting.partition(".")[0] in read and setting not in OF_NO_RESULT for setting in names}
    assert {setting for setting, name in names.items() if name == own} == {name for name, yes in is_read.items() if not yes}
    distinct = [names[setting] for setting, yes in is_read.items() if yes]
    assert len(set(distinct)) == len(distinct)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_settings_that_are_changed_together_are_all_in_the_name(protocol: str) -> None:
    usual = EvaluationSettings()
    alone = {name: getattr(changed, name) for name, changed in changes() if name in {*PROTOCOLS[protocol].reads, "seed"}}
    pairs = [replace(usual, **{first: alone[first], second: alone[second]}) for first, second in combinations(alone, 2)]
    names = [name_of(settings, protocol) for settings in (*(replace(usual, **{name: alone[name]}) for name in alone), *pairs)]
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------------------- what a protocol really reads, by watching it


def watched(settings: EvaluationSettings, seen: set[str]) -> EvaluationSettings:
    """The settings, which note every field that is asked for; not by `replace`, which asks for all."""

    def of(value: Any, prefix: str) -> Any:
        class Watched(type(value)):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                by = sys._getframe(1).f_globals["__name__"]
                if not name.startswith("_") and name in vars(type(value))["__dataclass_fields__"] and by != "dataclasses":
                    seen.add(prefix + name)
                return super().__getattribute__(name)

        groups = {name: of(inner, f"{name}.") for name, inner in vars(value).items() if is_dataclass(inner)}
        return Watched(**vars(value) | groups)

    return of(settings, "")  # type: ignore[no-any-return]


def features() -> tuple[LabeledFeatures, LabeledFeatures]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    rows = torch.randn((40, 6), generator=generator) + labels[:, None]
    both = LabeledFeatures({"last": rows}, labels)
    return both, both


RUNS: dict[str, Callable[[Callable[..., Any], EvaluationSettings], Any]] = {
    "features": lambda protocol, settings: protocol(FeatureProbe(*features()), settings),
    "images": lambda protocol, settings: protocol(color_probe(train=30, test=9), settings),
    "maps": lambda protocol, settings: protocol(dense_probe(side(8, 0), side(4, 1)), settings),
}
QUICK = EvaluationSettings(
    workers=0,
    device="cpu",
    neighbors=(1, 3),
    weight_decays=(0.1,),
    linear_full=FullLinearSettings(epochs=1, batch_size=16),
    finetune=FinetuneSettings(epochs=1, batch_size=16, warmup_epochs=0.0, randaugment=True),
    dense=DenseSettings(max_patches=50),
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_protocol_reads_is_what_its_entry_says(protocol: str) -> None:
    """The list in PROTOCOLS, from which names are made, against what the protocol asks for while it runs."""
    assert COLOR_CONFIG.depth > 1
    seen: set[str] = set()
    quick = replace(QUICK, attentive=replace(QUICK.attentive, epochs=1), protocols=(protocol,))
    entry = PROTOCOLS[protocol]
    RUNS[entry.works_on](entry.load(), watched(quick, seen))
    common = OF_EVERY_PROTOCOL | OF_NO_RESULT | {"protocols"}
    tops = {name.partition(".")[0] for name in seen} - common
    assert tops == set(entry.reads) - OF_FEATURES  # what is kept and measured of features, by whoever extracts them


# ------------------------------------------------------------------------------------------------------------ its effects


def test_protocols_have_entries() -> None:
    assert {name for entry in PROTOCOLS.values() for name in entry.reads} <= set(vars(EvaluationSettings()))
    assert {name for entry in PROTOCOLS.values() for name in entry.reads} >= GROUPS - {"low_shot"}


@pytest.mark.parametrize(
    ("settings", "variant"),
    [
        (EvaluationSettings(protocols=("dense-linear", "dense-knn"), neighbors=(5,)), "neighbors-5"),
        (EvaluationSettings(protocols=("dense-linear", "dense-knn"), iterations=7), "iterations-7"),
        (EvaluationSettings(protocols=("dense-linear", "dense-knn"), weight_decays=(0.5,)), "weight_decays-0.5"),
        (
            EvaluationSettings(protocols=("dense-linear", "dense-knn"), dense=DenseSettings(max_patches=9)),
            "dense.max_patches-9",
        ),
        (EvaluationSettings(seed=7, precision="bf16"), "seed-7-precision-bf16"),
        (EvaluationSettings(heads=12), "heads-12"),
        (EvaluationSettings(feature_dtype="bf16"), "feature_dtype-bf16"),
        (EvaluationSettings(lidar_images=500, neighbors=(5,)), "lidar_images-500-neighbors-5"),
        (EvaluationSettings(low_shot=LowShotSettings(percent=1.0)), "1pct"),
        (EvaluationSettings(low_shot=LowShotSettings(percent=0.1234567)), "0.1234567pct"),
    ],
)
def test_words_of_names(settings: EvaluationSettings, variant: str) -> None:
    usual = EvaluationSettings(protocols=settings.protocols or ("linear", "knn"))
    assert variant_name(settings, SIZE, SIZE, usual=usual) == variant


def test_rows_of_suites_have_the_same_words() -> None:
    row = next(row for row in SUITES["cached"] if row.name == "imagenet1k")
    named = {
        suite_variant(row, replace(EvaluationSettings(protocols=row.protocols), **changed), COLOR_CONFIG, "")
        for changed in (
            {},
            {"precision": "fp32"},
            {"feature_dtype": "fp32"},
            {"heads": 3},
            {"neighbors": (5,)},
            {"iterations": 9},
        )
    }
    assert len(named) == 6


def test_lists_of_one_name_have_results_of_their_own(run: Path, tmp_path: Path) -> None:
    """The name of a result says only what a list is called, not where it lies."""
    photos = tmp_path / "photos"
    names = sorted(path.name for path in write_folder(photos / "train", 40).rglob("*.png"))
    write_folder(photos / "test", 8)
    data = FolderSettings(path=str(photos))
    settings = replace(SETTINGS, protocols=("knn",), selection="paper", baselines=(), precision="auto")
    found = []
    for place, number in (("a", 30), ("b", 20), ("a", 30)):
        listed = tmp_path / place / "few.txt"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text("\n".join(names[:number]))
        (result,) = evaluate_run(run, replace(settings, low_shot=LowShotSettings(list=str(listed))), data)
        found.append(result.file_name)
    assert found[0] == found[2] != found[1] and found[1] == found[0].replace(".json", "-2.json")
