"""What the option `--fast` of the tests does without."""

FOLDERS = ("data/scenes", "evaluation", "experiments", "inference", "methods", "parity", "report", "training")
FOLDERS += ("visualization", "weights")
"""Tests of whole stages, and of methods that learn: a few of them take a minute."""
SLOW = {
    "openjepa.training.loop.build_method": "trains",
    "openjepa.evaluation.evaluation_run.evaluate_task": "evaluates",
    "openjepa.inference.embedding.compute.Computation.run": "embeds a data set",
    "openjepa.visualization.sheet.Sheet.pixels": "draws a sheet",
    "subprocess.Popen.__init__": "starts a process",
    "multiprocessing.process.BaseProcess.start": "starts a process",
    "os.fork": "starts a process",
}
"""A test that reaches one of these is skipped there, and the word says why."""
