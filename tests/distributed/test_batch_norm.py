"""Without SyncBN each rank gathers statistics of its own; what is evaluated and saved is one network all the same."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from tests.ranks import Ranks


def statistics_after_a_step() -> dict[str, Tensor]:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    )
    network(torch.full((2, 3, 4, 4), float(distributed.rank())) + torch.eye(4))
    own = network[1].running_mean.clone()
    distributed.average_batch_norm_(network)
    return {"own": own, "mean": network[1].running_mean, "var": network[1].running_var}


def test_running_statistics_become_the_mean_over_ranks(ranks: Ranks) -> None:
    first, second = ranks(2, statistics_after_a_step)
    assert not torch.equal(first["own"], second["own"]), "ranks saw different rows"
    torch.testing.assert_close(first["mean"], (first["own"] + second["own"]) / 2)
    for name in ("mean", "var"):
        assert torch.equal(first[name], second[name])
