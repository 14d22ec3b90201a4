"""openjepa ablate: the same run with one thing changed, trained, evaluated and compared; continued, shared and failing."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from openjepa.cli import main
from openjepa.experiments.ablations import ablation_run as running
from openjepa.experiments.ablations.ablation_lengths import PlannedRun, Speed, base_config, planned_runs
from openjepa.experiments.ablations.ablation_run import run_ablation
from openjepa.experiments.ablations.ablation_tables import RunResult, claimed_work, legend, print_tables, read_results
from openjepa.recipes import load_recipe
from openjepa.recipes.ablations import ABLATIONS, ablation_rows
from openjepa.settings.experiments import AblationSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import RunConfig, SystemSettings
from openjepa.settings.sources import FolderSettings
from openjepa.training.loop import train
from tests.helpers.example_run import finished
from tests.helpers.images import write_folder
from tests.helpers.scene_checks import write_clevr

SPEEDS = {"ijepa": Speed(100.0, 2e6), "mae": Speed(300.0, 1e6)}
RUNS = {f"{row}-{steps}steps-seed{seed}" for seed in (0, 1) for row, steps in (("ijepa", 4), ("mae", 4), ("mae", 12))}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, and a few scenes beside them."""
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder / "photos", 40, 16)
    depths = [[7.0, 9.0, 11.0][: 3 - number % 2] + [9.0 + number % 3] * 2 for number in range(12)]
    write_clevr(folder / "scenes", {"train": depths, "val": depths[:6]})
    return folder


@pytest.fixture
def base() -> RunConfig:
    """cpu-32 with a test encoder and batches of eight."""
    config = load_recipe("cpu-32")
    assert isinstance(config.method, IJepaSettings)
    method = replace(config.method, predictor_width=24, predictor_depth=1)
    return replace(config, method=method, optim=replace(config.optim, batch_size=8))


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> AblationSettings:
    """Two methods with two seeds, four steps each."""
    return AblationSettings(
        ablation="methods",
        rows=("ijepa", "mae"),
        images=32,
        scenes=str(images / "scenes"),
        output=tmp_path / "ablation",
        device="cpu",
        precision="fp32",
        data=FolderSettings(path=str(images / "photos"), image_size=16, cache="device"),
        model=ModelSettings(size="test", patch_size=4),
        system=SystemSettings(workers=0, progress="none", log_every=2),
    )


