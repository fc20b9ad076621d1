"""Necks: projectors and decoders on top of a backbone."""

from ssl_ray.models.necks.linear_neck import LinearNeck
from ssl_ray.models.necks.mae_pretrain_decoder import MAEPretrainDecoder
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck

__all__ = ["LinearNeck", "MAEPretrainDecoder", "NonLinearNeck"]
