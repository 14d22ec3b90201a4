"""Impossible settings are found before anything is loaded, and the error says what would fit."""

from dataclasses import is_dataclass, replace
from typing import Any

import pytest

from openjepa.checks import check, remarks
from openjepa.config import flatten
from openjepa.recipes.matched import with_method
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import DenseSettings, EvaluationSettings, FinetuneSettings, LowShotSettings
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import DinoSettings
from openjepa.settings.models import check_positions
from openjepa.settings.protocols import PROTOCOLS, check_evaluation, evaluation_remarks
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings

READS = {name: entry.reads for name, entry in PROTOCOLS.items()}
UNPOOLED = [name for name, entry in PROTOCOLS.items() if not entry.pools]
OF_FEATURES = ("linear", "knn", "logistic")
OTHERS = tuple(name for name in PROTOCOLS if name not in OF_FEATURES)
VALID = RunConfig(data=FolderSettings(path="images"))


def changed(**groups: dict[str, Any]) -> RunConfig:
    return replace(VALID, **{name: replace(getattr(VALID, name), **values) for name, values in groups.items()})


def test_the_defaults_are_valid() -> None:
    check(VALID)
    assert remarks(VALID) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed(data={"image_size": 100}),
            r"patch_size=16 does not divide data.image_size=100x100: .* one of 4, 5, 10, or .*=96",
        ),
        (changed(data={"image_size": (64, 72)}), r"data.image_size=64x72: .* one of 4, 8, or data.image_size=64 6?[48]"),
        (changed(data={"image_size": 101}), r"data.image_size=101x101: use data.image_size=96"),
        (
            changed(data={"image_size": 8}),
            r"=16 does not divide data.image_size=8x8: use .* one of 4, 8, or .*=16",
        ),
        (changed(model={"patch_size": 32}), r"model.patch_size=32 must be between 4 and 16"),
        (changed(model={"heads": 7}), r"model.heads=7 does not divide the width of the encoder \(384\); .* 6, 8"),
        (changed(method={"predictor_width": 100}), r"predictor_heads=6 does not divide method.predictor_width \(100\)"),
        (changed(method={"predictor_width": 102}), r"predictor_width=102 must be a multiple of 4 .* 100 or 104"),
        (changed(model={"width": 390}), r"model.width=390 must be a multiple of 4 .* 388 or 392"),
        (changed(optim={"microbatch_size": 300}), r"microbatch_size=300 does not divide optim.batch_size=2048; .* 256, 512"),
        (changed(masks={"group_size": 100}), r"group_size=100 does not divide optim.batch_size=2048"),
        (changed(masks={"group_size": 128}), r"group_size=128 is no multiple of the microbatch \(2048 images\): set"),
        (changed(optim={"lr": 0.0}), r"optim.lr=0.0 must be above 0"),
        (changed(optim={"lr": float("nan")}), r"optim.lr=nan must be above 0"),
        (changed(optim={"lr": float("inf")}), r"optim.lr=inf"),
        (changed(masks={"context_ratio": 1.5}), r"masks.context_ratio=1.5 must be above 0 and at most 1"),
        (changed(masks={"target_scale": (0.3, 0.2)}), r"target_scale=0.3 0.2: smallest first, then largest: 0.2 0.3"),
        (changed(data={"crop_scale": (0.0, 1.0)}), r"data.crop_scale=0.0 must be above 0"),
        (changed(data={"pixel_std": (0.2, 0.0, 0.2)}), r"data.pixel_std=0.0 must be above 0"),
        (changed(data={"path": ""}), r"data.path is empty"),
        (changed(run={"device": "gpu"}), r"run.device='gpu' must be auto, cpu, cuda"),
        (changed(run={"device": "cuda:x"}), r"run.device='cuda:x' must be auto, cpu, cuda"),
        (changed(run={"name": "a/b"}), r"run.name='a/b' must be the name of one folder.* run.output"),
        (changed(run={"name": ".."}), r"run.name='\.\.' must be the name of one folder"),
        (changed(run={"name": "caf\udce9"}), r"run.name='caf\\udce9' has bytes that are no text"),
        (changed(run={"output": "caf\udce9/runs"}), r"run.output='caf\\udce9/runs' has bytes that are no text"),
        (changed(run={"name": "."}), r"run.name='\.' must be the name of one folder"),
        (changed(optim={"epochs": 10}), r"warmup_epochs=15 is not shorter than optim.epochs=10: .* e.g. 0.5"),
        (changed(optim={"total_steps": 0}), r"optim.total_steps=0 must be at least 1"),
        (changed(optim={"total_steps": 10, "warmup_steps": 11}), r"warmup_steps=11 is more than optim.total_steps=10"),
        (replace(VALID, data=HuggingFaceSettings(path="x", streaming=True)), r"needs optim.total_steps"),
        (
            replace(changed(optim={"total_steps": 99_999}), data=HuggingFaceSettings(path="x", streaming=True, cache="device")),
            r"data.cache='device' needs a list of images, not a stream: set data.cache=none",
        ),
        (changed(data={"image_size": 16}), r"needs at least 2x2 patches; this grid is 1x1"),
    ],
)
def test_impossible_settings(config: RunConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("feature_batch_size", 0, "evaluation.feature_batch_size=0 must be at least 1"),
        ("neighbor_temperature", 0.0, "evaluation.neighbor_temperature=0.0 must be above 0"),
        ("iterations", 0, "evaluation.iterations=0 must be at least 1"),
        ("workers", -1, "evaluation.workers=-1 must be at least 0"),
        ("neighbors", (10, 0), "evaluation.neighbors=0 must be at least 1"),
    ],
)
def test_impossible_evaluations(name: str, value: object, message: str) -> None:
    check_evaluation(EvaluationSettings())
    with pytest.raises(ValueError, match=message):
        check_evaluation(replace(EvaluationSettings(), **{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            changed(
                optim={"batch_size": 10, "microbatch_size": 128, "epochs": 3}, masks={"group_size": 128}, data={"path": ""}
            ),
            ("optim.microbatch_size=128", "optim.warmup_epochs=15", "data.path is empty"),
        ),
        (changed(optim={"lr": 0.0, "batch_size": -4}), ("optim.lr=0.0", "optim.batch_size=-4")),
        (
            changed(optim={"lr": 0.0, "epochs": 3}, run={"name": ".."}, monitor={"lidar_masks": 1}),
            ("optim.lr=0.0", "optim.warmup_epochs=15", "run.name='..'", "monitor.lidar_masks=1"),
        ),
        (
            changed(model={"heads": 7, "width": 390}, method={"predictor_width": 102}),
            ("model.heads=7", "model.width=390", "method.predictor_heads=7", "method.predictor_width=102"),
        ),
        (
            replace(changed(optim={"epochs": 9}), method=DinoSettings(local_size=100)),
            ("masks.strategy=multiblock", "model.class_token=False", "method.local_size=100", "optim.warmup_epochs=15"),
        ),
        (
            changed(data={"image_size": 100}, masks={"target_scale": (0.3, 0.2), "num_targets": 0}),
            ("masks.target_scale=0.3 0.2", "masks.num_targets=0"),
        ),
        (
            changed(data={"image_size": 8}, optim={"epochs": 9}),
            ("data.image_size=8x8", "optim.warmup_epochs=15"),
        ),
    ],
)
def test_all_that_cannot_work_is_said_at_once(config: RunConfig, names: tuple[str, ...]) -> None:
    with pytest.raises(Refusal) as found:
        check(config)
    first, *others = str(found.value).splitlines()
    assert first == f"{len(names)} things cannot work:"
    assert len(others) == len(names) and all(any(name in line for line in others) for name in names)


