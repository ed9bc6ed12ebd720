"""Settings of the whole suite: one torch thread (tests share the machine) and hypothesis without deadlines."""

from hypothesis import HealthCheck, settings

settings.register_profile("kvledger", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvledger")
