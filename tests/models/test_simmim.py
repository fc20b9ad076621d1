import pytest
import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.interop.weights import load_backbone
from ssl_ray.models import SimMIM, SimMIMHead, SimMIMNeck, SimMIMReconstructionLoss, SimMIMSwinTransformer


def model(**settings) -> SimMIM:
    torch.manual_seed(0)
    backbone = SimMIMSwinTransformer(32, 4, 3, 8, (2, 2), (2, 2), window_size=4)
    return SimMIM(backbone, SimMIMNeck(16, 8), SimMIMHead(4), **settings).double()


def batch() -> tuple[list[Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(3, 4, 4, generator=generator).argsort().argsort() < 2  # two of four cells in each row
    mask = mask.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint8)
    return [torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)], {"mask": mask}


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_off_by_one_everywhere_costs_one_whatever_the_mask(share):
    torch.manual_seed(0)
    images, mask = torch.randn(4, 3, 32, 32), torch.rand(4, 8, 8) < share
    assert SimMIMHead(4)(images + 1, images, mask).item() == pytest.approx(1, rel=1e-5)
    assert SimMIMHead(4)(images, images, mask) == 0


def test_only_hidden_pixels_count_and_all_alike():
    torch.manual_seed(0)
    images, pred, mask = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.rand(2, 4, 4) < 0.4
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    hidden = (pred - images).abs().permute(0, 2, 3, 1)[pixels]
    torch.testing.assert_close(SimMIMHead(4)(pred, images, mask), hidden.mean())
    elsewhere = pred + 7 * ~pixels[:, None]
    torch.testing.assert_close(SimMIMHead(4)(elsewhere, images, mask), hidden.mean())


def test_a_batch_without_hidden_pixels_costs_nothing():
    loss = SimMIMReconstructionLoss()
    assert loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)) == 0
    half = loss(torch.ones(1, 3, 4, 4).bfloat16(), torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4).bool())
    assert half.dtype == torch.float32


def test_the_published_mask_has_22_cells_of_32_pixels():
    cells = (torch.arange(36) < 22).view(1, 6, 6)
    patches = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert SimMIMHead(4).pixels(patches).shape == (1, 1, 192, 192)
    assert SimMIMHead(4).pixels(patches).sum() == 22 * 1024


def test_neck_lays_out_each_cell_as_its_own_square_of_pixels():
    neck = SimMIMNeck(5, 4)
    nn.init.zeros_(neck.decoder[0].bias)
    maps = torch.randn(2, 5, 3, 3)
    images = neck((torch.zeros(1), maps))
    assert images.shape == (2, 3, 12, 12)
    weights = neck.decoder[0].weight.view(3, 4, 4, 5)  # colour, row, column of a pixel in its square
    expected = torch.einsum("kijd,bdrc->bkricj", weights, maps).reshape(2, 3, 12, 12)
    torch.testing.assert_close(images, expected)


def test_modes():
    m, (views, samples) = model(), batch()
    output = m(views, samples, mode="loss")
    pred, hidden = m(views, samples, mode="predict")
    assert pred.shape == hidden.shape == (3, 32, 32, 3)
    assert hidden.dtype == torch.bool
    pixels = samples["mask"].bool().repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(hidden, pixels[..., None].expand(-1, -1, -1, 3))
    errors = (pred - views[0].permute(0, 2, 3, 1)).abs()[hidden]
    torch.testing.assert_close(output.loss, errors.mean(), rtol=1e-6, atol=0)
    whole = m(views, mode="predict")
    assert not whole.mask.any()
    torch.testing.assert_close(whole.pred, m(views, mode="tensor").permute(0, 2, 3, 1))
    torch.testing.assert_close(m.embed(views), m.backbone(views[0])[0].mean((2, 3)))


