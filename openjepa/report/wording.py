"""What the names in eval/*.json mean, and how a share is written."""

SUBJECTS = ("encoder", "untrained", "pixels")
SUBJECT_WORDS = {"encoder": "trained", "untrained": "untrained", "pixels": "pixels"}
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
METHOD_WORDS = {"ijepa": "I-JEPA"}
PAPER_SUFFIX = " (paper)"
"""Ends the name of a number whose settings were chosen on the test images, where a file holds both kinds."""
MINUS = "\N{MINUS SIGN}"


def percent(share: float | None, sign: bool = False) -> str:
    """61.4, or +12.3 with `sign`; nothing for None."""
    if share is None:
        return ""
    shown = f"{abs(100 * share):.1f}"
    if sign:
        return ("+" if share >= 0 else MINUS) + shown
    return (MINUS if share < 0 and float(shown) else "") + shown
