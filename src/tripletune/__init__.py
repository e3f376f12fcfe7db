"""tripletune: two graph specialists write hints about a user; a language model learns to use them."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is first imported. Its threads spin while they wait; both specialists train at once, and on
# two cores the spinning made the smaller one five times slower (docs/decisions.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
