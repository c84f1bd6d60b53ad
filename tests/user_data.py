"""Imported for what it does: machines of tests start from directories that all sessions share.

They are named by their content and cost seconds to make.
"""

from __future__ import annotations

import os
from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / ".pytest_cache" / "data"

os.environ["XDG_DATA_HOME"] = str(DIRECTORY)
