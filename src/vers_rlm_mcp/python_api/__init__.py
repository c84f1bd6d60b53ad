"""The Python API: `RLM` runs tasks, `Machines` makes machines. Provisional until 1.0.

Both use the settings, backends, ledger and clean-up of the server and the command line. What the
package itself does not export is private.
"""

from __future__ import annotations

from .run_stream import RunStream
from .runner import RLM
from .virtual_machines import VM, CommandOutput, Machines

__all__ = ["RLM", "VM", "CommandOutput", "Machines", "RunStream"]
