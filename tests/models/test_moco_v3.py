"""What MoCo v3 promises beyond MMSelfSup's numbers (tests/conformance) and worker counts (tests/distributed)."""

import math

import pytest
import torch
from torch import nn

from ssl_ray.interop.weights import load_backbone
from ssl_ray.models import CrossEntropyLoss, MoCoV3, MoCoV3Head, MoCoV3ViT, NonLinearNeck, Progress, ResNet
from ssl_ray.models.backbones.vit import sincos_positions

ROWS = 6


def vit(**options) -> MoCoV3ViT:
    return MoCoV3ViT(
        **{"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, **options}
    )


def moco_v3(backbone: nn.Module | None = None, **options) -> MoCoV3:
    backbone = backbone or vit()
    pool = isinstance(backbone, ResNet)
    neck = NonLinearNeck(
        backbone.feature_dim, 12, 8, num_layers=3, with_last_bn_affine=False, with_avg_pool=pool
    )
    predictor = NonLinearNeck(8, 12, 8, with_last_bn_affine=False, with_avg_pool=False)
    return MoCoV3(backbone, neck, MoCoV3Head(predictor, temperature=0.2), **options)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def views() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (ROWS, 3, 12, 12), dtype=torch.uint8) for _ in range(2)]


# The algorithm


@pytest.mark.parametrize("backbone", [vit, lambda: ResNet(18, width=4, stem="small")])
def test_loss_term_by_term(backbone, views):
    model = moco_v3(backbone()).eval()
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    images = model.data_preprocessor(views)
    queries = [model.head.predictor([model.neck(model.backbone(x))]) for x in images]
    keys = [model.teacher.neck(model.teacher.backbone(x)) for x in images]
    queries, keys = ([x / x.norm(dim=1, keepdim=True) for x in xs] for xs in (queries, keys))
    expected = torch.zeros(())
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i in range(ROWS):
            all_keys = sum((q[i] @ k[j] / 0.2).exp() for j in range(ROWS))
            expected = expected - 2 * 0.2 * ((q[i] @ k[i] / 0.2).exp() / all_keys).log() / ROWS
    torch.testing.assert_close(model(views, mode="loss").loss, expected)


def test_a_collapsed_model_is_at_the_ceiling():
    head = MoCoV3Head(nn.Identity(), temperature=0.5)
    head.predictor.forward = lambda features: features[-1]
    same = torch.ones(ROWS, 8)
    assert head(same, same).item() == pytest.approx(2 * 0.5 * math.log(ROWS))
    plain = MoCoV3Head(head.predictor, temperature=0.5, loss=CrossEntropyLoss())
    assert plain(same, same).item() == pytest.approx(math.log(ROWS))


def test_the_teacher_has_no_predictor_and_follows_after_the_step(views):
    model = moco_v3(momentum=0.5)
    assert {name.split(".")[0] for name, _ in model.teacher.named_parameters()} == {"backbone", "neck"}
    output = model(views, mode="loss")
    output.loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    with torch.no_grad():
        model.neck.fc0.weight.add_(1)
    before = model.teacher.neck.fc0.weight.clone()
    model.after_step(output.state, Progress(2, 4, 0, 1))  # half-way from 0.5 to 1
    torch.testing.assert_close(model.teacher.neck.fc0.weight, before + 0.25)
    model.after_step(output.state, Progress(4, 4, 0, 1))
    torch.testing.assert_close(model.teacher.neck.fc0.weight, before + 0.25)


@pytest.mark.parametrize(("decay_norms", "expected"), [(False, 0.0), (True, 1.0)])
def test_decay_of_biases_and_norms(decay_norms, expected):
    model = moco_v3(decay_norms=decay_norms)
    groups = {id(p): group for group in model.param_groups() for p in group.params}
    assert groups[id(model.backbone.norm.weight)].weight_decay == expected
    assert not groups[id(model.backbone.norm.weight)].adapt
    assert groups[id(model.neck.fc0.weight)].weight_decay == 1.0


# The Vision Transformer


def test_the_neck_gets_the_class_token(views):
    model = moco_v3().eval()
    patches, cls_token = model(views)
    assert (patches.shape, cls_token.shape) == ((ROWS, 16, 3, 3), (ROWS, 16))
    torch.testing.assert_close(model.embed(views), cls_token)
    z = nn.functional.normalize(model.neck([cls_token]), dim=1)
    torch.testing.assert_close(model(views, mode="predict"), z)


def test_the_map_is_laid_out_like_the_image():
    backbone = vit(depth=0).eval()
    image = torch.randn(1, 3, 12, 12)
    patches = backbone(image)[0]
    row, column = 2, 1
    pixels = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    token = (backbone.patch_embed.proj.weight * pixels).sum((1, 2, 3)) + backbone.patch_embed.proj.bias
    token = token + sincos_positions((3, 3), 16)[0, 1 + 3 * row + column]
    torch.testing.assert_close(patches[0, :, row, column], backbone.norm(token), rtol=1e-4, atol=1e-5)


def test_the_patch_projection_stays_as_it_is(views):
    model = moco_v3()
    model(views, mode="loss").loss.backward()
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert all(p.grad is None for p in model.backbone.patch_embed.parameters())
    assert all(p.requires_grad for p in vit(stop_grad_conv1=False).parameters())


def test_initial_weights():
    backbone = vit(embed_dim=96, num_heads=4)
    for weight in backbone.blocks[0].attn.qkv.weight.chunk(3):
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / (96 + 96)), rel=0.01)
    bound = math.sqrt(6 / (3 * 4 * 4 + 96))
    assert backbone.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert 0 < backbone.cls_token.abs().max() < 1e-5
    torch.testing.assert_close(backbone.pos_embed, sincos_positions((3, 3), 96))


def test_the_default_is_the_papers_small_vit():
    with torch.device("meta"):
        backbone = MoCoV3ViT()
    assert (backbone.feature_dim, len(backbone.blocks), backbone.blocks[0].attn.num_heads) == (384, 12, 12)
    # timm's vit_small_patch16_224 without its classifier; it has the positions among its parameters.
    assert sum(p.numel() for p in backbone.parameters()) + 197 * 384 == 21_665_664


def test_official_checkpoints_load():
    source, target = vit(), vit(img_size=24)
    theirs = {f"module.base_encoder.{key}": value for key, value in source.state_dict().items()}
    theirs |= {
        f"module.momentum_encoder.{key}": torch.zeros_like(v) for key, v in source.state_dict().items()
    }
    theirs |= {"module.base_encoder.head.0.weight": torch.zeros(4, 16)}
    load_backbone(target, theirs)
    torch.testing.assert_close(target.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)
    assert target(torch.randn(2, 3, 24, 24))[0].shape == (2, 16, 6, 6)
