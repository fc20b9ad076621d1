import pytest
import torch
from torch import nn

from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.tracking import Tracker, open_run
from ssl_ray.tracking.client import connect, import_mlflow


class Backbone(nn.Module):
    """As ours: the preprocessing is a class of the package, and the output a tuple of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessor = DataPreprocessor()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.norm(self.conv(self.preprocessor([x])[0])),)


@pytest.mark.parametrize("backbone", [Backbone(), nn.Sequential(nn.Flatten(), nn.Linear(192, 5))])
def test_round_trip(settings, backbone):
    example = torch.rand(2, 3, 8, 8)
    with open_run(settings, name="m") as run:
        with Tracker(run.target) as tracker:
            tracker.log_model(backbone, example, "backbone", step=7)
            saved = {k: v.clone() for k, v in backbone.state_dict().items()}
            for p in backbone.parameters():  # training goes on while it uploads
                p.data.zero_()
        assert backbone.training
        backbone.load_state_dict(saved)
        (logged,) = connect(settings.uri).search_logged_models([run.target.experiment_id])
    assert (logged.name, logged.status, logged.source_run_id) == ("backbone", "READY", run.run_id)
    (output,) = connect(settings.uri).get_run(run.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (logged.model_id, 7)

    mlflow = import_mlflow("mlflow.pytorch") and import_mlflow()
    mlflow.set_tracking_uri(settings.uri)
    try:
        batch = torch.rand(3, 3, 8, 8)
        for uri in (f"models:/{logged.model_id}", f"runs:/{run.run_id}/backbone"):
            loaded = mlflow.pytorch.load_model(uri)
            assert type(loaded) is type(backbone)
            assert not loaded.training
            with torch.inference_mode():
                expected, got = backbone.eval()(batch), loaded(batch)
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        signature = mlflow.models.get_model_info(f"models:/{logged.model_id}").signature
        assert signature.inputs.inputs[0].shape == (-1, 3, 8, 8)
    finally:
        mlflow.set_tracking_uri(None)
