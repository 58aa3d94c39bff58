"""Settings that must stand before torch is loaded."""

import os

# As the command line sets it: threads that wait by spinning starve the others on a busy machine.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
