#!/usr/bin/env bash
# OpenCV decodes a tiled 16-bit gray TIFF with wrong pixels at the right edge, without an error, where the width is no
# multiple of the tile's; as 3 bands or in strips the same pixels are right. tifffile writes the file and reads it back.
# Exits with 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet opencv-python-headless==5.0.0.93 tifffile==2026.3.3 numpy==2.4.6 2>/dev/null
venv/bin/python - <<'PYTHON'
import io

import cv2
import numpy as np
import tifffile

print("OpenCV", cv2.__version__, "tifffile", tifffile.__version__)
gray = np.arange(128 * 100, dtype=np.uint16).reshape(128, 100) * 5  # 100 is no multiple of 64


def columns_that_differ(pixels, flag, **options):
    stream = io.BytesIO()
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(stream, pixels, photometric=photometric, **options)
    stream.seek(0)
    assert np.array_equal(tifffile.imread(stream), pixels)  # an independent reader agrees with what was written
    image = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), flag)
    expected = pixels if image.dtype == np.uint16 else (pixels >> 8).astype(np.uint8)
    if image.ndim == 3 and expected.ndim == 2:
        expected = expected[..., None]
    differs = (abs(image.astype(int) - expected) > 1).reshape(128, 100, -1).any(-1)  # 1: rounded or cut off
    return f"columns {np.flatnonzero(differs.any(0)).min()} to 99" if differs.any() else "none"


color, unchanged = cv2.IMREAD_COLOR_RGB, cv2.IMREAD_UNCHANGED
rgb = np.stack([gray] * 3, -1)
seen = {
    "gray, tiles of 64, IMREAD_COLOR_RGB": columns_that_differ(gray, color, tile=(64, 64)),
    "gray, tiles of 64, IMREAD_UNCHANGED": columns_that_differ(gray, unchanged, tile=(64, 64)),
    "gray, strips, IMREAD_COLOR_RGB": columns_that_differ(gray, color),
    "RGB, tiles of 64, IMREAD_COLOR_RGB": columns_that_differ(rgb, color, tile=(64, 64)),
}
for how, columns in seen.items():
    print(f"{how}: wrong: {columns}")
wanted = ["columns 64 to 99", "none", "none", "none"]
raise SystemExit(0 if list(seen.values()) == wanted else 1)
PYTHON
