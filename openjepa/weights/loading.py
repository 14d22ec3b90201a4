"""Reads an encoder from whatever it lies in; the format is recognized."""

from pathlib import Path

from openjepa.refusals import Refusal
from openjepa.system.hub_names import hub_name
from openjepa.weights import FORMATS
from openjepa.weights.contents import Contents, open_contents
from openjepa.weights.filling import listed
from openjepa.weights.formats import Choice, Loaded
from openjepa.weights.hub import download

__all__ = ["Choice", "Loaded", "load_any", "recognized"]


def load_any(path: Path | str, choice: Choice | None = None) -> Loaded:
    """The encoder, and where there is one the predictor, in a run folder, a folder of weights, a file, or a name on the Hub.

    Raises Refusal where nothing is there, where it is of no known format or damaged, where keys are missing or left over
    (which it lists), and where `choice` does not fit. Nothing that the file holds is executed.
    """
    name, choice = hub_name(path), choice or Choice()
    contents = open_contents(Path(path).expanduser() if name is None else download(name))
    loaded = FORMATS[recognized(contents)].load().read(contents, choice)
    if choice.heads not in (None, loaded.config.heads):
        raise Refusal(f"heads={choice.heads}, but {path} says itself that it has {loaded.config.heads}: leave heads out")
    return loaded


def recognized(contents: Contents) -> str:
    """The name of its format. Raises Refusal where it is of none."""
    names = [name for name, item in FORMATS.items() if item.load().recognize(contents)]
    if names:
        assert len(names) == 1, f"formats {names} both claim {contents.path}"
        return names[0]
    raise Refusal(f"{contents.path} {_seen(contents)}")


def _seen(contents: Contents) -> str:
    """Why it is of no format, from what it holds."""
    if contents.path.is_dir() and contents.settings is None:
        return (
            "is neither a run folder (config.yaml, encoder/) nor an encoder folder (config.json, model.safetensors): "
            "it has no config.json"
        )
    if contents.settings is not None:
        return f"has a config.json of no known format: it has {listed(sorted(contents.settings))}"
    shown = [
        f"{name}: {listed(sorted(item.tensors)[:5])}, ..." if name else listed(sorted(item.tensors)[:5])
        for name, item in contents.networks.items()
    ]
    known = "; ".join(f"{name}: {item.summary}" for name, item in FORMATS.items())
    return f"is of no known format. It holds {'; '.join(shown) or 'no tensors'}. Known: {known}"
