"""Takes modules from standard input, and runs the daemon.

    python3 -I -S -c 'import sys; exec(sys.stdin.buffer.read(SIZE OF THIS))' SIZE OF THE REST

The rest is a JSON list of names and sources. Not a part of the command line, it is in the way of
nobody who looks at processes, or chooses by their command lines which to kill.
"""

from __future__ import annotations

import json
import sys
import types

PACKAGE = "vers_rlm_daemon"

package = types.ModuleType(PACKAGE)
package.__path__ = []
sys.modules[PACKAGE] = package
for name, source in json.loads(sys.stdin.buffer.read(int(sys.argv[1])).decode()):
    module = types.ModuleType(f"{PACKAGE}.{name}")
    module.__package__ = PACKAGE
    sys.modules[module.__name__] = module
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)  # noqa: S102 - its task
sys.modules[f"{PACKAGE}.daemon"].main()
