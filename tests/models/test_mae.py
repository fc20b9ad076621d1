import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from ssl_ray.errors import UserError
from ssl_ray.models.algorithms.mae import MAE
from ssl_ray.models.backbones.mae_vit import MAEViT
from ssl_ray.models.backbones.vit import Block, PatchEmbed, resize_positions, sincos_positions
from ssl_ray.models.heads.mae_pretrain_head import MAEPretrainHead
from ssl_ray.models.losses.mae_reconstruction_loss import MAEReconstructionLoss
from ssl_ray.models.necks.mae_pretrain_decoder import MAEPretrainDecoder


def make_mae(norm_pix=False, patch_size=8, depth=2, **options):
    torch.manual_seed(0)
    num_patches = (32 // patch_size) ** 2
    return MAE(
        MAEViT(img_size=32, patch_size=patch_size, embed_dim=64, depth=depth, num_heads=4),
        MAEPretrainDecoder(
            num_patches, patch_size, embed_dim=64, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4
        ),
        MAEPretrainHead(patch_size, norm_pix),
        **options,
    )


@pytest.fixture(scope="module")
def digits():
    """16 handwritten digits, (16, 3, 32, 32) uint8."""
    images = torch.tensor(load_digits().images[:16], dtype=torch.float32).unsqueeze(1) * (255 / 16)
    return (
        F.interpolate(images, size=32, mode="bilinear")
        .round()
        .to(torch.uint8)
        .expand(-1, 3, -1, -1)
        .contiguous()
    )


def make_noise(batch=16, num_patches=16, seed=1):
    return torch.rand(batch, num_patches, generator=torch.Generator().manual_seed(seed))


# Masking


def test_the_papers_encoder_keeps_49_patches():
    backbone = MAEViT(embed_dim=16, depth=1, num_heads=2)
    latent, mask, ids_restore = backbone(torch.zeros(2, 3, 224, 224))
    assert latent.shape == (2, 50, 16)
    assert mask.shape == ids_restore.shape == (2, 196)
    assert (~mask).sum(dim=1).tolist() == [49, 49]


def test_ids_restore_inverts_the_shuffle_and_the_smallest_noise_is_kept():
    noise = make_noise()
    _, mask, ids_restore = make_mae().backbone(torch.zeros(16, 3, 32, 32), noise)
    for row in range(16):
        ids_shuffle = sorted(range(16), key=lambda patch: noise[row, patch].item())
        assert [ids_shuffle[i] for i in ids_restore[row]] == list(range(16))
        assert (~mask[row]).nonzero().flatten().tolist() == sorted(ids_shuffle[:4])


def test_the_decoder_puts_visible_tokens_where_they_came_from():
    neck = make_mae().neck
    neck.decoder_blocks = torch.nn.Sequential()
    neck.decoder_norm = torch.nn.Identity()
    neck.decoder_embed = neck.decoder_pred = torch.nn.Identity()
    neck.decoder_pos_embed.zero_()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    image = torch.arange(16.0)[:, None].expand(-1, 32) + 1  # patch i holds i + 1
    latent = torch.cat([torch.full((1, 32), -7.0), image[order[:4]]])[None]
    restored = neck(latent, order.argsort()[None])[0]
    for patch in range(16):
        want = image[patch] if patch in order[:4] else neck.mask_token[0, 0]
        assert torch.equal(restored[patch], want)


def test_the_encoder_does_not_see_what_was_removed(digits):
    model, noise = make_mae().eval(), make_noise()
    image = torch.randn(16, 3, 32, 32)
    mask = model.backbone(image, noise)[1]
    pixels = model.head.unpatchify(mask[:, :, None].expand(-1, -1, 192).float())
    changed = image + pixels * torch.randn(image.shape)
    pred = model.extract_feat([image], {"mask_noise": noise})
    assert torch.equal(pred, model.extract_feat([changed], {"mask_noise": noise}))
    assert not torch.allclose(pred, model.extract_feat([changed], {"mask_noise": noise.flip(1)}), atol=1e-3)


def test_noise_is_drawn_from_torchs_generator_if_not_given(digits):
    model = make_mae()
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(model([digits], mode="loss").loss.item())
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(5)
    noise = torch.rand(16, 16)
    assert model([digits], {"mask_noise": noise}, mode="loss").loss.item() == losses[0]


# Target and loss


def test_patches_go_row_by_row_and_pixels_by_row_column_channel():
    image = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
    patches = MAEPretrainHead(patch_size=2).patchify(image)
    assert patches.shape == (1, 6, 12)
    for i in range(6):
        row, column = 2 * (i // 3), 2 * (i % 3)
        want = [image[0, c, row + y, column + x] for y in range(2) for x in range(2) for c in range(3)]
        assert patches[0, i].tolist() == want


def test_unpatchify_inverts_patchify():
    head, image = MAEPretrainHead(patch_size=8), torch.randn(2, 3, 32, 32)
    assert torch.equal(head.unpatchify(head.patchify(image)), image)


def test_norm_pix_gives_zero_mean_and_unit_unbiased_std():
    head = MAEPretrainHead(patch_size=8, norm_pix=True)
    target = head.target(torch.randn(2, 3, 32, 32, dtype=torch.float64) * 3 + 5)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 16, dtype=torch.float64), atol=1e-12, rtol=0)
    std = (target.square().sum(-1) / (192 - 1)).sqrt()
    torch.testing.assert_close(std, torch.ones(2, 16, dtype=torch.float64), atol=1e-6, rtol=0)
    assert head.target(torch.full((1, 3, 32, 32), 0.3)).abs().max() < 1e-3  # a flat patch does not blow up


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_is_zero_for_the_target_and_depends_on_removed_patches_only(norm_pix):
    head, image = MAEPretrainHead(8, norm_pix), torch.randn(2, 3, 32, 32)
    mask = make_noise(2) > 0.4
    target = head.target(image)
    assert head(target, image, mask) == 0
    assert head(target + 5.0 * ~mask[:, :, None], image, mask) == 0
    assert head(target + 3.0 * mask[:, :, None], image, mask).item() == pytest.approx(9.0, rel=1e-5)


