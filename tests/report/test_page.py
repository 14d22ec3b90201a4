import fcntl
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from openjepa.report import write_report
from openjepa.report.page import MAX_BYTES
from openjepa.report.reading import read_log, read_run
from tests.helpers.example_run import TOTAL_STEPS, write_evaluations, write_pictures, write_run
from tests.helpers.report_page import HOSTILE, Page, page_of, poisoned


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "woof")
    write_evaluations(folder)
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> Page:
    return page_of(full_run)


def test_the_headline_is_the_linear_probe_beside_its_baselines(full_page: Page) -> None:
    assert "linear 61.2 % vs untrained 45.1 vs pixels 41.0" in [attrs.get("aria-label") for _, attrs in full_page.elements]
    assert "Classification, linear held_out 61.2 % +16.1 points against the better baseline" in full_page.text
    assert "majority: always the most frequent class 9,025 train and 3,929 test images" in full_page.text
    assert "linear probe on features of one center view" in full_page.text and "chance" not in full_page.text
    assert "held_out settings chosen on 10 % of the training images" in full_page.text


def test_the_page_says_what_was_run(full_page: Page) -> None:
    for words in (
        "ijepa-vits16 (paper)",
        "AMD EPYC 9R14, 2 cores",
        "9ba2e7b1",
        "563,200",
        "encoder 21.6M",
        "19 min",
        "no sign of collapse",
    ):
        assert words in full_page.text
    assert "openjepa train ijepa-vits16 --data.source huggingface" in full_page.text
    assert "Clevr/Count was not probed: the data has no `count` labels." in full_page.text
    assert "No probes yet" not in full_page.text and "No pictures yet" not in full_page.text


def test_the_page_asks_nobody_for_anything(full_run: Path, full_page: Page) -> None:
    source = (full_run / "report.html").read_text()
    assert "http://" not in source and "https://" not in source and "@import" not in source
    assert not full_page.count("script") and not full_page.count("link") and not full_page.count("iframe")
    for tag, attrs in full_page.elements:
        assert not any(name.startswith("on") for name in attrs), f"<{tag}> has an event handler"
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attrs.get(name) or "data:").startswith("data:image/") or attrs.get(name) is None
    assert not re.search(r"url\((?!#)", source)
    policy = next(attrs["content"] for tag, attrs in full_page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_every_chart_has_axes_a_line_and_a_readout(full_page: Page) -> None:
    charts = [attrs for tag, attrs in full_page.elements if tag == "svg"]
    assert "Share of test images whose nearest neighbors vote rightly." in full_page.text
    assert len(charts) == 11  # 5 of learning, 6 of machinery
    assert all("NaN" not in str(attrs.get("d", "")) for tag, attrs in full_page.elements if tag == "path")
    titles = [attrs["aria-label"] for attrs in charts]
    assert any(title is not None and title.startswith("Effective rank by step: ") for title in titles)


def test_strings_of_a_run_folder_are_never_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=200)
    write_evaluations(folder)
    write_pictures(folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(
        json.dumps(summary | {"about": dict.fromkeys(("title", "family", "x", "energy"), "a")})
    )
    (folder / "energy.json").write_text(json.dumps({"step": 1, "images": 4, "group": 2, "split": "test", "verdict": "flat"}))
    names = ("environment.json", "summary.json", "eval/classification.json", "figures/figures.json", "encoder/config.json")
    for name in (*names, "energy.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(poisoned(content)))
    config = (
        (folder / "config.yaml").read_text().replace("ijepa-vits16", json.dumps(HOSTILE)).replace("custom", json.dumps(HOSTILE))
    )
    (folder / "config.yaml").write_text(config + f"{json.dumps(HOSTILE)}: {json.dumps(HOSTILE)}\n")
    (folder / "skipped.jsonl").write_text(json.dumps({"step": 1, "name": HOSTILE, "reason": HOSTILE}) + "\n")
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"kind": HOSTILE, "step": 1, HOSTILE: 1.0}) + "\n")
    source = write_report([folder]).read_text()
    page = Page(source)
    assert not page.count("script") and page.count("img") == 2
    assert "<img src=http" not in source and "{{ 7 * 7 }}" in page.text
    assert "alert('x')" in page.text, "the text is shown as text"
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_names_of_any_bytes_are_written_out(tmp_path: Path) -> None:
    """A folder named in another encoding; letters of other scripts are on the page as they are."""
    folder = write_run(tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["path"] = "photos/caf\udce9/\u72ac"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    source = write_report([folder]).read_text(encoding="utf-8")
    assert "caf\\udce9/\u72ac" in source


def test_a_run_name_is_never_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<b onclick=x>run", steps=100)
    page = page_of(folder, output=tmp_path / "out.html")
    assert not page.count("b") and "<b onclick=x>run" in page.text


def test_an_unfinished_run_gives_a_page_that_names_the_commands(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "my run", steps=500, status="interrupted")
    text = page_of(folder).text
    assert f"openjepa evaluate '{folder}'" in text and f"openjepa visualize '{folder}'" in text
    assert f"interrupted, step 500 of {TOTAL_STEPS:,}" in text


def test_a_folder_with_only_a_configuration_gives_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=0)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    page = page_of(folder)
    assert "openjepa train --config" in page.text and not page.count("svg")


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run of `openjepa train`"):
        write_report([tmp_path])
    with pytest.raises(ValueError, match="is no folder"):
        write_report([tmp_path / "missing"])
    with pytest.raises(ValueError, match="name at least one run folder"):
        write_report([])


