"""Settings of the whole suite: no network, and hypothesis without deadlines."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # an unknown model is refused at once, instead of after a minute of tries

from hypothesis import HealthCheck, settings

settings.register_profile("kvledger", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvledger")
