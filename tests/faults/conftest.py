"""What the tests of faults share with those on real parts."""

from ..host.conftest import hold, host, mount, pytest_runtest_setup

__all__ = ["hold", "host", "mount", "pytest_runtest_setup"]