def test_loss_is_the_mean_over_pixels_then_over_removed_patches():
    pred, target, mask = torch.randn(3, 5, 7), torch.randn(3, 5, 7), make_noise(3, 5) > 0.5
    per_patch = [
        sum((pred[b, i, d] - target[b, i, d]).item() ** 2 for d in range(7)) / 7
        for b in range(3)
        for i in range(5)
        if mask[b, i]
    ]
    want = sum(per_patch) / len(per_patch)
    assert MAEReconstructionLoss()(pred, target, mask).item() == pytest.approx(want, rel=1e-5)
    assert MAEReconstructionLoss()(pred.bfloat16(), target, mask).dtype == torch.float32


# The algorithm


def test_it_overfits_sixteen_images(digits):
    model, samples = make_mae(depth=1), {"mask_noise": make_noise()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95), fused=True)
    first = model([digits], samples, mode="loss").loss.item()
    for _ in range(250):
        loss = model([digits], samples, mode="loss").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first
    predicted = model.eval()([digits], samples, mode="predict")
    image = model.data_preprocessor([digits])[0].permute(0, 2, 3, 1)[predicted.mask]
    assert (predicted.pred[predicted.mask] - image).square().mean() < 0.25 * image.var()


def test_loss_leaves_the_state_alone_and_reaches_every_parameter(digits):
    model = make_mae(norm_pix=True)
    before = copy.deepcopy(model.state_dict())
    output = model([digits], {"mask_noise": make_noise()}, mode="loss")
    output.loss.backward()
    assert output.state == {}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("norm_pix", [False, True])
