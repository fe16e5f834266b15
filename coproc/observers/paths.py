"""What lies where in the directory of a model. Pure.

/models/NAME/spec.json          what the model is; its metadata say which server orders its pushes
             model.safetensors  virtual: the newest version, whole, made when it is opened
             gradients/         a file here is a push, and gone when it is applied
             checkpoints/       VERSION.safetensors: what a model can be restored from; and files of users
"""

from __future__ import annotations

TOP = "/models"
SPEC = "spec.json"
MODEL = "model.safetensors"
GRADIENTS = "gradients"
CHECKPOINTS = "checkpoints"


def home(model: str) -> str:
    """The directory of a model."""
    return f"{TOP}/{model}"


def spec_path(model: str) -> str:
    """Its description."""
    return f"{TOP}/{model}/{SPEC}"


def model_path(model: str) -> str:
    """The virtual file of its newest version."""
    return f"{TOP}/{model}/{MODEL}"


def gradients_path(model: str) -> str:
    """The directory of its gradients."""
    return f"{TOP}/{model}/{GRADIENTS}"


def checkpoints_path(model: str) -> str:
    """The directory of its checkpoints."""
    return f"{TOP}/{model}/{CHECKPOINTS}"


def checkpoint_path(model: str, version: int) -> str:
    """One of them; by name they are in the order of their versions."""
    return f"{TOP}/{model}/{CHECKPOINTS}/{version:012d}.safetensors"


def taken_apart(path: str) -> tuple[str, str]:
    """(model, what is below its directory) of a path; '' for what it does not have."""
    if not path.startswith(TOP + "/"):
        return "", ""
    model, _, rest = path[len(TOP) + 1 :].partition("/")
    return model, rest
