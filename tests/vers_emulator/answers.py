"""The shapes in which the service says that something is wrong."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response


class Refusal(Exception):
    """Ends a request with an answer that is an error."""

    def __init__(self, response: Response) -> None:
        self.response = response


def forbidden() -> Response:
    """Bad authentication: a bare text without a content type."""
    return Response(b"403 Forbidden", 403)


def plain(status: int, text: str) -> Refusal:
    """A request that cannot be read: plain text."""
    return Refusal(Response(text, status, media_type="text/plain"))


def failed(status: int, error: str) -> Refusal:
    """An error of the application."""
    return Refusal(JSONResponse({"error": error, "success": False}, status))


def nothing_to_branch(error: str) -> Refusal:
    """A miss of branch by_vm, by_ref and the like."""
    return Refusal(JSONResponse({"vms": [], "error": error}, 404))
