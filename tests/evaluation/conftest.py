"""The run folder that most tests of evaluations use."""

from tests.helpers.evaluated_run import images, run

__all__ = ["images", "run"]
