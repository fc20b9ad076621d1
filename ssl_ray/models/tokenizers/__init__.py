"""Tokenizers: images to visual words, for algorithms that predict them."""

from ssl_ray.models.tokenizers.dalle_tokenizer import DALLEEncoder, DALLETokenizer
from ssl_ray.models.tokenizers.patch_codebook import PatchCodebook
from ssl_ray.models.tokenizers.tokenizer import Tokenizer

__all__ = ["DALLEEncoder", "DALLETokenizer", "PatchCodebook", "Tokenizer"]
