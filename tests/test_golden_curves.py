"""Twenty steps of each method on generated images give the losses that are kept: what a refactoring must not change.

After a change that is meant, `OPENJEPA_GOLDEN=write pytest tests/test_golden_curves.py` writes them anew; the log says why.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.methods import METHODS
from openjepa.settings.run import MonitorSettings
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, method_config

GOLDEN = Path(__file__).parent / "golden"
STEPS = 20


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_that_were_kept(name: str, tmp_path: Path) -> None:
    config = method_config(name, write_folder(tmp_path / "images", 40), tmp_path, total_steps=STEPS, warmup_steps=4)
    run = train(replace(config, monitor=MonitorSettings(every=0)))
    assert run is not None
    losses = [line["loss"] for line in lines(run, "train")]
    file = GOLDEN / f"{name}.json"
    if os.environ.get("OPENJEPA_GOLDEN") == "write":
        file.write_text(json.dumps(losses, indent=1) + "\n")
    write = "write it with OPENJEPA_GOLDEN=write pytest tests/test_golden_curves.py"
    assert file.exists(), f"a new method has no golden curve yet: {write}"
    kept = json.loads(file.read_text())
    assert len(kept) == STEPS and kept[-1] < kept[0]
    # fp32 sums in another order on another processor; wrong by a seed, a decay or a rate they would differ a hundred times more
    assert losses == pytest.approx(kept, rel=2e-4)
