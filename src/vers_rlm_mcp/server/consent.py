"""The user's consent to a run that may cost much, if settings and client allow asking."""

from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit
from pydantic import BaseModel, Field

from vers_rlm_mcp.errors import UsageError

from .application import application
from .arguments import Options


class Budget(Options):
    """What a run may use, within the server's settings."""

    usd: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)


class Consent(BaseModel):
    """What the user is asked."""

    start: bool = Field(default=True, description="Start the run")


async def ask(context: Context, budget: Budget | None = None) -> Consent | Elicit[Consent]:
    """Ask the user if the run of a call may spend more than the settings allow without asking."""
    settings = application(context).settings
    limits = [limit for limit in (budget and budget.usd, settings.max_usd) if limit is not None]
    most = min(limits, default=None)
    free = settings.confirm_usd is None or (most is not None and most <= settings.confirm_usd)
    can = context.client_capabilities
    if free or not (can and can.elicitation):
        return Consent()
    cost = "any amount of money" if most is None else f"up to {most:g} USD"
    return Elicit(f"A vers_rlm run is about to start that may spend {cost}.", Consent)


def require(outcome: ElicitationResult[Consent]) -> None:
    """Raise `UsageError` unless the user agreed to the run."""
    if not (isinstance(outcome, AcceptedElicitation) and outcome.data.start):
        raise UsageError("The user did not agree to this run. Ask what they want before you retry.")
