"""The discrete VAE of DALL-E as tokenizer; its weights are published, and not part of this package."""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.interop.weights import read_state_dict
from ssl_ray.models.tokenizers.tokenizer import Tokenizer
from ssl_ray.ranges import Channels, Classes

_SOURCE = "https://download.openmmlab.com/mmselfsup/1.x/target_generator_ckpt/dalle_encoder.pth"
_PREFIXES = ("", "target_generator.")  # a file of its own, a checkpoint of MMSelfSup's CAE


class DALLETokenizer(Tokenizer):
    """Most likely code of DALL-E's dVAE for each 8 x 8 pixels. Source: Ramesh et al., arXiv 2102.12092, appendix A.

    The weights come from their file at each start, and so are not in checkpoints. On a GPU convolutions but the last
    are computed in float16, as in the official code.

    Args:
        weights: file with the encoder's state dict (blocks.input.w, ...): the published one, 8192 codes, from
            https://download.openmmlab.com/mmselfsup/1.x/target_generator_ckpt/dalle_encoder.pth; or a checkpoint of
            MMSelfSup's CAE. Every worker must be able to read it. openai/DALL-E's own encoder.pkl is a pickled
            program; save its `state_dict()` with torch.save.

    Raises UserError if the file is not there or holds something else.
    """

    cell_size = 8

    def __init__(self, weights: str = "dalle_encoder.pth") -> None:
        super().__init__()
        if not Path(weights).is_file():
            raise UserError(
                f"weights: no file {weights} here; get DALL-E's encoder (215 MB) from {_SOURCE} and give its path, "
                "or use PatchCodebook as tokenizer, which learns its words from your images"
            )
        tensors = read_state_dict(weights)
        found = (
            {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(f"{p}blocks.")}
            for p in _PREFIXES
        )
        tensors = next((t for t in found if t), {})
        try:
            width, self.num_tokens = len(tensors["blocks.input.b"]), len(tensors["blocks.output.conv.b"])
            self.encoder = DALLEEncoder(width, self.num_tokens)
            for name, buffer in self.encoder.named_buffers():
                buffer.copy_(tensors[name])
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"weights: {weights} is not DALL-E's encoder ({error}); get it from {_SOURCE}"
            ) from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, H / 8, W / 8) of images (B, 3, H, W) in [0, 1]; an image of 112 pixels has 14 x 14."""
        tokens: Tensor = self.encoder(0.8 * images + 0.1).argmax(1)  # the logit-Laplace map, eps 0.1
        return tokens


class DALLEEncoder(nn.Module):
    """Encoder of DALL-E's dVAE: four groups of two residual blocks, pooling between. Names are those of the weights.

    width: channels of the first group, the others have 2, 4 and 8 times as many. num_tokens: size of the codebook.
    """

    def __init__(self, width: Channels = 256, num_tokens: Classes = 8192) -> None:
        super().__init__()
        gain = 1 / 8**2  # of a residual branch: 1 / (number of blocks)^2
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=_Conv(3, width, 7))
        channels = width
        for group in range(4):
            out = width * 2**group
            layers[f"group_{group + 1}"] = nn.Sequential(
                OrderedDict(
                    block_1=_Block(channels, out, gain),
                    block_2=_Block(out, out, gain),
                    pool=nn.MaxPool2d(2) if group < 3 else nn.Identity(),
                )
            )
            channels = out
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_Conv(channels, num_tokens, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_tokens, H / 8, W / 8) of images (B, 3, H, W) in [0.1, 0.9]."""
        device, dtype = x.device.type, x.dtype
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            x = self.blocks[:-1](x)
        with torch.autocast(device, enabled=False):
            logits: Tensor = self.blocks[-1](x.to(dtype))
        return logits


class _Block(nn.Module):
    """x plus a small correction of three 3 x 3 and one 1 x 1 convolution at a quarter of the width."""

    def __init__(self, channels: int, out: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = _Conv(channels, out, 1) if channels != out else nn.Identity()
        widths, kernels = (channels, out // 4, out // 4, out // 4, out), (3, 3, 3, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = _Conv(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return y


class _Conv(nn.Module):
    """Convolution that keeps the image's size. Buffers, for they are neither trained nor saved."""

    w: Tensor
    b: Tensor

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.register_buffer("w", torch.empty(out, channels, kernel, kernel), persistent=False)
        self.register_buffer("b", torch.empty(out), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding="same")
