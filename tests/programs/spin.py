"""Keeps one core busy for some seconds of monotonic time and prints the share of a core it got."""

import sys
import time

began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < float(sys.argv[1]):
    pass
print((time.process_time() - used) / (time.monotonic() - began))
