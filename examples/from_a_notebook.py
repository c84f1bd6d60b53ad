"""Without `async`: in a script, or in a notebook whose cells are plain Python.

A notebook that understands ``await`` at the top level (Jupyter does) needs none of this: there the
lines of the other examples' `main` work as they stand.
"""

from functools import partial

from anyio.from_thread import start_blocking_portal

from vers_rlm_mcp import RLM

with start_blocking_portal() as portal, portal.wrap_async_context_manager(RLM()) as rlm:
    result = portal.call(partial(rlm, "question -> answer: int", question="What is 6 times 7?"))
    print(result.outputs["answer"])