@pytest.fixture(autouse=True)
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds that are measured differ from call to call; these do not."""
    monkeypatch.setattr(running, "measure_speeds", lambda rows, rounds: {row: SPEEDS[row] for row in rows})


def refuse(config: RunConfig) -> Path:
    """Instead of training."""
    raise AssertionError(f"{config.run.name} was finished")


def spread_of(results: list[RunResult], name: str) -> dict[str, float]:
    values = [100 * result.numbers[name] for result in results]
    return {"mean": statistics.fmean(values), "spread": statistics.stdev(values)}


def test_from_settings_to_tables(base: RunConfig, settings: AblationSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_ablation(base, settings) == 0
    output, results = settings.output, read_results(settings.output)
    assert {result.name for result in results} == RUNS
    assert {path.parent.name for path in output.glob("*/encoder")} == RUNS
    tables = json.loads((output / "methods.json").read_text())
    for budget, steps in (("images", {"ijepa": 4, "mae": 4}), ("seconds", {"ijepa": 4, "mae": 12})):
        lines = {line["row"]: line for line in tables[budget]}
        assert list(lines) == ["ijepa", "mae", "untrained", "pixels"]
        for row, number in steps.items():
            own = [result for result in results if result.row == row and result.steps == number]
            expected = spread_of(own, "classification/linear")
            assert lines[row]["means"]["linear"] == pytest.approx(expected["mean"])
            assert lines[row]["spreads"]["linear"] == pytest.approx(expected["spread"])
            assert lines[row]["means"]["images"] == 8 * number and lines[row]["seeds"] == 2
            assert lines[row]["means"]["images/s"] == SPEEDS[row].images_per_second
    for result in results:
        _check_against_its_folder(output / result.name, result)
    assert json.loads((output / "results.json").read_text())[0]["name"] == results[0].name
    assert (output / "scaling.html").stat().st_size > 10_000

    written = (output / "methods.md").read_text()
    monkeypatch.setattr(running, "train", refuse)
    assert run_ablation(base, settings) == 0
    assert (output / "methods.md").read_text() == written


def _check_against_its_folder(folder: Path, result: RunResult) -> None:
    """The numbers are those of the evaluation's files, the lengths those of the run."""
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["images_seen"], summary["flops_per_image"]) == (
        "finished",
        result.images,
        result.flops,
    )
    assert 0 < result.seconds == summary["step_seconds"] < summary["seconds"] == result.total_seconds
    names = {"linear": "linear", "k-NN": "knn"}
    for task in ("classification", "clevr_count", "clevr_dist"):
        (path,) = [path for path in (folder / "eval").glob(f"{task}*.json") if "encoder_initial" not in path.name]
        metrics = json.loads(path.read_text())["subjects"]["encoder"]["metrics"]
        found = {f"{task}/{names[name]}": metric["value"] for name, metric in metrics.items()}
        assert found == {name: value for name, value in result.numbers.items() if name.startswith(task)}
    assert set(result.references) == ({"untrained", "pixels"} if result.row == "ijepa" else set())


def test_a_run_that_fails_does_not_end_the_others(
    base: RunConfig, settings: AblationSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings, seconds="none")

    def broken(config: RunConfig) -> Path | None:
        if config.run.name == "mae-4steps-seed0":
            raise RuntimeError("out of luck")
        return train(config)

    monkeypatch.setattr(running, "train", broken)
    assert run_ablation(base, settings) == 1
    assert {result.name: result.status for result in read_results(settings.output)} == {
        "ijepa-4steps-seed0": "finished",
        "ijepa-4steps-seed1": "finished",
        "mae-4steps-seed0": "failed",
        "mae-4steps-seed1": "finished",
    }
    written = (settings.output / "methods.md").read_text()
    assert "failed: mae-4steps-seed0: RuntimeError: out of luck" in written and "| mae (1) |" in written
    assert "failed: mae-4steps-seed0: RuntimeError: out of luck" in capsys.readouterr().out

    tried: list[str | None] = []
    monkeypatch.setattr(running, "train", lambda config: tried.append(config.run.name) or train(config))
    assert run_ablation(base, settings) == 0
    assert tried == ["mae-4steps-seed0"], "what failed is tried again, what is finished is not"
    assert "failed" not in (settings.output / "methods.md").read_text()


