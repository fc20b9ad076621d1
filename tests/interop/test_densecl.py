import pytest
import torch

from ssl_ray.interop import mmselfsup

CONFIG = {
    "type": "mmselfsup.DenseCL",
    "queue_len": 8,
    "feat_dim": 4,
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}},
    "neck": {"type": "DenseCLNeck", "in_channels": 64, "hid_channels": 8, "out_channels": 4},
    "head": {"type": "ContrastiveHead", "loss": {"type": "CrossEntropyLoss"}, "temperature": 0.2},
}


@pytest.mark.parametrize(("counted", "steps"), [(1234, 1234), (None, 1)])
def test_their_count_of_updates_is_our_count_of_steps(counted, steps):
    source, model = mmselfsup.from_config(CONFIG), mmselfsup.from_config(CONFIG)
    theirs = mmselfsup.to_state_dict(source)
    del theirs["encoder_k.steps"]  # older files have none
    if counted is not None:
        theirs["encoder_k.steps"] = torch.tensor(counted)
    report = mmselfsup.load_state_dict(model, theirs)
    assert model.steps == steps
    assert report.unexpected == ()
    assert mmselfsup.to_state_dict(model)["encoder_k.steps"] == steps


def test_a_config_has_no_warm_up():
    assert mmselfsup.from_config(CONFIG).start_iters == 0
