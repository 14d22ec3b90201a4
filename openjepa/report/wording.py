"""What the names in eval/*.json mean, and how a share is written."""

from collections.abc import Iterable

SUBJECTS = ("encoder", "start", "untrained", "pixels")
SUBJECT_WORDS = {"encoder": "trained", "start": "start", "untrained": "untrained", "pixels": "pixels"}
MAIN_PROBE = "linear-cached"
PROBE_WORDS = {
    MAIN_PROBE: "a linear probe on features of one center view, computed once: published linear numbers, trained on augmented "
    "images, do not compare to the point",
    "linear": "the paper's linear probe: heads trained on augmented images above the frozen encoder",
    "logistic": "L2 logistic regression on features of one center view, as MSN's low-shot evaluation",
    "attentive": "a learned query attends to the frozen encoder's patches",
    "fine-tuned": "the encoder itself is trained further on the labels",
    "dense linear mIoU": "a linear layer on single patches, no decoder; mean intersection over union",
    "dense k-NN mIoU": "votes of the nearest single patches, no decoder; mean intersection over union",
}
SELECTION_WORDS = {
    "held_out": "settings chosen on 10 % of the training images",
    "paper": "best on the test images, as published",
}
SUITE_ORDER = (
    *("imagenet1k", "imagenet1k-1pct", "imagenet1k-finetune", "cifar100", "cifar10", "places205", "inat18"),
    *("clevr_count", "clevr_dist", "scene_shapes", "scene_colors"),
)
"""Rows of suites as tables list them, the paper's Tables 1, 2 and 15 first."""
HEAD_ORDER = ("classification", "clevr_dist", "clevr_count")
"""Which of a run's own tasks heads its page: a fixed order, so that no number is picked for its height."""
METHOD_WORDS = {"ijepa": "I-JEPA", "mae": "MAE", "data2vec": "data2vec", "dino": "DINO", "ibot": "iBOT", "msn": "MSN"}
PAPER_SUFFIX = " (paper)"
"""Ends the name of a number whose settings were chosen on the test images, where a file holds both kinds."""
MINUS = "\N{MINUS SIGN}"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


def quantity(probes: Iterable[str]) -> str:
    """What the numbers of these probes are."""
    shares = ["mIoU" in name for name in probes]
    if not any(shares):
        return "Accuracy on test images"
    whole = "Mean intersection over union (mIoU) of the patches of test images"
    return whole if all(shares) else f"Accuracy on test images, or {whole[0].lower()}{whole[1:]},"


def percent(share: float | None, sign: bool = False) -> str:
    """61.4, or +12.3 with `sign`; nothing for None."""
    if share is None:
        return ""
    shown = f"{abs(100 * share):.1f}"
    if sign:
        return ("+" if share >= 0 else MINUS) + shown
    return (MINUS if share < 0 and float(shown) else "") + shown