def test_broken_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=300)
    whole = read_log(folder / "metrics.jsonl")
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(
            '[1, 2]\n{"kind": "train", "loss": 3}\n{"kind": "train", "step": 310, "loss": NaN, "lr": null}\n{"kind": "tra'
        )
    broken = read_log(folder / "metrics.jsonl")
    assert (whole.broken_lines, broken.broken_lines) == (0, 3)
    assert broken.points("train", "loss") == whole.points("train", "loss")
    assert "3 broken lines of metrics.jsonl left out" in page_of(folder).text


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    (folder / "summary.json").write_text("{")
    (folder / "environment.json").write_text("[]")
    (folder / "config.yaml").write_text("a: [")
    assert "Not readable: config.yaml, environment.json, summary.json." in page_of(folder).text


def test_several_runs_share_tables_and_curves(full_run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", seed=1, steps=2000)
    write_evaluations(other, shift=-0.3)
    source = write_report([full_run, other], tmp_path / "both.html").read_text()
    page = Page(source)
    assert "2 runs compared" in page.text
    assert "optim.lr 0.001 0.002" in page.text and "run.seed 0 1" in page.text, "settings that differ stand side by side"
    assert "31.2" in page.text and "61.2" in page.text
    loss = re.search(r'<svg[^>]*aria-label="Loss by images: woof from [^"]*; other from [^"]*".*?</svg>', source, re.S)
    assert loss is not None and loss[0].count('class="line c0') == loss[0].count('class="line c1') == 2


def test_the_page_stays_small_whatever_the_run_holds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_pictures(folder)
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1500, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG", compress_level=0)
    assert 2 * len(stream.getvalue()) > MAX_BYTES
    for name in ("masks", "pca"):
        (folder / "figures" / f"{name}.png").write_bytes(stream.getvalue())
    lines = [json.dumps({"name": "x" * 1000, "reason": f"{index} " + "y" * 1000}) for index in range(2000)]
    (folder / "skipped.jsonl").write_text("\n".join(lines))
    path = write_report([folder])
    assert path.stat().st_size < MAX_BYTES
    page = Page(path.read_text())
    assert page.count("img") == 2 and "2,000 images could not be read" in page.text


def test_skipped_images_are_counted_by_kind_and_older_lines_by_the_words_before_the_colon(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("recipe: cpu-64")
    older = [{"step": 1, "name": name, "reason": f"damaged JPEG: {name}"} for name in ("a.jpg", "b.jpg")]
    newer = [{"step": 2, "name": "c.jpg", "reason": "damaged JPEG: c", "kind": "damaged JPEG"}]
    other = [{"step": 2, "name": "d.jpg", "reason": "a: b", "kind": "a: b"}]
    (tmp_path / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older + newer + other))
    found = read_run(tmp_path).skipped
    assert (found.total, found.kinds) == (4, [("damaged JPEG", 3), ("a: b", 1)])


def test_pictures_outside_the_folder_or_broken_are_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_pictures(folder)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "figures" / "link.png").symlink_to(secret)
    (folder / "figures" / "pca.png").write_text("<svg onload=alert(1)>")
    listed = [
        {"title": name, "file": name} for name in ("link.png", "../../secret.png", "/etc/hostname", "pca.png", "masks.png")
    ]
    (folder / "figures" / "figures.json").write_text(json.dumps({"figures": [*listed, 3, None]}))
    assert [figure.file.name for figure in read_run(folder).figures] == ["pca.png", "masks.png"]
    page = page_of(folder)
    assert page.count("img") == 1 and "“pca.png” cannot be read" in page.text


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=500, status="failed")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "error": f"the loss is nan {HOSTILE}"}))
    page = page_of(folder)
    assert f"This run failed: the loss is nan {HOSTILE}" in page.text and "failed, step 500" in page.text
    assert not page.count("script")


def test_a_missing_package_is_named_with_its_extra(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "markupsafe", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'openjepa[report]'")):
        write_report([full_run])


@pytest.mark.parametrize("has_lock", [True, False])
def test_a_killed_run_is_unfinished_not_running(tmp_path: Path, has_lock: bool) -> None:
    folder = write_run(tmp_path / "run", steps=500, status="running")
    if has_lock:
        (folder / ".lock").touch()
    words = "This run is unfinished, and no process trains it: the same command continues it."
    assert words in page_of(folder).text and f"unfinished, step 500 of {TOTAL_STEPS:,}" in page_of(folder).text
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "This run is still running." in page_of(folder).text
    assert words in page_of(folder).text, "the report itself holds no lock"


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place, steps=100) for place in ("a/x/run", "b/x/run", "other", "c/run")]
    page = page_of(*folders, output=tmp_path / "out.html")
    for name in ("a/x/run", "b/x/run", "other", "c/run"):
        assert f" {name} " in page.text
    with pytest.raises(ValueError, match=r"runs holds .*run' 2 times: name each run folder once"):
        write_report([folders[0], folders[1], tmp_path / "a" / "x" / ".." / "x" / "run"])


def test_the_first_sentence_names_one_size(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert (
        "ViT small with 8 px patches trained by I-JEPA on crops of 64 px of imagewoof128: 9,025 training and 3,929 test images "
        "of 10 classes; 563k images seen in 21 min."
    ) in page_of(folder).text
    summary = json.loads((folder / "summary.json").read_text())
    summary["data"] = "Packaged rendered scenes, 64 x 64 pixels: 3,000 training and 1,000 test images"
    (folder / "summary.json").write_text(json.dumps(summary))
    text = page_of(folder).text
    assert "on crops of 64 px of Packaged rendered scenes: 3,000 training and 1,000 test images; 563k images seen" in text
    assert f"{summary['data']}, crops of 64 px" in text, "among the facts both sizes are named"
