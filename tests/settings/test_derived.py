"""Settings that follow others: explicit values are never touched, whoever has set them; derived ones always follow."""

import re
import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openjepa.checks import check, remarks
from openjepa.cli import main
from openjepa.commands.parsing.arguments import given_settings
from openjepa.commands.train import parse_train
from openjepa.config import difference, flatten, load_run_config, save_yaml
from openjepa.experiments.ablations.ablation_lengths import base_config
from openjepa.recipes import kept_by_file, load_recipe
from openjepa.recipes.ablations import ablation_rows
from openjepa.settings.derived import RULES, division_problem, divisors, fitting_microbatches, resolve
from openjepa.settings.experiments import AblationSettings
from openjepa.settings.run import MonitorSettings, RunConfig
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.small_runs import small_config

FOLLOWING: list[tuple[str, str, str, object]] = [
    ("cpu-64", "--optim.total-steps 2400", "method.ema_start", 0.958333),
    ("dino-cpu-32", "--optim.total-steps 2400", "method.ema_start", 0.958333),
    ("ibot-cpu-64", "--optim.total-steps 50", "method.ema_start", 0.0),
    ("msn-gpu-224", "--optim.total-steps 10000", "method.ema_start", 0.99),
    ("cpu-64", "--optim.total-steps 2400 --method.ema-memory 0.02", "method.ema_start", 0.979167),
    ("data2vec-cpu-32", "--optim.total-steps 1000", "method.ema_start", 0.9),
    ("data2vec-cpu-32", "--optim.total-steps 1000", "method.ema_end", 0.9),
    ("data2vec-cpu-32", "--method.ema-start 0.7", "method.ema_end", 0.7),
    ("cpu-64", "--optim.total-steps 2400", "optim.warmup_steps", 240),
    ("cpu-64 --preset official", "--optim.total-steps 2400", "optim.warmup_steps", 320),
    ("mae-cpu-32", "--optim.total-steps 2400", "optim.warmup_steps", 120),
    ("cpu-64", "--optim.epochs 50", "optim.warmup_epochs", 5.0),
    ("cpu-64", "--optim.warmup-share 0.25", "optim.warmup_steps", 3000),
    ("ijepa-vitb16", "--optim.warmup-share 0.05", "optim.warmup_epochs", 30.0),
    ("cpu-64", "--optim.total-steps 2400", "monitor.every", 240),
    ("dino-gpu-224", "--optim.total-steps 300", "monitor.every", 100),
    ("cpu-64", "--model.size base", "method.predictor_width", 384),
    ("cpu-64", "--model.width 256", "method.predictor_width", 128),
    ("quickstart", "--model.size small", "method.predictor_heads", 3),
    ("quickstart", "--model.width 96 --model.heads 3", "method.predictor_heads", 3),
    ("mae-cpu-32", "--model.width 256", "method.decoder_width", 128),
    ("mae-cpu-32", "--model.heads 8", "method.decoder_heads", 8),
    ("data2vec-cpu-32", "--model.depth 12", "method.average_layers", 6),
    ("dino-cpu-32", "--model.width 64", "method.outputs", 1024),
    ("ibot-cpu-32", "--model.size base", "method.outputs", 4096),
    ("dino-cpu-32", "--model.width 64", "method.head_hidden", 256),
    ("ibot-cpu-32", "--model.width 64", "method.bottleneck", 32),
    ("ibot-cpu-32", "--method.outputs 500", "method.patch_outputs", 500),
    ("msn-cpu-32", "--model.width 64", "method.prototypes", 256),
    ("msn-cpu-32", "--model.width 64", "method.output_width", 64),
    ("msn-cpu-32", "--model.width 64", "method.head_hidden", 256),
    ("msn-cpu-32", "--model.size large", "masks.ratio", 0.7),
    ("msn-gpu-224", "--model.width 768", "masks.ratio", 0.3),
    ("dino-cpu-32", "--data.image-size 64", "method.local_size", 28),
    ("msn-cpu-32", "--model.patch-size 8", "method.local_size", 16),
    ("ibot-cpu-32", "--data.image-size 112", "method.blur_sigma", (0.1, 1.0)),
    ("cpu-64 --preset official", "--data.image-size 96", "masks.min_keep", 7),
    ("ijepa-vitb16", "--optim.batch-size 10", "optim.microbatch_size", 10),
    ("ijepa-vitb16", "--optim.batch-size 2000", "masks.group_size", 125),
    ("ijepa-vitb16", "--optim.batch-size 2000", "optim.microbatch_size", 125),
    ("ijepa-vitg16", "--optim.batch-size 36", "masks.group_size", 18),
    ("ijepa-vitb16", "--masks.group-size 64", "optim.microbatch_size", 64),
    ("ijepa-vitb16", "--optim.microbatch-size 256", "masks.group_size", 256),
    ("mae-vitb16", "--optim.batch-size 100", "optim.microbatch_size", 50),
    ("dino-vits16", "--optim.batch-size 7", "optim.microbatch_size", 7),
    ("data2vec-vitl16", "--optim.batch-size 48", "optim.microbatch_size", 48),
]
"""Recipe, what is changed, a setting that follows it, and its value."""
EXPLICIT: dict[str, Any] = {
    "method.ema_start": 0.97,
    "method.ema_end": 0.98,
    "optim.warmup_steps": 7,
    "optim.warmup_epochs": 2.0,
    "monitor.every": 33,
    "method.predictor_width": 96,
    "method.predictor_heads": 1,
    "method.decoder_width": 96,
    "method.decoder_heads": 2,
    "method.average_layers": 1,
    "method.outputs": 100,
    "method.patch_outputs": 77,
    "method.head_hidden": 40,
    "method.bottleneck": 20,
    "method.prototypes": 50,
    "method.output_width": 20,
    "method.local_size": 16,
    "method.blur_sigma": (0.2, 0.5),
    "masks.min_keep": 2,
    "masks.ratio": 0.5,
    "masks.group_size": 5,
    "optim.microbatch_size": 5,
}
"""A value of each setting that somebody may want."""


