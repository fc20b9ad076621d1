"""SimSiam of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import Config, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.models import SimSiam


def _simsiam(config: Config) -> SimSiam:
    return SimSiam(**build_parts(config, COMMON), **arguments_of(config, {}))


CORRESPONDENCE = Correspondence(_simsiam)
