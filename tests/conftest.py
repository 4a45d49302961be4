"""Profiles of the property tests: ``ci`` by default; ``HYPOTHESIS_PROFILE=thorough`` searches longer."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_ALLOWED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

# A shared machine makes single examples slow now and then; pytest-timeout bounds the whole.
settings.register_profile("ci", max_examples=50, deadline=None, suppress_health_check=_ALLOWED)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=_ALLOWED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
