import gc

import pytest

from ssl_ray.garbage import USUAL, collect_as_usual, collect_rarely


def test_what_was_imported_is_not_looked_at_again() -> None:
    before, registered = gc.get_threshold(), []  # of a process in which a command may have run already
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atexit.register", registered.append)
        collect_rarely()
    try:
        assert gc.get_threshold()[0] > 10 * USUAL[0]
        assert registered == [gc.freeze]
        collect_as_usual()
        assert gc.get_threshold() == USUAL
        assert gc.get_freeze_count() > 1000
        assert len(gc.get_objects()) < 1000
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