def test_values_that_fit_together_are_said() -> None:
    """Each could be mended alone, and would then not fit the other."""
    for batch, micro, group, fitting in ((10, 128, 128, (10, 10)), (96, 64, 10, (12, 12)), (96, 20, 32, (16, 32))):
        wrong = changed(optim={"batch_size": batch, "microbatch_size": micro}, masks={"group_size": group})
        with pytest.raises(Refusal, match=f"these fit together: optim.microbatch_size={fitting[0]} and masks.*={fitting[1]}$"):
            check(wrong)
        check(changed(optim={"batch_size": batch, "microbatch_size": fitting[0]}, masks={"group_size": fitting[1]}))


def test_processes_share_the_batch() -> None:
    grouped = changed(masks={"group_size": 128})
    check(grouped, world_size=16)
    with pytest.raises(ValueError, match=r"3 processes do not divide optim.batch_size=.*: use .* processes, or --optim"):
        check(VALID, world_size=3)


@pytest.mark.parametrize(
    ("config", "remark"),
    [
        (changed(optim={"total_steps": 9000, "epochs": 7, "warmup_steps": 1}), "optim.epochs=7 has no effect"),
        (changed(optim={"total_steps": 9, "warmup_steps": 9}), "optim.warmup_steps=9 is the whole training"),
        (changed(data={"cache_size": 64}), "data.cache_size=64 has no effect"),
        (changed(optim={"clip_mode": "per_tensor"}), "optim.clip_mode=per_tensor has no effect"),
        (
            replace(with_method(VALID, "mae"), masks=RandomPatchesSettings(group_size=2048)),
            "masks.group_size=2048 has no effect",
        ),
    ],
)
def test_settings_without_effect_are_remarked(config: RunConfig, remark: str) -> None:
    check(config)
    found = remarks(config)
    assert len(found) == 1 and found[0].startswith(remark)