def test_loss_sees_hidden_pixels_only_as_targets():
    m, (views, samples) = model(), batch()
    hidden = samples["mask"].bool().repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = views[0] + 5 * hidden
    first, second = (m([v], samples, mode="predict").pred for v in (views[0], other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_missing_mask_and_sizes_that_differ_are_refused():
    m, (views, samples) = model(), batch()
    with pytest.raises(UserError, match=r"no 'mask'.*simmim_views"):
        m(views, mode="loss")
    with pytest.raises(UserError, match=r"neck.encoder_stride: 4, but .* has 8 pixels"):
        SimMIM(m.backbone, SimMIMNeck(16, 4), m.head)
    with pytest.raises(UserError, match="patch_size: 2 in the head"):
        SimMIM(m.backbone, m.neck, SimMIMHead(2))(views, samples, mode="loss")


@pytest.mark.parametrize("decay_tokens", [False, True])
def test_tables_norms_and_biases_are_never_decayed(decay_tokens):
    m = model(decay_tokens=decay_tokens)
    weights, rest = m.param_groups()
    names = {id(p): name for name, p in m.named_parameters()}
    assert (weights.weight_decay, rest.weight_decay) == (1, 0)
    assert {names[id(p)] for p in weights.params + rest.params} == set(names.values())
    assert len(weights.params + rest.params) == len(names)
    decayed = {names[id(p)] for p in weights.params}
    assert all(name.endswith("weight") and "norm" not in name for name in decayed - {"backbone.mask_token"})
    assert ("backbone.mask_token" in decayed) == decay_tokens


CONFIG = {
    "type": "SimMIM",
    "backbone": {
        "type": "SimMIMSwinTransformer",
        "arch": {"embed_dims": 8, "depths": [2, 1], "num_heads": [2, 2]},
        "img_size": 32,
        "out_indices": [1],
        "stage_cfgs": {"block_cfgs": {"window_size": 4}},
    },
    "neck": {"type": "SimMIMNeck", "in_channels": 16, "encoder_stride": 8},
    "head": {
        "type": "SimMIMHead",
        "patch_size": 4,
        "loss": {"type": "SimMIMReconstructionLoss", "encoder_in_channels": 3},
    },
}


def configured(**backbone) -> dict:
    return CONFIG | {"backbone": CONFIG["backbone"] | backbone}


def test_mmselfsups_swin_l_pads_its_last_map():
    with torch.device("meta"):
        large = mmselfsup.from_config(
            {
                "type": "SimMIM",
                "backbone": {
                    "type": "SimMIMSwinTransformer",
                    "arch": "L",
                    "img_size": 192,
                    "stage_cfgs": {"block_cfgs": {"window_size": 12}},
                    "pad_small_map": True,
                },
                "neck": {"type": "SimMIMNeck", "in_channels": 1536, "encoder_stride": 32},
                "head": CONFIG["head"],
            }
        )
    last = large.backbone.layers[-1].blocks[1]
    assert (last.side, last.window, last.shift, last.drop_path) == (6, 12, 6, pytest.approx(0.1))
    assert large.decay_tokens


def test_other_patch_sizes_and_mlps_are_read():
    config = configured(
        patch_cfg={"kernel_size": 2, "stride": 2},
        stage_cfgs={"block_cfgs": {"window_size": 4, "ffn_ratio": 2}},
    )
    config |= {"neck": {"type": "SimMIMNeck", "in_channels": 16, "encoder_stride": 4}}
    backbone = mmselfsup.from_config(config).backbone
    assert (backbone.stride, backbone.layers[0].blocks[0].mlp.fc1.out_features) == (4, 16)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"arch": "huge"}, "arch='huge'"),
        ({"out_indices": [0]}, "out_indices"),
        ({"use_abs_pos_embed": True}, "use_abs_pos_embed"),
        ({"stage_cfgs": [{}, {}]}, "one dict for all stages"),
        ({"stage_cfgs": {"downsample_cfg": {}}}, "downsample_cfg"),
        ({"stage_cfgs": {"block_cfgs": {"attn_cfgs": {}}}}, "attn_cfgs"),
        ({"patch_cfg": {"kernel_size": 4, "stride": 2}}, "stride = kernel_size"),
    ],
)
def test_settings_without_counterpart_are_refused(backbone, message):
    with pytest.raises(UserError, match=message):
        mmselfsup.from_config(configured(**backbone))


def test_their_patch_merging_is_an_unfold_and_gives_the_same_numbers():
    ours = mmselfsup.from_config(CONFIG)
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs = mmselfsup.to_state_dict(ours)
    prefix = "backbone.stages.0.downsample."
    x = torch.randn(2, 6, 6, 8)
    columns = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # channel-major
    normed = nn.functional.layer_norm(
        columns, (32,), *(theirs[prefix + f"norm.{n}"] for n in ("weight", "bias"))
    )
    expected = (normed @ theirs[prefix + "reduction.weight"].T).view(2, 3, 3, 16)
    torch.testing.assert_close(ours.backbone.layers[0].downsample(x), expected, rtol=1e-4, atol=1e-4)


def test_backbones_load_from_mmselfsup_and_from_the_authors():
    ours = mmselfsup.from_config(CONFIG)
    sources = {
        "mmselfsup": mmselfsup.to_state_dict(ours),
        "authors": {f"encoder.{k}": v for k, v in ours.backbone.state_dict().items()},
    }
    x = torch.randn(1, 3, 32, 32)
    for name, source in sources.items():
        torch.manual_seed(9)
        fresh = mmselfsup.from_config(CONFIG).backbone.eval()
        load_backbone(fresh, source)
        torch.testing.assert_close(fresh(x)[0], ours.backbone.eval()(x)[0], rtol=0, atol=0, msg=name)
