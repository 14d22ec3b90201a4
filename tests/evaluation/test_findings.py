"""What is kept of the results of protocols: numbers under the name of their protocol, and every unreadable image once."""

from openjepa.evaluation.protocol import ProtocolResult
from openjepa.evaluation.task_run import Findings


def test_both_selection_rules_of_a_protocol_that_could_not_read_images() -> None:
    """The second result must find the name of its protocol, whatever images the first one lists."""
    findings = Findings(side_by_side=True)
    lost: dict[str, tuple[str, ...]] = {"train": ("a.jpg", "b.jpg"), "test": ()}
    findings.add(
        ("linear-full",),
        "encoder",
        [ProtocolResult(0.5, 0.1, (), "held_out", unreadable=lost), ProtocolResult(0.6, 0.1, (), "paper", unreadable=lost)],
    )
    assert {name: metric.value for name, metric in findings.metrics["encoder"].items()} == {
        "linear-full": 0.5,
        "linear-full (paper)": 0.6,
    }
    assert {split: list(names) for split, names in findings.unreadable.items()} == {"train": ["a.jpg", "b.jpg"], "test": []}
