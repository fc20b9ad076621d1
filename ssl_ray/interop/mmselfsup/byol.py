"""BYOL of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import Config, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence, teacher_at
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.models import BYOL


def _byol(config: Config) -> BYOL:
    return BYOL(**build_parts(config, COMMON), **arguments_of(config, {"base_momentum": "momentum"}))


CORRESPONDENCE = Correspondence(_byol, lambda model: teacher_at("target_net"), counter="target_net.steps")
