"""Drives our models in MMSelfSup's order of events: `Order` for most, a file here for an algorithm that differs."""

import importlib
import importlib.util

from tests.conformance.orders.order import Order


def order_of(kind: str) -> Order:
    """The order of an algorithm, by its MMSelfSup type; `moco_v3.py` holds class `MoCoV3Order`, and so on."""
    name = f"{__name__}.{kind.lower()}"
    if importlib.util.find_spec(name) is None:
        return Order()
    order: Order = getattr(importlib.import_module(name), f"{kind}Order")()
    return order