SWEPT = ["weight_decays", "neighbors", "logistic.penalties", "attentive.learning_rates"]


def with_value(name: str, value: tuple[float, ...]) -> EvaluationSettings:
    group, _, inner = name.rpartition(".")
    usual = EvaluationSettings()
    changed: Any = replace(getattr(usual, group), **{inner: value}) if group else value
    return replace(usual, **{group or name: changed})


def test_sweeps_without_a_member_are_refused() -> None:
    """Every setting of several values, in groups too; those that are not refused then mean the usual ones."""
    found = {name: value for name, value in flatten(EvaluationSettings()).items() if isinstance(value, tuple)}
    assert len(found) == 10
    for name in found:
        if name in SWEPT:
            with pytest.raises(
                Refusal, match=rf"evaluation\.{name}=\(\) is empty: give at least one number, or leave it out for \d"
            ):
                check_evaluation(with_value(name, ()))
        else:
            check_evaluation(with_value(name, ()))


def test_sweeps_that_repeat_a_value_are_refused() -> None:
    """Classifiers are told apart by it. Also settings whose default has no value; two equal sides of an image are no sweep."""
    for name in (*SWEPT, "linear_full.learning_rates", "linear_full.weight_decays", "finetune.learning_rates"):
        with pytest.raises(Refusal, match=rf"evaluation\.{name}=5 3 5\.0 repeats a value: give each once, 5 3"):
            check_evaluation(with_value(name, (5, 3, 5.0)))
    check_evaluation(EvaluationSettings(image_size=(64, 64)))


def test_settings_of_an_evaluation_without_effect_are_named() -> None:
    settings = EvaluationSettings(
        finetune=FinetuneSettings(epochs=10, magnitude=3.0, randaugment=False), low_shot=LowShotSettings(seed=3), lidar_views=3
    )
    found = " | ".join(evaluation_remarks(settings, ["knn"], READS, UNPOOLED))
    assert "finetune.* has no effect: the protocol finetune is not run" in found
    assert "low_shot.seed has no effect" in found and "lidar_views" in found and "finetune.magnitude" in found
    assert evaluation_remarks(EvaluationSettings(), ["knn"], READS, UNPOOLED) == []
    assert evaluation_remarks(EvaluationSettings(finetune=FinetuneSettings(epochs=10)), ["finetune"], READS, UNPOOLED) == []


@pytest.mark.parametrize(
    ("change", "heeding", "others"),
    [
        (
            {"neighbors": (5,)},
            ("knn", "dense-knn"),
            ("linear", "logistic", "linear-full", "attentive", "finetune", "dense-linear"),
        ),
        ({"neighbor_temperature": 0.1}, ("knn", "dense-knn"), ("linear", "finetune")),
        ({"weight_decays": (0.1,)}, ("linear", "dense-linear"), ("knn", "logistic", "linear-full", "attentive", "dense-knn")),
        ({"iterations": 7}, ("linear", "dense-linear"), ("knn", "logistic", "finetune")),
        ({"dense": DenseSettings(max_patches=7)}, ("dense-linear", "dense-knn"), ("knn", "linear")),
        ({"feature_dtype": "bf16"}, OF_FEATURES, OTHERS),
        ({"lidar_images": 9}, OF_FEATURES, OTHERS),
        ({"seeds": 3}, tuple(PROTOCOLS), ()),
    ],
)
def test_settings_that_no_protocol_of_the_evaluation_reads_are_named(
    change: dict[str, Any], heeding: tuple[str, ...], others: tuple[str, ...]
) -> None:
    settings, (name,) = EvaluationSettings(**change), change
    shown = "dense.*" if name == "dense" else name
    for protocol in heeding:
        assert evaluation_remarks(settings, ["finetune", protocol], READS, UNPOOLED) == []
    for protocol in others:
        words = f"{shown} has no effect: the protocol {' or '.join(heeding)} is not run (--protocols)"
        assert evaluation_remarks(settings, [protocol], READS, UNPOOLED) == [words]


def test_every_group_of_a_protocol_is_known() -> None:
    groups = {name for name, value in vars(EvaluationSettings()).items() if is_dataclass(value)} - {"low_shot"}
    assert groups == {name for names in READS.values() for name in names if is_dataclass(getattr(EvaluationSettings(), name))}


@pytest.mark.parametrize(("width", "fitting"), [(1, "4 or 8"), (3, "4 or 8"), (5, "4 or 8"), (50, "48 or 52")])
def test_widths_that_fit_positions_are_two(width: int, fitting: str) -> None:
    with pytest.raises(Refusal, match=f"model.width={width} must be a multiple of 4 .* e.g. {fitting}$"):
        check_positions("model.width", width)
