"""What the report says of collapse: flags that training wrote, never words; and of runs without flags what they measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openjepa.experiments.energies import compared_energies
from openjepa.measures.verdicts import HEALTHY, CollapseStatistics, judged
from openjepa.report.facts import collapse, status
from openjepa.report.landscape import landscapes
from openjepa.report.reading import read_run
from tests.helpers.example_run import write_run
from tests.helpers.report_page import page_of

SENTENCES = (
    "The encoder collapsed: the effective rank fell from 40 to 1.1.",
    "The encoder is collapsing: the effective rank fell from 40 to 1.1.",
    "Kein Kollaps.",
    HEALTHY,
    "No sign that the features have collapsed.",
)


def changed(folder: Path, name: str, **values: Any) -> None:
    """Entries of a JSON file; None removes one."""
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def logged(folder: Path, looks: Sequence[CollapseStatistics]) -> None:
    """The log of a run with these looks; numbers that are not finite are null, as training writes them."""
    lines = [
        {"kind": "monitor", "step": 100 * number, "loss": 1.0}
        | {name: value if np.isfinite(value) else None for name, value in asdict(look).items()}
        for number, look in enumerate(looks)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize(("flag", "tone"), [(True, "bad"), (False, "good")])
def test_the_flag_decides_whatever_the_sentence_says(tmp_path: Path, sentence: str, flag: bool, tone: str) -> None:
    folder = write_run(tmp_path / "run", steps=500)
    changed(folder, "summary.json", verdict=sentence, collapsed=flag)
    page = page_of(folder)
    assert sentence in page.text
    tones = {
        word
        for _, attrs in page.elements
        for word in ("good", "bad", "unknown")
        if f"verdict {word}" in (attrs.get("class") or "")
    }
    assert tones == {tone}


HEALTHY_LOOKS = [CollapseStatistics(0.1 * (1 + number), 0.9 - 0.1 * number, 3.0 + number) for number in range(5)]
COLLAPSING = {
    "standard deviation": [CollapseStatistics(std, 0.9, 3.0) for std in (0.13, 0.1, 0.008, 1e-4)],
    "cosine": [CollapseStatistics(0.13, cosine, 3.0) for cosine in (0.6, 0.9, 0.99995, 0.99997)],
    "rank": [CollapseStatistics(0.13, 0.6, rank) for rank in (40.0, 20.0, 1.9, 1.02)],
}


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("word", COLLAPSING)
def test_runs_without_a_flag_are_judged_by_what_they_logged(tmp_path: Path, sentence: str, word: str) -> None:
    folder = write_run(tmp_path / "run", steps=500)
    changed(folder, "summary.json", verdict=sentence, collapsed=None)
    logged(folder, COLLAPSING[word])
    found = collapse(read_run(folder))
    assert found.tone == "bad" and "is collapsing" in found.sentence and word in found.sentence
    logged(folder, HEALTHY_LOOKS)
    assert (collapse(read_run(folder)).tone, collapse(read_run(folder)).sentence) == ("good", HEALTHY)


@pytest.mark.parametrize("collapsed", [True, False])
@pytest.mark.parametrize("flag", [True, False, None])
def test_a_run_that_predicts_positions_is_told_by_its_flag_or_by_what_it_logged(
    tmp_path: Path, flag: bool | None, collapsed: bool
) -> None:
    folder = write_run(tmp_path / "run", steps=500)
    changed(folder, "summary.json", verdict=HEALTHY, collapsed=collapsed, predicts_positions=flag)
    blind = {"position_share": 0.18, "cosine_own": 0.871, "cosine_other": 0.87, "cosine_targets": 0.77, "cosine_gap": 0.001}
    looks = [json.dumps({"kind": "monitor", "step": step, **blind}) + "\n" for step in (100, 200, 300)]
    (folder / "metrics.jsonl").write_text("".join(looks))
    found, tells = collapse(read_run(folder)), flag is not False and not collapsed
    assert found.sentence.startswith("This run predicts positions, not images") == tells
    assert found.tone == ("bad" if tells or collapsed else "good")
    assert "Positions alone explain 18% of the targets' variance." in found.evidence
    page = page_of(folder)
    assert "Beyond the position" in page.text and "Explained by positions" in page.text


NOT_FINITE = CollapseStatistics(float("nan"), float("nan"), float("nan"))


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("word", COLLAPSING)
def test_a_look_that_was_not_finite_hides_no_collapse(word: str, place: int) -> None:
    looks = [*COLLAPSING[word][:place], NOT_FINITE, *COLLAPSING[word][place:]]
    assert judged(looks).collapsed is True and word in str(judged(looks).words)
    assert judged([*looks, NOT_FINITE]).collapsed is None


@pytest.mark.parametrize("flag", [None, "yes", 1, []])
@pytest.mark.parametrize("looks", [[], HEALTHY_LOOKS[:1], HEALTHY_LOOKS[:2], [*HEALTHY_LOOKS, NOT_FINITE]])
def test_what_cannot_be_known_is_not_green(tmp_path: Path, flag: object, looks: list[CollapseStatistics]) -> None:
    folder = write_run(tmp_path / "run", steps=500)
    logged(folder, looks)
    for sentence in (HEALTHY, None):
        changed(folder, "summary.json", verdict=sentence, collapsed=flag)
        found = collapse(read_run(folder))
        assert found.tone == "unknown" and (sentence is None or found.sentence == sentence)


def energies(own: float, others: float, noise: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = others + noise * torch.rand((8, 6, 6), generator=generator)
    values[:, range(6), range(6)] += own - others
    return values


@pytest.mark.parametrize(
    ("trained", "flat", "apart", "tone"),
    [
        (energies(0.5, 1.0), False, True, "good"),
        (energies(1.0, 1.0), False, False, "unknown"),
        (energies(1.5, 1.0), False, False, "unknown"),
        (energies(1.0, 1.0, 1e-4), True, False, "bad"),
        (energies(0.999, 1.0, 1e-4), True, False, "bad"),  # flat, though every comparison is right
    ],
)
def test_energies_have_flags_that_decide(tmp_path: Path, trained: torch.Tensor, flat: bool, apart: bool, tone: str) -> None:
    content = {**asdict(compared_energies(energies(1.0, 1.0), trained)), "step": 100}
    assert (content["flat"], content["tells_apart"]) == (flat, apart)
    older = {name: value for name, value in content.items() if name != "tells_apart"}
    folder = write_run(tmp_path / "run", steps=500)
    for said in (content, older, content | {"verdict": "compatible pairs have no lower energy"}, older | {"verdict": "lower"}):
        (folder / "energy.json").write_text(json.dumps(said))
        assert [item.tone for item in landscapes([read_run(folder)])] == [tone]
    for unknown in ({"flat": "no"}, {"tells_apart": "yes"}):
        (folder / "energy.json").write_text(json.dumps(content | unknown))
        assert landscapes([read_run(folder)])[0].tone in ("unknown", *(("bad",) if flat and "flat" not in unknown else ()))


def test_a_run_on_a_file_system_without_locks_is_not_said_to_be_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", steps=500, status="running")
    (folder / ".lock").touch()
    assert status(read_run(folder)) == "unfinished"

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("openjepa.system.shared_files.fcntl.flock", refuse)
    assert status(read_run(folder)) == "running"
