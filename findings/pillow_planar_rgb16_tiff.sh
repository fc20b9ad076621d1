#!/usr/bin/env bash
# Pillow decodes an uncompressed 16-bit RGB TIFF whose bands stand in planes (PlanarConfiguration 2) with wrong pixels,
# without an error: it takes the 16-bit samples of a plane for 8-bit ones. The same compressed, or interleaved, is right.
# tifffile writes the file and reads it back. Exits with 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6 2>/dev/null
venv/bin/python - <<'PYTHON'
import io

import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__, "tifffile", tifffile.__version__)
planes = np.random.default_rng(0).integers(0, 65536, (3, 40, 60), np.uint16)


def share_that_differs(pixels, bands_last, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, photometric="rgb", **options)
    stream.seek(0)
    assert np.array_equal(tifffile.imread(stream), pixels)  # an independent reader agrees with what was written
    stream.seek(0)
    image = Image.open(stream)
    assert image.mode == "RGB"
    return float((np.asarray(image) != bands_last >> 8).mean())


rgb = np.moveaxis(planes, 0, 2).copy()
seen = {
    "planes, no compression": share_that_differs(planes, rgb, planarconfig="separate"),
    "planes, Deflate": share_that_differs(planes, rgb, planarconfig="separate", compression="zlib"),
    "interleaved, no compression": share_that_differs(rgb, rgb),
}
for how, share in seen.items():
    print(f"{how}: {100 * share:.1f} % of the samples are wrong")
first, *others = seen.values()
raise SystemExit(0 if first > 0.9 and others == [0, 0] else 1)
PYTHON
