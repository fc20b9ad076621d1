"""MoCo v3: annealed like BYOL."""

from tests.conformance.orders.byol import BYOLOrder


class MoCoV3Order(BYOLOrder):
    pass