def parsed(command: str) -> RunConfig:
    return parse_train(shlex.split(command), "openjepa train", "")[0]


@pytest.mark.parametrize(
    ("options", "cache"),
    [
        ("--data.streaming", "none"),
        ("--data.no-streaming", "device"),
        ("", "device"),
        ("--data.streaming --data.cache memory", "memory"),  # refused by the checks
    ],
)
def test_the_cache_of_a_recipe_gives_way_to_a_stream(options: str, cache: str) -> None:
    assert parsed(f"cpu-64 --data.source huggingface --data.path x {options}").data.cache == cache


def value(config: RunConfig, name: str) -> object:
    return flatten(config)[name]


def explicit(config: RunConfig, name: str) -> RunConfig:
    group, field = name.split(".")
    return replace(config, **{group: replace(getattr(config, group), **{field: EXPLICIT[name]})})


def option(name: str) -> str:
    wanted = EXPLICIT[name]
    return f"--{name.replace('_', '-')} {' '.join(map(str, wanted)) if isinstance(wanted, tuple) else wanted}"


def test_the_first_momentum_is_given_in_one_way() -> None:
    """The memory is gone once the momentum has followed, so that a file of the run gives it in one way, too."""
    config = load_recipe("cpu-64")
    method, data = replace(config.method, ema_memory=0.5), replace(config.data, path="somewhere")  # type: ignore[call-arg]
    config = replace(config, method=method, data=data)
    check(config)
    found = flatten(resolve(replace(config, optim=replace(config.optim, total_steps=100))))
    assert (found["method.ema_start"], found["method.ema_memory"]) == (0.98, None)
    twice = replace(config, method=replace(config.method, ema_start=0.9))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"method.ema_memory=0.5 and method.ema_start=0.9 both .* use method.ema_start=None"):
        check(twice)


def test_every_rule_has_a_case() -> None:
    assert set(RULES) == {name for _, _, name, _ in FOLLOWING} == set(EXPLICIT)


@pytest.mark.parametrize(("recipe", "changes", "name", "expected"), FOLLOWING)
def test_what_nobody_has_set_follows(recipe: str, changes: str, name: str, expected: object) -> None:
    config = resolve(parsed(f"{recipe} {changes} --data.path x"))
    assert value(config, name) == pytest.approx(expected)
    assert resolve(config) == config, "resolved settings are explicit ones"
    check(config)


