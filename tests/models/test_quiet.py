"""Loggers of other libraries are quiet while a model is loaded, and not afterwards."""

import logging

import pytest

from lorakit.models.read import TALKATIVE, quiet


@pytest.mark.parametrize("name", TALKATIVE)
def test_loading_is_quiet(name: str, caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger(name)
    before = logger.level
    with quiet():
        logger.warning("Failed to load a kernel")
    assert caplog.messages == [] and logger.level == before
    logger.warning("heard again")
    assert caplog.messages == ["heard again"]
