"""openjepa: I-JEPA pretraining, evaluation and reports."""

__version__ = "0.1.0"