def test_bf16_autocast_is_finite_and_near_float32(digits, norm_pix):
    model, samples = make_mae(norm_pix), {"mask_noise": make_noise()}
    exact = model([digits], samples, mode="loss").loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model([digits], samples, mode="loss").loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_mode_tensor_gives_the_decoders_output(digits):
    model, noise = make_mae(), make_noise()
    torch.manual_seed(3)
    pred = model([digits])
    assert pred.shape == (16, 16, 192)
    views = model.data_preprocessor([digits])
    latent, _, ids_restore = model.backbone(views[0], noise)
    assert torch.equal(model.extract_feat(views, {"mask_noise": noise}), model.neck(latent, ids_restore))


def test_predict_puts_back_the_statistics_of_the_original_patch(digits):
    model, noise = make_mae(norm_pix=True), make_noise()
    views = model.data_preprocessor([digits])
    raw = model.extract_feat(views, {"mask_noise": noise})
    got = model([digits], {"mask_noise": noise}, mode="predict")
    assert got.pred.shape == got.mask.shape == (16, 32, 32, 3)
    patch = views[0][2, :, 8:16, 24:32]  # patch 7 of image 2
    want = raw[2, 7].view(8, 8, 3) * (patch.var() + 1e-6).sqrt() + patch.mean()
    torch.testing.assert_close(got.pred[2, 8:16, 24:32], want)
    assert got.mask[2, 8:16, 24:32].unique().tolist() == [noise[2].argsort().argsort()[7].item() >= 4]


def test_embed_masks_nothing_and_repeats(digits):
    model = make_mae().eval()
    embedding = model.embed([digits])
    assert embedding.shape == (16, 64)
    assert torch.equal(embedding, model.embed([digits]))
    changed = digits.clone()
    for row in range(4):
        for column in range(4):
            changed[row * 4 + column, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] ^= 255
    assert ((model.embed([changed]) - embedding).abs().amax(dim=1) > 1e-4).all()  # every patch counts


@pytest.mark.parametrize("decay_tokens", [True, False])
def test_biases_and_norms_are_not_decayed_and_tokens_as_asked(decay_tokens):
    model = make_mae(decay_tokens=decay_tokens)
    decayed, rest = model.param_groups()
    assert (decayed.weight_decay, rest.weight_decay) == (1.0, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    kept_out = {names[id(p)] for p in rest.params}
    tokens = {"backbone.cls_token", "neck.mask_token"}
    want = {name for name in names.values() if name.endswith(".bias") or "norm" in name}
    assert kept_out == (want if decay_tokens else want | tokens)
    assert len(decayed.params) + len(rest.params) == len(names)
    assert not any("pos_embed" in name for name in names.values())


@pytest.mark.usefixtures("compiler")
def test_compiled_loss_equals_eager(digits):
    model, samples = make_mae(norm_pix=True, depth=1), {"mask_noise": make_noise()}
    want = model([digits], samples, mode="loss").loss
    want.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = torch.compile(model, fullgraph=True)([digits], samples, mode="loss").loss
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=0)
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)


# The transformer's parts


def test_positions_encode_row_then_column():
    rows, columns, dim = 3, 5, 8
    table = sincos_positions((rows, columns), dim, temperature=100.0)[0]
    assert table.shape == (1 + 15, dim)
    assert torch.equal(table[0], torch.zeros(dim))
    for row in range(rows):
        for column in range(columns):
            row, column = torch.tensor(float(row)), torch.tensor(float(column))
            want = [f(x * w) for x in (row, column) for f in (torch.sin, torch.cos) for w in (1.0, 0.1)]
            torch.testing.assert_close(table[1 + int(row) * columns + int(column)], torch.stack(want))


