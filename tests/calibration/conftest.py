"""The small model that runs, and its calibration."""

import pytest
from tiny_model import SETTINGS, Tiny

from arrowquant_nb.calibration.capture import capture


@pytest.fixture
def tiny():
    return Tiny()


@pytest.fixture(scope="session")
def calibration():
    return capture(Tiny(), SETTINGS)
