import copy

import numpy as np
import pytest
import torch
from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.models.base import ParamGroup
from ssl_ray.spec import Spec
from ssl_ray.training.optim import LARS, SGD, AdamW, build_optimizer, set_lr

LRS = [0.3, 0.1, 0.5, 0.2]  # the forms of LARS differ only where the lr varies
FORMS = [(False, False), (False, True), (True, True), (True, False)]


def make_params(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 4), (3, 2, 3, 3), (6,)]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def make_grads(step):
    return [p.detach() for p in make_params(seed=100 + step)]


def reference_lars(weights, lrs, wd, momentum, eta, nesterov, split_norm, lr_in_momentum, eps=1e-8):
    """The published formula in numpy, one scalar ratio at a time."""
    weights = [w.detach().numpy().copy() for w in weights]
    buffers = [np.zeros_like(w) for w in weights]
    for step, lr in enumerate(lrs):
        for i, grad in enumerate(g.numpy() for g in make_grads(step)):
            w = weights[i]
            d = grad + wd * w
            if split_norm:
                ratio = eta * np.linalg.norm(w) / (np.linalg.norm(grad) + wd * np.linalg.norm(w) + eps)
            else:
                ratio = eta * np.linalg.norm(w) / np.linalg.norm(d)
            inside, outside = (lr, 1.0) if lr_in_momentum else (1.0, lr)
            u = inside * ratio * d
            buffers[i] = momentum * buffers[i] + u
            weights[i] = w - outside * (u + momentum * buffers[i] if nesterov else buffers[i])
    return weights


def run(optimizer, params, lrs=LRS):
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p, grad in zip(params, make_grads(step), strict=True):
            p.grad = grad
        optimizer.step()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("split_norm", "lr_in_momentum"), FORMS)
def test_lars_is_the_published_formula(split_norm, lr_in_momentum, nesterov):
    params = make_params()
    options = {"nesterov": nesterov, "split_norm": split_norm, "lr_in_momentum": lr_in_momentum}
    want = reference_lars(params, LRS, wd=0.05, momentum=0.9, eta=0.02, **options)
    run(LARS(params, lr=1.0, momentum=0.9, weight_decay=0.05, trust_coefficient=0.02, **options), params)
    for p, w in zip(params, want, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12)


def test_the_four_forms_of_lars_differ():
    ends = []
    for split_norm, lr_in_momentum in FORMS:
        params = make_params()
        run(
            LARS(params, lr=1.0, weight_decay=0.05, split_norm=split_norm, lr_in_momentum=lr_in_momentum),
            params,
        )
        ends.append(params[0].detach())
    for i, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-6 for other in ends[i + 1 :])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_without_adaptation_see_plain_sgd(momentum):
    lars_params, sgd_params = make_params(), make_params()
    run(
        LARS([{"params": lars_params, "adapt": False}], lr=1.0, momentum=momentum, weight_decay=0.01),
        lars_params,
    )
    run(SGD(sgd_params, lr=1.0, momentum=momentum, weight_decay=0.01), sgd_params)
    for ours, theirs in zip(lars_params, sgd_params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


@pytest.mark.parametrize("split_norm", [False, True])
def test_a_zero_norm_gives_ratio_one(split_norm):
    zero_weight = nn.Parameter(torch.zeros(3))
    zero_grad = nn.Parameter(torch.ones(3))
    zero_weight.grad, zero_grad.grad = torch.tensor([1.0, -2.0, 3.0]), torch.zeros(3)
    LARS([zero_weight, zero_grad], lr=0.5, split_norm=split_norm).step()
    assert zero_weight.tolist() == [-0.5, 1.0, -1.5]
    assert zero_grad.tolist() == [1.0, 1.0, 1.0]


def test_the_size_of_a_gradient_does_not_matter_to_lars():
    small, large = make_params(), make_params()
    for params, factor in ((small, 1e-3), (large, 1e3)):
        for p, grad in zip(params, make_grads(0), strict=True):
            p.grad = factor * grad
        LARS(params, lr=0.5).step()
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_lars_skips_parameters_without_gradient_and_returns_the_closures_loss():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([used, unused], lr=0.5)

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() != [1.0, 1.0]


def test_lars_resumes_where_it_was_saved():
    whole = make_params()
    run(LARS(whole, lr=1.0, weight_decay=0.01), whole, LRS[:1] * 2)

    first = make_params()
    optimizer = LARS(first, lr=1.0, weight_decay=0.01)
    run(optimizer, first, LRS[:1])
    second = copy.deepcopy(first)
    resumed = LARS(second, lr=9.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, grad in zip(second, make_grads(1), strict=True):
        p.grad = grad
    resumed.step()
    for a, b in zip(whole, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_lars_step_does_not_wait_for_the_device():
    params = [nn.Parameter(p.detach().float().cuda()) for p in make_params()]
    optimizer = LARS(
        [{"params": params[:2]}, {"params": params[2:], "adapt": False}], lr=0.1, weight_decay=0.1
    )
    for p in params:
        p.grad = torch.ones_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in params)


def four_groups():
    weight, bias, head, fixed = (nn.Parameter(torch.ones(2)) for _ in range(4))
    return [
        ParamGroup([weight]),
        ParamGroup([bias], weight_decay=0.0, adapt=False),
        ParamGroup([head], weight_decay=0.5, lr_scale=10.0),
        ParamGroup([fixed], fixed_lr=True),
        ParamGroup([]),
    ]


@pytest.mark.parametrize(
    ("spec", "decay"),
    [
        (Spec(SGD, momentum=0.9, weight_decay=0.1), 0.1),
        (Spec(LARS, weight_decay=0.1), 0.1),
        (Spec(AdamW, betas=(0.9, 0.95)), 0.01),  # AdamW's own default
    ],
)
def test_groups_become_torch_groups(spec, decay):
    optimizer = build_optimizer(spec, four_groups(), lr=0.2)
    assert isinstance(optimizer, spec.target)
    groups = optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [decay, 0.0, decay / 2, decay]
    assert [g["lr"] for g in groups] == [0.2, 0.2, 2.0, 0.2]
    assert [g["adapt"] for g in groups] == [True, False, True, True]


@pytest.mark.parametrize("optimizer", [SGD, LARS])
def test_a_group_may_have_no_momentum(optimizer):
    groups = [ParamGroup([nn.Parameter(torch.ones(2))], momentum=m) for m in (1.0, 0.0)]
    built = build_optimizer(Spec(optimizer, momentum=0.9), groups, lr=0.2)
    assert [group["momentum"] for group in built.param_groups] == [0.9, 0.0]


def test_set_lr_scales_groups_and_leaves_fixed_ones_at_the_peak():
    optimizer = build_optimizer(Spec(SGD, momentum=0.9), four_groups(), lr=0.2)
    set_lr(optimizer, 0.05, peak_lr=0.2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05, 0.5, 0.2]


def test_group_options_survive_a_checkpoint():
    saved = build_optimizer(Spec(LARS, weight_decay=0.1), four_groups(), lr=0.2).state_dict()
    optimizer = build_optimizer(Spec(LARS, weight_decay=0.1), four_groups(), lr=0.7)
    optimizer.load_state_dict(saved)
    set_lr(optimizer, 0.1, peak_lr=0.2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1, 1.0, 0.2]
    assert [g["adapt"] for g in optimizer.param_groups] == [True, False, True, True]


def test_nothing_to_train_is_the_users_error():
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(Spec(SGD), [ParamGroup([])], lr=0.1)
