"""Tests that change the machine they run on, and so run only in one of their own: see vm/machine.py."""

import os

collect_ignore_glob = [] if "JOBWORKER_VM" in os.environ else ["test_*.py"]
