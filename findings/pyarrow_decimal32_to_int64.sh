#!/usr/bin/env bash
# pyarrow: no decimal32 can be cast to int64, whatever its values; to int32, and from wider decimals, it works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from decimal import Decimal

import pyarrow as pa

print("pyarrow", pa.__version__)
values = [Decimal(1), Decimal(2)]
seen = {}
for kind in (pa.decimal32(5, 1), pa.decimal64(5, 1), pa.decimal128(5, 1)):
    for target in (pa.int32(), pa.int64()):
        try:
            seen[str(kind), str(target)] = pa.array(values, kind).cast(target).to_pylist()
        except pa.ArrowInvalid as error:
            seen[str(kind), str(target)] = str(error)
        print(kind, "->", target, seen[str(kind), str(target)])
wrong = seen.pop(("decimal32(5, 1)", "int64"))
sys.exit(not (wrong == "Integer value out of bounds" and all(v == [1, 2] for v in seen.values())))
PYTHON
echo "seen: decimal32 -> int64 raises 'Integer value out of bounds' for 1 and 2"
