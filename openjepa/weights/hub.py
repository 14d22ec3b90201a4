"""Names on the Hugging Face Hub, for those who have installed huggingface_hub."""

from pathlib import Path

from openjepa.refusals import Refusal
from openjepa.system.packages import needed_for

FILES = ["config.json", "preprocessor_config.json", "predictor/config.json", "*.safetensors", "*.safetensors.index.json"]
"""What is downloaded: settings and weights, nothing that could be executed."""
OLDER = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
"""Downloaded where a model has no safetensors: pickles, which are read without executing anything."""


def download(name: str) -> Path:
    """The folder of a model of the Hub in the local cache, downloaded where it is not there yet.

    Raises Refusal where huggingface_hub is missing, and where the model cannot be had.
    """
    download_it = "download its config.json and model.safetensors into a folder"
    with needed_for(f"{name} does not exist here; a name on the Hugging Face Hub", download_it):
        from huggingface_hub import snapshot_download
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, *OLDER]))
        return folder
    except Exception as error:  # of the Hub's, of HTTP and of the network: there is no common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refusal(f"{name} does not exist here, and it could not be had from the Hugging Face Hub: {reason}") from error
