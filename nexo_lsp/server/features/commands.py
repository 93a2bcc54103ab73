"""Commands: each answers at once, with the id of the job that it started if the work takes long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lsprotocol import types

from nexo_lsp.errors import UsageError
from nexo_lsp.pipeline.actions import ActionKind, ActionProgress, Explanation, Offer
from nexo_lsp.server.apply import apply_proposal
from nexo_lsp.server.capabilities import (
    ACCEPTED_COMMAND,
    ACTION_COMMAND,
    DISMISS_COMMAND,
    REVIEW_COMMAND,
    STOP_COMMAND,
)
from nexo_lsp.server.custom_messages import DocumentArguments, FindingArguments, JobArguments, TargetArguments
from nexo_lsp.server.explanations import show_explanation
from nexo_lsp.text import Span

if TYPE_CHECKING:
    from nexo_lsp.server.jobs import Job
    from nexo_lsp.server.language_server import NexoServer

T = TypeVar("T")


async def execute(server: NexoServer, params: types.ExecuteCommandParams) -> Any:
    """`workspace/executeCommand`."""
    command = _COMMANDS.get(params.command)
    if command is None:
        raise UsageError(f"There is no command {params.command!r}")
    return await command(server, params)


async def _action(server: NexoServer, params: types.ExecuteCommandParams) -> Any:
    target = _required(server, params, TargetArguments)
    try:
        kind = ActionKind(target.kind)
    except ValueError:
        raise UsageError(f"There is no action {target.kind!r}") from None
    offer = Offer(kind, target.title, Span(target.start, target.end), target.finding_id)

    async def work(job: Job) -> None:
        await server.settings.ready()
        proposes = server.client.proposals and kind is not ActionKind.EXPLAIN
        preview = server.proposals.preview(target, offer) if proposes else None

        def progress(state: ActionProgress) -> None:
            job.report(f"{state.tokens} tokens")
            if preview is not None:
                preview.streamed(state.text)

        try:
            result = await server.app.actions.run(target.uri, target.version, offer, progress)
        except BaseException as error:
            if preview is not None:
                preview.failed(error)
            raise
        if isinstance(result, Explanation):
            await show_explanation(server, result)
        elif preview is not None:
            preview.complete(result)
        else:
            await apply_proposal(server, result)

    return server.plain(JobArguments(server.jobs.start(target.title, work, params.work_done_token).id))


async def _dismiss(server: NexoServer, params: types.ExecuteCommandParams) -> None:
    arguments = _required(server, params, FindingArguments)
    await server.app.reviews.dismiss(arguments.uri, arguments.finding_id)


async def _review(server: NexoServer, params: types.ExecuteCommandParams) -> Any:
    arguments = _optional(server, params, DocumentArguments)
    job = server.reviews.command(arguments.uri if arguments else None, params.work_done_token)
    return server.plain(JobArguments(job.id))


async def _stop(server: NexoServer, params: types.ExecuteCommandParams) -> None:
    arguments = _optional(server, params, JobArguments)
    if arguments is not None:
        server.jobs.stop(arguments.job_id)
    else:
        server.jobs.stop_all()
        server.app.stop()


async def _accepted(server: NexoServer, params: types.ExecuteCommandParams) -> None:
    if params.arguments and isinstance(params.arguments[0], str):
        server.app.completions.accepted(params.arguments[0])


_COMMANDS: Final[Mapping[str, Callable[[NexoServer, types.ExecuteCommandParams], Awaitable[Any]]]] = {
    ACTION_COMMAND: _action,
    DISMISS_COMMAND: _dismiss,
    REVIEW_COMMAND: _review,
    STOP_COMMAND: _stop,
    ACCEPTED_COMMAND: _accepted,
}


def _optional(server: NexoServer, params: types.ExecuteCommandParams, cls: type[T]) -> T | None:
    """The command's argument, None when there is none. Raises `UsageError` for one that does not fit."""
    if not params.arguments or params.arguments[0] is None:
        return None
    try:
        # cattrs raises groups of whatever went wrong.
        return server.structure(params.arguments[0], cls)
    except Exception as error:
        raise UsageError(f"The arguments of {params.command} do not fit") from error


def _required(server: NexoServer, params: types.ExecuteCommandParams, cls: type[T]) -> T:
    arguments = _optional(server, params, cls)
    if arguments is None:
        raise UsageError(f"{params.command} needs an argument")
    return arguments
