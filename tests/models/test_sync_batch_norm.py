import copy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_ray import distributed
from ssl_ray.models.sync_batch_norm import SyncBatchNorm, synchronize_batch_norm
from tests.ranks import Ranks

CPU = torch.device("cpu")
ROWS, STEPS = 8, 2


def network() -> nn.Module:
    """Batch norms of maps and of vectors; one without gain and bias, one with a cumulative average."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 9, 4, bias=False),
        nn.BatchNorm1d(4, eps=1e-3, affine=False),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4, momentum=None),
    ).double()
    nn.init.normal_(net[1].weight)
    nn.init.normal_(net[1].bias)
    return net


def images() -> Tensor:
    """Rows of very different mean and spread: statistics of some of them are far from those of all."""
    torch.manual_seed(1)
    scale = torch.arange(1, ROWS + 1, dtype=torch.float64).view(-1, 1, 1, 1)
    return scale * torch.randn(ROWS, 3, 5, 5, dtype=torch.float64) + scale


def train(net: nn.Module) -> dict[str, Tensor]:
    """Steps on this worker's rows: what forward and backward pass give, and the state that is left."""
    net = synchronize_batch_norm(net, CPU) if distributed.is_distributed() else net
    model = DistributedDataParallel(net, forward_sync_buffers=False) if distributed.is_distributed() else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(2)
    direction = distributed.local_rows(torch.randn(ROWS, 4, dtype=torch.float64))
    seen = {}
    for step in range(STEPS):
        x = distributed.local_rows(images()).requires_grad_()
        optimizer.zero_grad()
        output = model(x)
        (output * direction).sum(1).mean().backward()
        seen[f"output {step}"] = distributed.gather(output.detach())
        # Of the mean over this rank's rows: the mean over all has 1 / W of it.
        seen[f"input gradient {step}"] = distributed.gather(x.grad) / distributed.world_size()
        seen |= {f"gradient {step} of {key}": p.grad.clone() for key, p in net.named_parameters()}
        optimizer.step()
    net.eval()
    seen["evaluated"] = net(images()).detach()
    return seen | net.state_dict()


def train_network() -> dict[str, Tensor]:
    return train(network())


def test_workers_equal_batch_norm_of_the_whole_batch(ranks: Ranks):
    expected = train_network()
    for seen in ranks(2, train_network):
        assert seen.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                seen[key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}"
            )


def half_precision_of_a_shifted_batch() -> dict[str, Tensor]:
    norm = synchronize_batch_norm(nn.BatchNorm1d(4), CPU)
    torch.manual_seed(0)
    rows = (100 + torch.randn(64, 4)).bfloat16()
    output = norm(distributed.local_rows(rows))
    assert output.dtype == torch.bfloat16
    return {"output": distributed.gather(output), "var": norm.running_var, "rows": rows}


def test_half_precision_statistics_are_gathered_in_float32(ranks: Ranks):
    seen = ranks(2, half_precision_of_a_shifted_batch)[0]
    rows = seen["rows"].double()
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(seen["output"].double(), expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(seen["var"].double(), 0.9 + 0.1 * rows.var(0), rtol=1e-4, atol=1e-4)


def test_alone_it_is_batch_norm():
    plain = network()
    converted = synchronize_batch_norm(copy.deepcopy(plain), CPU)
    kinds = [type(m) for m in converted if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [SyncBatchNorm] * 3
    expected, seen = train(plain), train(converted)
    for key, value in expected.items():
        torch.testing.assert_close(seen[key], value, rtol=0, atol=0)


def test_conversion_keeps_weights_names_mode_and_settings():
    net = network()
    weight = net[1].weight
    net[1].eval()
    before = net.state_dict()
    converted = synchronize_batch_norm(net, CPU)
    after = converted.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0)
    assert converted[1].weight is weight, "an optimiser built before goes on with the same parameters"
    assert [m.training for m in converted] == [i != 1 for i in range(8)]
    assert [(converted[i].eps, converted[i].momentum) for i in (1, 5, 7)] == [
        (1e-5, 0.3),
        (1e-3, 0.1),
        (1e-5, None),
    ]
    assert converted[5].weight is None
    converted.load_state_dict(before)


def test_a_batch_norm_by_itself_is_converted():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    converted = synchronize_batch_norm(norm, CPU)
    assert type(converted) is SyncBatchNorm
    assert converted.running_mean is None
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(converted(x), norm(x), rtol=0, atol=0)


def test_evaluation_uses_running_statistics_only():
    norm = SyncBatchNorm(2)
    norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    expected = torch.tensor([[1.0, 1.0]])  # (3 - 1) / 2 and (2 + 1) / 3
    torch.testing.assert_close(norm(torch.tensor([[3.0, 2.0]])), expected, rtol=1e-4, atol=0)
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
