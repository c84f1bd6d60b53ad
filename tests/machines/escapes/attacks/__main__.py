from __future__ import annotations

import json
import sys

from . import ATTEMPTS, Bait
from .attempt import outcome

bait = Bait(**json.load(sys.stdin))
print(json.dumps({name: outcome(act, bait) for name, act in ATTEMPTS.items()}))