@pytest.mark.parametrize(("recipe", "changes", "name"), [case[:3] for case in FOLLOWING])
def test_what_somebody_has_set_stays(recipe: str, changes: str, name: str, tmp_path: Path) -> None:
    assert value(resolve(parsed(f"{recipe} {changes} {option(name)}")), name) == EXPLICIT[name], "on the command line"
    assert value(resolve(explicit(parsed(f"{recipe} {changes}"), name)), name) == EXPLICIT[name], "in Python"
    save_yaml(explicit(resolve(parsed(recipe)), name), tmp_path / "config.yaml")
    from_file = parsed(f"--config {tmp_path} {changes}")
    if "--optim.warmup-share" in changes:  # the command line says more than the file
        return
    assert value(resolve(from_file), name) == EXPLICIT[name], "in a file"


@pytest.mark.parametrize(
    "recipe", ["cpu-64", "quickstart", "mae-cpu-32", "data2vec-cpu-32", "dino-cpu-32", "ibot-cpu-32", "msn-cpu-32"]
)
def test_a_file_of_ours_says_everything(recipe: str, tmp_path: Path) -> None:
    """Only what the command line names is changed, and a file from before there was anything to derive is as good."""
    written = resolve(load_recipe(recipe))
    save_yaml(written, tmp_path / "config.yaml")
    old = "".join(
        line
        for line in (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
        if not re.search("_share|per_device", line)
    )
    (tmp_path / "config.yaml").write_text(old)
    assert resolve(parsed(f"--config {tmp_path}")) == written
    changed = resolve(parsed(f"--config {tmp_path} --optim.total-steps 100_000 --model.width 64 --data.image-size 128"))
    assert {name for name, _, _ in difference(written, changed)} == {"optim.total_steps", "model.width", "data.image_size"}


@pytest.mark.parametrize("spelling", ["1000", "1_000", "+1000", "01000", "=1000", "=1_000"])
def test_every_spelling_of_a_number_counts_the_same(spelling: str) -> None:
    glued = spelling if spelling.startswith("=") else f" {spelling}"
    config = resolve(parsed(f"cpu-64 --optim.total-steps{glued}"))
    assert (config.optim.total_steps, config.optim.warmup_steps, value(config, "method.ema_start")) == (1000, 100, 0.9)
    assert value(resolve(parsed(f"cpu-64 --model.width{glued}")), "method.predictor_width") == 500


@pytest.mark.parametrize("asked", ["--method.ema-start None", "--method.ema-start=None --optim.warmup-steps None"])
def test_none_asks_for_what_follows(asked: str) -> None:
    assert value(resolve(parsed(f"cpu-64 --optim.total-steps 1000 {asked}")), "method.ema_start") == 0.9
    official = f"cpu-64 --preset official --optim.total-steps 1000 {asked}"
    assert value(resolve(parsed(official)), "method.ema_start") == 0.9, "the released 0.996 is explicit"


@pytest.mark.parametrize(
    ("recipe", "changes", "name", "published"),
    [
        ("ijepa-vitb16", "--model.size large", "method.predictor_width", 384),
        ("ijepa-vitb16", "--optim.epochs 300", "optim.warmup_epochs", 40),
        ("ijepa-vitb16", "--optim.total-steps 9000", "method.ema_start", 0.996),
        ("mae-vitb16", "--model.size large", "method.decoder_width", 512),
        ("data2vec-vitb16", "--model.size large", "method.average_layers", 6),
        ("dino-vits16", "--model.size base", "method.outputs", 65536),
        ("msn-vits16", "--model.size base", "masks.ratio", 0.15),
        ("cpu-64 --preset official", "--optim.total-steps 9000", "method.ema_start", 0.996),
    ],
)
def test_published_values_are_explicit(recipe: str, changes: str, name: str, published: object) -> None:
    assert value(resolve(parsed(f"{recipe} {changes}")), name) == published


def test_processes_share_the_microbatch() -> None:
    config = load_recipe("ijepa-vitb16")
    found = {number: resolve(config, processes=number).optim.microbatch_size for number in (1, 16, 32, 1024)}
    assert found == {1: 128, 16: 128, 32: 64, 1024: 2}


def test_a_run_in_epochs_follows_once_its_length_is_known(tmp_path: Path) -> None:
    config = small_config(write_folder(tmp_path / "images", 32), tmp_path / "runs", total_steps=None, warmup_steps=None)
    optim = replace(config.optim, epochs=30, warmup_epochs=None, warmup_share=0.1)
    config = replace(config, optim=optim, method=replace(config.method, ema_start=None))  # type: ignore[call-arg]
    config = replace(config, monitor=MonitorSettings(every=None, images=8))
    assert value(resolve(config), "method.ema_start") is None is resolve(config).monitor.every
    assert (value(resolve(config, 120), "method.ema_start"), resolve(config, 120).monitor.every) == (0.166667, 100)
    folder = train(replace(config, optim=replace(optim, epochs=1)))
    assert folder is not None
    written = load_run_config(folder)
    steps = 32 // 8
    assert (value(written, "method.ema_start"), written.monitor.every, written.optim.warmup_epochs) == (0.0, 100, 0.1)
    assert (written.optim.total_steps, written.optim.warmup_share, steps) == (None, None, 4)
    assert train(replace(config, optim=replace(optim, epochs=1))) == folder, "the same command continues the run"


def test_rows_of_an_ablation_follow_its_model(tmp_path: Path) -> None:
    config = load_recipe("cpu-32")
    settings = AblationSettings(
        ablation="methods", images=32_000, model=replace(config.model, width=64), data=config.data, output=tmp_path
    )
    rows = {name: resolve(row) for name, row in ablation_rows("methods", base_config(config, settings)).items()}
    found = {name: value(row, "method.ema_start") for name, row in rows.items() if name != "mae"}
    assert found == dict.fromkeys(("ijepa", "data2vec", "dino", "ibot", "msn"), 0.9)
    assert value(rows["ijepa"], "method.predictor_width") == value(rows["mae"], "method.decoder_width") == 32
    assert value(rows["dino"], "method.outputs") == 1024 and value(rows["mae"], "optim.warmup_steps") == 50


def test_what_stays_in_a_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    written = resolve(parsed("quickstart"))
    save_yaml(written, file)
    longer = parsed(f"--config {file} --optim.total-steps 10_000")
    assert kept_by_file(written, longer) == {"optim.warmup_steps": 1000, "monitor.every": 1000, "method.ema_start": 0.99}
    wider = parsed(f"--config {file} --model.width 64 --monitor.every 7")
    assert kept_by_file(written, wider) == {"method.predictor_width": 32}
    assert kept_by_file(written, parsed(f"--config {file} --optim.lr 2e-3")) == {}
    own = replace(written, method=replace(written.method, ema_start=0.99))  # type: ignore[call-arg]
    assert "method.ema_start" not in kept_by_file(own, replace(longer, method=own.method)), "it never followed"
    assert kept_by_file(replace(written, recipe="custom"), longer) == {}
    with pytest.raises(SystemExit):
        main(["train", "--config", str(file), "--optim.total-steps", "100", "--dry-run"])
    words = capsys.readouterr().err
    assert (
        f"note: what {file} says stays; to follow the changed settings, give --optim.warmup-steps 10 --monitor.every 100"
        in words
    )
    assert "optim.warmup_steps=500 is more than optim.total_steps=100" in words


@pytest.mark.parametrize(
    ("recipe", "changes", "refused"),
    [
        ("ijepa-vitb16", "--optim.batch-size 0", "optim.batch_size=0 must be at least 1"),
        ("dino-cpu-32", "--model.patch-size 0", "model.patch_size=0 must be between 4 and 16"),
        ("cpu-64 --preset official", "--model.patch-size 0", "model.patch_size=0 must be between 4 and 16"),
        ("quickstart", "--optim.total-steps -5", "optim.total_steps=-5 must be at least 1"),
        ("quickstart", "--model.width -5", "model.width=-5 must be at least 1"),
        ("ijepa-vitb16", "--optim.images-per-device 0", "optim.images_per_device=0 must be at least 1"),
        ("msn-cpu-32", "--model.depth 0", "model.depth=0 must be at least 1"),
    ],
)
def test_impossible_values_are_refused_before_anything_follows_from_them(
    recipe: str, changes: str, refused: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    save_yaml(resolve(parsed(recipe)), file)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(file), "--data.path", "photos", *shlex.split(changes), "--dry-run"])
    assert ended.value.code == 2
    words = capsys.readouterr().err
    assert refused in words and "note:" not in words


