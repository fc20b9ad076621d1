"""RelativeLoc of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.models import RelativeLoc, RelativeLocNeck


def _relative_loc_neck(config: Config) -> RelativeLocNeck:
    names = {n: n for n in ("in_channels", "out_channels", "with_avg_pool")}
    return RelativeLocNeck(**arguments_of(config, names))


_READERS: Readers = COMMON | {"RelativeLocNeck": _relative_loc_neck}


def _relative_loc(config: Config) -> RelativeLoc:
    arguments_of(config, {})
    return RelativeLoc(**build_parts(config, _READERS), repeat_center=True)


CORRESPONDENCE = Correspondence(_relative_loc)
