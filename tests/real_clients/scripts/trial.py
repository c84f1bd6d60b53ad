"""What every client does here, whatever it is: go by what the tools answer, as a model would."""

import json
import os
import re

SERVER = os.environ["SERVER"]
ENVIRONMENT = dict(os.environ)
LIMIT_SECONDS = float(os.environ["LIMIT_SECONDS"])

MAX_CALLS = 8
"""An end for a client that is told again and again that the run goes on."""


def next_call(answers):
    """The tool to call after these answers and its arguments; none when there is nothing to do."""
    if not answers:
        return "vers_rlm", {"signature": "-> answer: int"}
    running = re.search(r"rlmResult waits for it \(runId ([\w-]+)\)", answers[-1])
    return running and len(answers) < MAX_CALLS and ("rlmResult", {"runId": running[1]})


def report(tools, answers):
    """Say what was seen, for `real_clients` to judge."""
    print(json.dumps({"tools": tools, "answers": answers}))
