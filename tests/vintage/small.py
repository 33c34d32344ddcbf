"""A pytest plugin for a Python that runs under an emulator: the Hypothesis profile "small", and a
sys.executable that names the emulator too."""

import os
import sys

from hypothesis import HealthCheck, settings

settings.register_profile(
    "small", deadline=None, max_examples=5, database=None, suppress_health_check=list(HealthCheck)
)
# this system cannot start the program itself
sys.executable = os.environ.get("PEERTALK_FAR_PYTHON", sys.executable)
