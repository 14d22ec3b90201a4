"""What is kept of the results of protocols: numbers under the name of their protocol, and every unreadable image once."""

from openjepa.evaluation.protocol import HeadResult, ProtocolResult
from openjepa.evaluation.task_run import Findings


def test_both_selection_rules_of_a_protocol_that_could_not_read_images() -> None:
    """The second result must find the name of its protocol, whatever images the first one lists."""
    findings = Findings(side_by_side=True)
    lost: dict[str, tuple[str, ...]] = {"train": ("a.jpg", "b.jpg"), "test": ()}
    heads = (HeadResult("last", "linear", "learning rate 0.1", None, 0.5, chosen=True),)
    first = ProtocolResult(0.5, 0.1, heads, "held_out", unreadable=lost)
    second = ProtocolResult(0.6, 0.1, heads, "paper", unreadable=lost)
    findings.add(("linear-full",), "encoder", [first, second])
    assert {name: metric.value for name, metric in findings.metrics["encoder"].items()} == {
        "linear-full": 0.5,
        "linear-full (paper)": 0.6,
    }
    assert {split: list(names) for split, names in findings.unreadable.items()} == {"train": ["a.jpg", "b.jpg"], "test": []}
