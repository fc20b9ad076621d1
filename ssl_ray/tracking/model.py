"""Saving a torch module in MLflow's model format."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_ray.tracking.client import import_mlflow

if TYPE_CHECKING:
    from torch import Tensor, nn


def import_for_models() -> None:
    """Imports what `save_model` needs: for a time when there is nothing else to do."""
    import_mlflow("mlflow.pytorch")


def save_model(module: "nn.Module", example_input: "Tensor", folder: Path) -> None:
    """Saves a CPU copy of the module, in evaluation mode, to a new folder that `mlflow.pytorch.load_model` opens.

    The module is pickled, not exported as a graph: what is loaded is our own class again, to fine-tune or take apart,
    wherever ssl_ray is installed. The signature is that of `example_input` (B, ...) with a free batch size, and of the
    output where it is one tensor. Raises what the module raises on the example.
    """
    import copy

    import torch

    mlflow_pytorch = import_mlflow("mlflow.pytorch")
    module = copy.deepcopy(module).cpu().eval()
    example = example_input.detach().cpu()
    with torch.inference_mode():
        output = module(example)
    infer_signature = import_mlflow("mlflow.models").infer_signature
    signature = infer_signature(
        example.numpy(), output.float().numpy() if isinstance(output, torch.Tensor) else None
    )
    with _requirements_are_known():
        mlflow_pytorch.save_model(
            module,
            str(folder),
            signature=signature,
            serialization_format="pickle",
            # Named, because inferring them starts another Python that loads the model.
            pip_requirements=[f"{name}=={version(name)}" for name in ("ssl-ray", "torch", "mlflow")],
        )


@contextmanager
def _requirements_are_known() -> Iterator[None]:
    """MLflow would read the list of files of every package of this environment, seconds of it, to compare versions that
    were just read from there.
    """
    environment = import_mlflow("mlflow.utils.environment")
    check = "warn_dependency_requirement_mismatches"
    kept = getattr(environment, check, None)
    setattr(environment, check, lambda _: None)
    try:
        yield
    finally:
        setattr(environment, check, kept)
