"""The events of a run, as `RLM.stream` gives them; part of the Python API."""

from vers_rlm_mcp.runs.events import (
    CellFinished as CellFinished,
)
from vers_rlm_mcp.runs.events import (
    CellOutput as CellOutput,
)
from vers_rlm_mcp.runs.events import (
    CellStarted as CellStarted,
)
from vers_rlm_mcp.runs.events import (
    CheckpointMade as CheckpointMade,
)
from vers_rlm_mcp.runs.events import (
    ChildChosen as ChildChosen,
)
from vers_rlm_mcp.runs.events import (
    ChildFinished as ChildFinished,
)
from vers_rlm_mcp.runs.events import (
    ChildStarted as ChildStarted,
)
from vers_rlm_mcp.runs.events import (
    CommitMade as CommitMade,
)
from vers_rlm_mcp.runs.events import (
    Diverged as Diverged,
)
from vers_rlm_mcp.runs.events import (
    Event as Event,
)
from vers_rlm_mcp.runs.events import (
    Feedback as Feedback,
)
from vers_rlm_mcp.runs.events import (
    FilesMerged as FilesMerged,
)
from vers_rlm_mcp.runs.events import (
    InChild as InChild,
)
from vers_rlm_mcp.runs.events import (
    MachineDeleted as MachineDeleted,
)
from vers_rlm_mcp.runs.events import (
    MachineMade as MachineMade,
)
from vers_rlm_mcp.runs.events import (
    MachineRecovered as MachineRecovered,
)
from vers_rlm_mcp.runs.events import (
    MachineSwitched as MachineSwitched,
)
from vers_rlm_mcp.runs.events import (
    ModelAsked as ModelAsked,
)
from vers_rlm_mcp.runs.events import (
    ModelReplied as ModelReplied,
)
from vers_rlm_mcp.runs.events import (
    RunFinished as RunFinished,
)
from vers_rlm_mcp.runs.events import (
    RunReplayed as RunReplayed,
)
from vers_rlm_mcp.runs.events import (
    RunResumed as RunResumed,
)
from vers_rlm_mcp.runs.events import (
    RunStarted as RunStarted,
)
from vers_rlm_mcp.runs.events import (
    StepFinished as StepFinished,
)
from vers_rlm_mcp.runs.events import (
    SubCallFinished as SubCallFinished,
)
from vers_rlm_mcp.runs.events import (
    SubCallStarted as SubCallStarted,
)
from vers_rlm_mcp.runs.events import (
    Verified as Verified,
)
