"""Settings of property tests."""

from hypothesis import HealthCheck, settings

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Without limits of time, which a busy machine exceeds."""
