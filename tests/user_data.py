"""Imported for what it does: what the tests of several rooms need around them.

Machines of tests start from directories that all sessions share: they are named by their content
and cost seconds to make. The user's own settings do not count. Signals that whoever started the
tests ignores (a shell for a job in the background, nohup) end their processes all the same.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / ".pytest_cache" / "data"

os.environ["XDG_DATA_HOME"] = str(DIRECTORY)
os.environ["XDG_CONFIG_HOME"] = str(DIRECTORY / "no-settings")

for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
