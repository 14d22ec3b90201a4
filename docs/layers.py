"""The layers of the package, from the top down.

A test checks every import against them, and docs/architecture.md is written from them.
"""

LAYERS = (
    ("__main__",),
    ("cli", "__init__"),
    ("commands",),
    ("experiments",),
    ("inference/search", "weights/convert"),
    ("training", "evaluation", "visualization", "report", "inference/embedding"),
    ("methods", "inference"),
    ("engine", "weights"),
    ("models", "masks", "data"),
    ("records",),
    ("schedules", "checks", "recipes", "measures"),
    # engine/distributed is a part of its own, below engine, because data and models also work over several processes
    ("types", "seeds", "config", "operators", "engine/distributed"),
    ("system",),
    ("settings",),
    ("refusals",),
)
"""Each part imports only parts of later lines, and itself. A folder of a part may be a part of its own (`inference/search`)."""