def test_an_interrupted_run_goes_on_where_it_was(
    base: RunConfig, settings: AblationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, seconds="none", seeds=1)

    def killed(config: RunConfig) -> Path | None:
        if config.run.name == "ijepa-4steps-seed0":
            raise KeyboardInterrupt
        return train(config)

    monkeypatch.setattr(running, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(base, settings)
    assert "ijepa-4steps-seed0" not in {result.name for result in read_results(settings.output)}, "it has not ended"
    monkeypatch.setattr(running, "train", train)
    with claimed_work(settings.output, "mae-4steps-seed0") as ours:
        assert ours
        assert run_ablation(base, settings) == 0
    assert {result.name for result in read_results(settings.output)} == {"ijepa-4steps-seed0"}, "the other was in other hands"
    assert run_ablation(base, settings) == 0
    assert {result.name for result in read_results(settings.output)} == {"ijepa-4steps-seed0", "mae-4steps-seed0"}


def test_a_dry_run_keeps_the_plan_and_new_rows_fit_in(
    base: RunConfig, settings: AblationSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[list[str]] = []

    def slower(rows: Mapping[str, RunConfig], rounds: int) -> dict[str, Speed]:
        measured.append(list(rows))
        return {row: replace(SPEEDS[row], images_per_second=SPEEDS[row].images_per_second / len(measured)) for row in rows}

    monkeypatch.setattr(running, "measure_speeds", slower)
    dry = replace(settings, dry_run=True)
    assert run_ablation(base, replace(dry, rows=("ijepa",))) == run_ablation(base, dry) == run_ablation(base, dry) == 0
    assert measured == [["ijepa"], ["ijepa", "mae"]]
    speeds = json.loads((settings.output / "plan.json").read_text())["speeds"]
    assert {row: speed["images_per_second"] for row, speed in speeds.items()} == {"ijepa": 100, "mae": 300}
    assert not list(settings.output.glob("*/config.yaml"))
    assert "6 of 6 runs left: 1s of training" in capsys.readouterr().out, "2 x (0.32 + 0.11 + 0.32) seconds"
    with pytest.raises(ValueError, match=r"not comparable .* optim\.total_steps 4 -> 8"):
        run_ablation(base, replace(dry, images=64))
    with pytest.raises(ValueError, match=r"seconds 'auto' -> 5\.0"):
        run_ablation(base, replace(dry, seconds=5.0))
    with pytest.raises(ValueError, match=r"probe_images None -> 20.* scenes .* -> None"):  # finished runs would be kept
        run_ablation(base, replace(dry, probe_images=20, scenes=None))


def test_lengths_follow_the_speeds_and_schedules_the_lengths(base: RunConfig, settings: AblationSettings) -> None:
    settings = replace(settings, images=8000, seconds=10.0)
    start = base_config(base, settings)
    runs = planned_runs(ablation_rows("methods", start, settings.rows), SPEEDS, settings)
    assert [(run.row, run.seed, run.config.optim.total_steps, run.budgets) for run in runs[:4]] == [
        ("ijepa", 0, 1000, ("images",)),
        ("mae", 0, 1000, ("images",)),
        ("ijepa", 0, 125, ("seconds",)),
        ("mae", 0, 375, ("seconds",)),
    ]
    assert [run.seconds for run in runs[:4]] == pytest.approx([80, 80 / 3, 10, 10])
    assert [run.has_baselines for run in runs[:4]] == [True, False, False, False]
    for run in runs:
        optim, method = run.config.optim, run.config.method
        assert optim.total_steps is not None and optim.warmup_steps is not None
        assert optim.warmup_steps / optim.total_steps == pytest.approx(0.1 if run.row == "ijepa" else 0.05, abs=0.01)
        if isinstance(method, IJepaSettings):
            assert method.ema_start == pytest.approx(1 - 100 / optim.total_steps)
    same = planned_runs({"ijepa": start}, SPEEDS, replace(settings, seconds="auto", rows=()))
    assert [run.budgets for run in same] == [("images", "seconds")] * 2
    assert PlannedRun in {type(run) for run in same} and len({run.name for run in runs}) == len(runs)


def test_a_run_in_epochs_keeps_the_share_of_its_warmup(settings: AblationSettings) -> None:
    base = load_recipe("ijepa-vitb16")
    with pytest.raises(ValueError, match="has its length in epochs, but runs are compared by images seen: give --images"):
        base_config(base, replace(settings, images=None))
    found = base_config(base, replace(settings, images=100 * base.optim.batch_size)).optim
    assert found.total_steps == 100 and found.warmup_epochs is None
    assert found.warmup_share == pytest.approx((base.optim.warmup_epochs or 0) / base.optim.epochs) != 0


def test_all_rows_change_what_the_ablation_and_the_command_say(base: RunConfig, settings: AblationSettings) -> None:
    settings = replace(settings, ablation="num-targets", set=("optim.lr=0.5", "masks.context_scale=[0.5, 1.0]"))
    rows = ablation_rows("num-targets", base_config(base, settings)).values()
    assert {config.optim.lr for config in rows} == {0.5}
    found = [config.masks for config in rows]
    assert [masks.num_targets for masks in found] == [4, 3, 2, 1]  # type: ignore[attr-defined]
    assert {(masks.context_scale, masks.target_scale) for masks in found} == {((0.5, 1.0), (0.15, 0.2))}  # type: ignore[attr-defined]


def test_the_list_names_every_row_with_its_settings_and_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ablate", "--list"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["targets-1", "1", "9.0", "masks.num_targets=1"] in lines
    rows = {row for ablation in ABLATIONS.values() for row in ablation.rows}
    assert rows <= {line[0] for line in lines if line}


def test_rows_are_those_of_the_registry() -> None:
    config = load_recipe("cpu-32")
    for name, ablation in ABLATIONS.items():
        assert tuple(ablation_rows(name, config)) == tuple(ablation.rows)
    assert list(ablation_rows("methods", config, ("dino", "mae"))) == ["ijepa", "mae", "dino"], "the first is always measured"
    with pytest.raises(ValueError, match="did you mean 'dino'"):
        ablation_rows("methods", config, ("dno",))
    with pytest.raises(ValueError, match="did you mean 'methods'"):
        ablation_rows("method", config)


def test_without_the_first_row_the_legend_says_why_no_baselines_stand_there() -> None:
    found, others = finished("ijepa", 0, 0.6, references={"untrained": {"classification/linear": 0.5}}), finished("mae", 0, 0.6)
    words = "The untrained encoder and raw pixels are evaluated beside the row ijepa only."
    assert legend(ABLATIONS["methods"], [others]).endswith(words)
    assert legend(ABLATIONS["methods"], [found, others]).endswith("untrained: the encoder of the first row before training.")


@pytest.mark.parametrize(("apart", "shown"), [(0.2, "60.0±14"), (0.05, "60.0±3.5")])
def test_the_widest_table_is_whole_at_100_columns(
    apart: float, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [finished(row, seed, 0.6 + apart * (seed - 0.5)) for row in ABLATIONS["methods"].rows for seed in (0, 1)]
    results += [finished("data2vec", 2, 0.6, budgets=("seconds",)), finished("dino", 1, 0.1, budgets=("seconds",))]
    results += [
        finished("dino", 0, 0.1, budgets=("seconds",)),
        finished("mae", 2, 0.9, status="failed", error="ValueError: no"),
    ]
    monkeypatch.setattr("openjepa.experiments.ablations.ablation_tables.read_results", lambda output: results)
    console = Console(width=100, record=True)
    print_tables(tmp_path, "methods", console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("data2vec")]
    costs, equal = ["120", "12346", "1.70", "384.0k", "12346"], ["60.0", "+0.0", "\N{PLUS-MINUS SIGN}", "0.0"] * 2
    assert lines[0] == ["data2vec", *[shown] * 6, *costs] and lines[2] == ["data2vec", "(1)", *["60.0"] * 6, *costs]
    assert lines[1] == ["data2vec", *equal, "1.00", "1.00"] and len(lines) == 4
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and "failed: mae-2: ValueError: no" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "needs the name of an ablation (methods, "),
        (["methods", "--method.name", "mae"], "--method.name has no effect"),
        (["methods", "--methods", "mea"], "--rows mea does not exist in the ablation methods: did you mean 'mae'"),
        (["methods", "--recipe", "cpu32"], "did you mean 'cpu-32'"),
        (["methods", "--images", "0"], "--images 0 must be at least 1"),
        (["methods", "--seconds", "-1"], "--seconds -1.0 must be above 0"),
        (["methods", "--recipe", "ijepa-vitb16", "--data.path", "x"], "--recipe ijepa-vitb16 has its length in epochs"),
        (["methods", "--data.path", ""], "data.path"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", *argv])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
