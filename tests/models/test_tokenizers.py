import io

import pytest
import torch
import torch.nn.functional as F

from ssl_ray.errors import UserError
from ssl_ray.models.meta import without_memory
from ssl_ray.models.tokenizers import DALLEEncoder, DALLETokenizer, PatchCodebook
from tests.ranks import Ranks

WIDTH, TOKENS = 8, 11


def published_weights():
    """Random tensors under the names and in the proportions of DALL-E's encoder."""
    generator = torch.Generator().manual_seed(0)
    weights = {}

    def add(name, out, channels, kernel):
        weights[f"blocks.{name}.w"] = torch.randn(out, channels, kernel, kernel, generator=generator) / kernel
        weights[f"blocks.{name}.b"] = torch.randn(out, generator=generator)

    add("input", WIDTH, 3, 7)
    channels = WIDTH
    for group in (1, 2, 3, 4):
        out = WIDTH * 2 ** (group - 1)
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            if channels != out:
                add(f"{name}.id_path", out, channels, 1)
            add(f"{name}.res_path.conv_1", out // 4, channels, 3)
            add(f"{name}.res_path.conv_2", out // 4, out // 4, 3)
            add(f"{name}.res_path.conv_3", out // 4, out // 4, 3)
            add(f"{name}.res_path.conv_4", out, out // 4, 1)
            channels = out
    add("output.conv", TOKENS, channels, 1)
    return weights


def logits_by_hand(weights, x):
    """The published architecture, written out from the names."""

    def conv(name, x):
        w = weights[f"blocks.{name}.w"]
        return F.conv2d(x, w, weights[f"blocks.{name}.b"], padding=(w.shape[2] - 1) // 2)

    x = conv("input", 0.1 + 0.8 * x)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            kept = conv(f"{name}.id_path", x) if f"blocks.{name}.id_path.w" in weights else x
            for i in (1, 2, 3, 4):
                x = conv(f"{name}.res_path.conv_{i}", x.relu())
            x = kept + x / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv("output.conv", x.relu())


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "dalle_encoder.pth"
    torch.save(published_weights(), path)
    return path


# DALL-E


def test_the_published_encoder_has_these_tensors():
    with without_memory():
        buffers = dict(DALLEEncoder().named_buffers())
    assert buffers["blocks.input.w"].shape == (256, 3, 7, 7)
    assert buffers["blocks.group_1.block_1.res_path.conv_1.w"].shape == (64, 256, 3, 3)
    assert buffers["blocks.group_4.block_1.id_path.w"].shape == (2048, 1024, 1, 1)
    assert buffers["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in buffers
    assert sum(b.numel() for b in buffers.values()) == 53_786_240


def test_dalle_tokens_are_those_of_the_written_out_architecture(weights_file):
    tokenizer = DALLETokenizer(str(weights_file))
    images = torch.rand(2, 3, 32, 32)
    logits = logits_by_hand(published_weights(), images)
    torch.testing.assert_close(tokenizer.encoder(0.1 + 0.8 * images), logits)
    assert torch.equal(tokenizer(images), logits.argmax(1))
    assert tokenizer(images).shape == (2, 4, 4)
    assert tokenizer.num_tokens == TOKENS


def test_dalle_weights_are_neither_trained_nor_saved(weights_file):
    tokenizer = DALLETokenizer(str(weights_file))
    assert not list(tokenizer.parameters())
    assert not tokenizer.state_dict()
    assert not tokenizer.encoder(torch.rand(1, 3, 16, 16)).requires_grad


def test_dalle_reads_them_from_an_mmselfsup_checkpoint(tmp_path, weights_file):
    inside = {f"target_generator.{k}": v for k, v in published_weights().items()} | {"neck.x": torch.zeros(1)}
    torch.save({"state_dict": inside, "meta": {}}, tmp_path / "cae.pth")
    images = torch.rand(1, 3, 16, 16)
    ours = DALLETokenizer(str(tmp_path / "cae.pth"))
    assert torch.equal(ours(images), DALLETokenizer(str(weights_file))(images))


def test_dalle_says_where_to_get_the_weights(tmp_path, weights_file):
    with pytest.raises(UserError, match=r"no file .*nowhere.pth.*openmmlab.*PatchCodebook"):
        DALLETokenizer("nowhere.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not DALL-E's encoder"):
        DALLETokenizer(str(tmp_path / "other.pth"))
    cut = {k: v for k, v in published_weights().items() if "group_3.block_2" not in k}
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(UserError, match=r"group_3\.block_2"):
        DALLETokenizer(str(tmp_path / "cut.pth"))


# Codebook


def prototypes(count=6, cell=4):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, cell, cell, generator=generator)


def mosaics(rows=40, side=3, noise=0.01):
    """Images put together of a few prototypes, and which stands where (rows, side, side)."""
    generator = torch.Generator().manual_seed(4)
    which = torch.randint(0, 6, (rows, side, side), generator=generator)
    cells = prototypes()[which]  # (rows, side, side, 3, 4, 4)
    images = cells.permute(0, 3, 1, 4, 2, 5).reshape(rows, 3, side * 4, side * 4)
    return images + noise * torch.randn(images.shape, generator=generator), which


def collector(images, rank=0, world_size=1, batch=7):
    def collect(function):
        index = torch.arange(rank, len(images), world_size)
        return index, torch.cat([function(images[part]) for part in index.split(batch)])

    return collect


def fitted(**options):
    book = PatchCodebook(num_tokens=6, num_patches=9, cell_size=4, **options)
    book.prepare(collector(mosaics()[0]))
    return book


def test_patches_are_cut_row_by_row():
    images, which = mosaics(noise=0)
    patches = PatchCodebook(6, 9, cell_size=4).patches(images)
    torch.testing.assert_close(patches, prototypes()[which].flatten(3).flatten(1, 2).flatten(2))


@pytest.mark.parametrize("norm_patch", [False, True])
def test_the_codebook_finds_the_prototypes(norm_patch):
    book = fitted(norm_patch=norm_patch)
    images, which = mosaics()
    tokens = book(images)
    assert tokens.shape == (40, 3, 3)
    names = {(int(a), int(b)) for a, b in zip(which.flatten(), tokens.flatten(), strict=True)}
    assert len(names) == 6, "one token per prototype"
    assert {token for _, token in names} == set(range(6))


def test_tokens_do_not_depend_on_the_size_of_the_image():
    book, (images, _) = fitted(), mosaics()
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(book(larger), book(images))


def test_normalised_patches_forget_brightness_and_contrast():
    book = fitted(norm_patch=True)
    images, _ = mosaics()
    patches = book.patches(images)
    torch.testing.assert_close(patches.mean(2), torch.zeros(40, 9), rtol=0, atol=1e-5)
    assert torch.equal(book(images * 0.7 + 0.2), book(images))
    assert book.patches(torch.full((1, 3, 12, 12), 0.3)).abs().max() < 1e-3
    assert not torch.equal(fitted()(images * 0.2 + 0.7), fitted()(images))


def test_it_is_fitted_once_and_kept():
    book = fitted()
    before = book.codebook.clone()
    book.prepare(collector(1 - mosaics()[0]))
    assert torch.equal(book.codebook, before)
    kept = io.BytesIO()
    torch.save(book.state_dict(), kept)
    kept.seek(0)
    again = PatchCodebook(6, 9, cell_size=4)
    again.load_state_dict(torch.load(kept, weights_only=True))
    again.prepare(collector(1 - mosaics()[0]))
    assert torch.equal(again.codebook, before)
    assert not list(book.parameters())


def test_every_patch_of_the_images_gets_its_turn():
    book = PatchCodebook(6, 9, cell_size=4, patches_per_image=2)
    numbers = torch.arange(9.0).view(1, 3, 3).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = numbers.expand(9, 3, 12, 12)
    _, patches = collector(images)(book._sampler())
    assert patches[:, :, 0].flatten().long().bincount().tolist() == [2] * 9
    assert (patches[:, 0] != patches[:, 1]).all()


def test_it_uses_no_more_patches_than_asked_for():
    """Far fewer patches than there are find prototypes as well."""
    book = fitted(patches_per_token=20)
    tokens = book(mosaics()[0])
    assert tokens.unique().numel() == 6


def fit_on_this_rank():
    from ssl_ray import distributed

    book = PatchCodebook(num_tokens=12, num_patches=9, cell_size=4)
    images = mosaics(rows=37, noise=0.1)[0]
    book.prepare(collector(images, distributed.rank(), distributed.world_size()))
    return book.codebook


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_agree_on_the_codebook(world_size, ranks: Ranks):
    alone = fit_on_this_rank()
    for codebook in ranks(world_size, fit_on_this_rank):
        torch.testing.assert_close(codebook, alone, rtol=1e-6, atol=1e-7)


def test_says_what_does_not_fit():
    with pytest.raises(UserError, match="num_patches: 10 is not a square"):
        PatchCodebook(8, 10)
    with pytest.raises(UserError, match="1000 words cannot be learned from 160 patches"):
        PatchCodebook(1000, 9, cell_size=4).prepare(collector(mosaics()[0]))