def test_positions_are_interpolated_on_load_with_a_message(caplog):
    def make(size):
        return MAEViT(img_size=size, patch_size=8, embed_dim=32, depth=1, num_heads=2)

    small, large, same = make(32), make(64), make(32)
    state = small.state_dict()
    with caplog.at_level(logging.WARNING):
        same.load_state_dict(state)
        assert not caplog.records
        large.load_state_dict(state)
    assert "pos_embed: positions for 16 patches resized to 64" in caplog.text
    assert state["pos_embed"].shape == (1, 17, 32)
    assert torch.equal(large.pos_embed[:, :1], small.pos_embed[:, :1])
    coarse = large.pos_embed[0, 1:].view(4, 2, 4, 2, 32).mean(dim=(1, 3))
    torch.testing.assert_close(coarse, small.pos_embed[0, 1:].view(4, 4, 32), atol=0.15, rtol=0)
    assert large(torch.zeros(1, 3, 64, 64))[0].shape == (1, 17, 32)


def test_a_model_pickles_and_its_copy_still_fits_positions():
    backbone = pickle.loads(pickle.dumps(make_mae().backbone))
    state = {**backbone.state_dict(), "pos_embed": sincos_positions((2, 2), 64)}
    backbone.load_state_dict(state)
    assert backbone.pos_embed.shape == (1, 17, 64)


def test_resizing_to_the_same_grid_changes_nothing():
    positions = sincos_positions((4, 4), 16)
    torch.testing.assert_close(resize_positions(positions, 16), positions)


def test_a_checkpoints_own_positions_win():
    backbone = make_mae().backbone
    state = {**backbone.state_dict(), "pos_embed": torch.full((1, 17, 64), 0.5)}
    backbone.load_state_dict(state)
    assert backbone.pos_embed.unique().tolist() == [0.5]


def test_a_block_is_attention_and_mlp_with_residuals():
    torch.manual_seed(0)
    block, x = Block(dim=8, num_heads=2, mlp_ratio=2.0).double(), torch.randn(1, 5, 8, dtype=torch.float64)
    q, k, v = block.attn.qkv(block.norm1(x))[0].split(8, dim=1)
    heads = [torch.softmax(q[:, h] @ k[:, h].T / 4**0.5, dim=1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
    y = x + block.attn.proj(torch.cat(heads, dim=1))
    hidden = block.mlp.fc1(block.norm2(y))
    want = y + block.mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(block(x), want)


def test_drop_path_skips_whole_images_in_training_only():
    torch.manual_seed(0)
    block, x = Block(8, 2, drop_path=0.5), torch.randn(400, 3, 8)
    untouched = (block(x) == x).flatten(1).all(dim=1).float().mean().item()
    assert untouched == pytest.approx(0.25, abs=0.11)  # both branches dropped: 5 standard deviations
    block.eval()
    plain = Block(8, 2).eval()
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(x), plain(x))
    rates = [b.drop_path for b in MAEViT(32, 8, embed_dim=8, depth=3, num_heads=2, drop_path=0.1).blocks]
    assert rates == [0, 0.05, 0.1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchEmbed(28, 16), "patch_size: 16 does not divide img_size 28"),
        (lambda: MAEViT(32, 8, embed_dim=30, num_heads=2), "multiple of 4"),
        (lambda: MAEViT(32, 8, embed_dim=32, num_heads=5), "num_heads: 5"),
        (lambda: MAEViT(32, 8, embed_dim=8, num_heads=2, mask_ratio=0.99), "keeps 0 of 16"),
        (lambda: MAEViT(32, 8, embed_dim=8, num_heads=2, mask_ratio=0.0), "keeps 16 of 16"),
        (lambda: MAEPretrainDecoder(num_patches=15), "num_patches: 15 is not a square"),
        (lambda: make_mae().backbone(torch.zeros(1, 3, 28, 28)), "built for 32 x 32, got 28 x 28"),
        (
            lambda: make_mae().neck(torch.zeros(1, 2, 64), torch.zeros(1, 4, dtype=torch.long)),
            "neck.num_patches=4",
        ),
        (
            lambda: MAEPretrainHead(4)(torch.zeros(1, 16, 192), torch.zeros(1, 3, 32, 32), None),
            "patch_size: 4",
        ),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(UserError, match=message):
        make()
