"""How ssl-ray scales, as far as one machine can tell: four parts, each with its baseline in the same run.

throughput: the real stack on 1, 2, 4 workers, compute replaced by sleep; beside it the sleep alone and a bare DDP loop.
plan: what the plan costs for up to a billion images, beside np.random.permutation, and what an opened source holds.
memory: of every process and the object store over 10,000 steps, early and late.
nodes: what a stated training needs, from the CPU time of an image as it is measured here.

    python benchmarks/scaling.py [throughput] [plan] [memory] [nodes] [--json]
"""

import argparse
import json
import os
import platform
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from scaling_parts import memory, nodes, plan, throughput

from ssl_ray.console import Console

PARTS: dict[str, Any] = {"throughput": throughput, "plan": plan, "memory": memory, "nodes": nodes}


def main() -> None:
    """Measures the named parts, or all; prints tables, and with --json one line of JSON last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    for part in PARTS.values():
        part.add_options(parser)
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"{name!r} is no part; allowed: {', '.join(PARTS)}")
    console = Console()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    console.print(f"{machine}, {platform.system()} {platform.release()}")
    result: dict[str, Any] = {"machine": machine}
    for name in arguments.parts or PARTS:
        load = os.getloadavg()[0]
        console.print(f"\n{name} (load average before it: {load:.1f})")
        started = time.perf_counter()
        result[name] = PARTS[name].measure(arguments, console)
        console.print(f"{name}: {time.perf_counter() - started:.0f} s")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