def test_an_impossible_value_of_a_file_can_be_mended_by_an_option(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    save_yaml(resolve(parsed("quickstart")), file)
    file.write_text(file.read_text().replace("patch_size: 8", "patch_size: 0"))
    assert load_run_config(file).model.patch_size == 0
    main(["train", "--config", str(file), "--model.patch-size", "8", "--run.output", str(tmp_path), "--dry-run"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos"), 300)


@pytest.mark.parametrize("recipe", ["quickstart", "cpu-32", "dino-cpu-32", "data2vec-cpu-32"])
@pytest.mark.parametrize("length", ["--optim.epochs 40", "--optim.total-steps 400"])
def test_the_options_of_the_note_make_everything_follow(
    recipe: str, length: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what follows only once the steps of a run in epochs are known."""
    data = "" if recipe == "quickstart" else f"--data.path {photos} --optim.batch-size 16"
    file = tmp_path / "config.yaml"
    save_yaml(resolve(parsed(f"{recipe} {data}")), file)
    command = f"--config {file} {length}"
    with suppress(SystemExit):  # the old warm-up may be too long
        main(["train", *shlex.split(command), "--run.output", str(tmp_path), "--dry-run"])
    note = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("note: what"))
    pasted = f"{command} {note.partition('give ')[2]}"
    main(["train", *shlex.split(pasted), "--run.output", str(tmp_path), "--dry-run"])
    assert "note: what" not in capsys.readouterr().err, "nothing stays behind"
    assert difference(resolve(parsed(pasted), 400), resolve(parsed(f"{recipe} {data} {length}"), 400)) == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "cpu-64 --optim.warmup-share 0.2 --optim.warmup-steps 100",
            "optim.warmup_share=0.2 has no effect: optim.warmup_steps=100",
        ),
        (
            "cpu-64 --optim.warmup-share 0.2 --optim.warmup-epochs 3",
            "optim.warmup_share=0.2 has no effect: optim.warmup_epochs=3",
        ),
        ("cpu-64 --optim.warmup-steps 100", None),
        ("cpu-64 --optim.warmup-share 0.2", None),
        (
            "ijepa-vitb16 --optim.images-per-device 64 --optim.microbatch-size 32 --masks.group-size 32",
            "optim.images_per_device=64 has no effect beside optim.microbatch_size=32 and masks.group_size=32",
        ),
        (
            "mae-vitb16 --optim.images-per-device 64 --optim.microbatch-size 32",
            "optim.images_per_device=64 has no effect beside optim.microbatch_size=32",
        ),
        ("ijepa-vitb16 --optim.images-per-device 64 --optim.microbatch-size 32", None),
        ("ijepa-vitb16 --optim.microbatch-size 32 --masks.group-size 32", None),
    ],
)
def test_what_others_would_follow_is_remarked_if_nothing_follows_it(command: str, expected: str | None) -> None:
    """Only of what was given: a recipe's share of the warm-up gives way to steps without a word."""
    found = remarks(parsed(command), given_settings(shlex.split(command)))
    assert [remark.startswith(expected or "?") for remark in found] == [True] * (expected is not None)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, [1]), (7, [1, 7]), (36, [1, 2, 3, 4, 6, 9, 12, 18, 36]), (10**12 + 39, [1, 10**12 + 39])]
)
def test_divisors(number: int, expected: list[int]) -> None:
    assert divisors(number) == expected


@pytest.mark.parametrize(
    ("batch", "processes", "microbatch", "problem"),
    [
        (2048, 7, None, "7 ranks do not divide optim.batch_size=2048: use 4 or 8 ranks, or --optim.batch-size 2044 or 2051"),
        (6, 8, None, "8 ranks do not divide optim.batch_size=6: use 6 ranks, or --optim.batch-size 8"),
        (24, 2, 5, "optim.microbatch_size=5 does not divide optim.batch_size=24 / 2 ranks; near values that do: 3, 4, 6, 12"),
        (10, 1, 4, "optim.microbatch_size=4 does not divide optim.batch_size=10; near values that do: 1, 2, 5, 10"),
        (24, 3, 4, ""),
        (24, 3, None, ""),
    ],
)
def test_a_batch_that_cannot_be_divided_has_neighbors_that_can(
    batch: int, processes: int, microbatch: int | None, problem: str
) -> None:
    assert division_problem(batch, processes, microbatch, "ranks") == problem


@pytest.mark.parametrize(("share", "group", "expected"), [(12, None, [1, 2, 3, 4, 6, 12]), (12, 8, [1, 2, 4]), (7, 4, [1])])
def test_fitting_microbatches(share: int, group: int | None, expected: list[int]) -> None:
    assert fitting_microbatches(share, group) == expected
