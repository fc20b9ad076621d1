import logging

import pytest

from ssl_ray.training.notices import Notices


def test_warnings_are_heard_once_whatever_others_do_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    """Importing `mlflow.pytorch` raises the root logger's level to ERROR and gives it a handler."""
    heard: list[str] = []
    logger = logging.getLogger("ssl_ray.tracking")
    caplog.set_level(logging.ERROR)
    with Notices(heard.append):
        logger.warning("%d metrics", 3)
        logger.info("nothing of interest")
    assert heard == ["3 metrics"]
    assert caplog.records == [], "nobody else says it too"

    caplog.set_level(logging.WARNING)
    logger.warning("afterwards")
    assert heard == ["3 metrics"]
    assert caplog.messages == ["afterwards"]
