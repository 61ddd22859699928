"""`dynamo-fast serve MODULE:HANDLER --endpoint NAMESPACE.COMPONENT.ENDPOINT`: serve a handler until told to stop.

With `--model` or `--text` the endpoint is a model that Dynamo's frontends list.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from dynamo_fast.cli.arguments import endpoint_of, seconds_or_none
from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery
from dynamo_fast.cli.loop import Termination, end_now, run_until_told
from dynamo_fast.config import CommandConfig, ServeConfig, WorkerConfig
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.push_handler import Handler
from dynamo_fast.ingress.worker import REQUEST_SERVERS, serve
from dynamo_fast.wire.text import printable, printable_lines

if TYPE_CHECKING:
    from dynamo_fast.llm import ModelCard

__all__ = ["add_parser", "run"]

MODEL_ENDPOINT = "dynamo.backend.generate"
"""Where Dynamo's own engines serve."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a handler, such as an async generator function of a request",
        description="Serve a handler. SIGINT or SIGTERM ends it: it leaves discovery, and every request that was "
        "accepted gets its answer first, or an error after the grace period. A second signal ends it now, with the "
        "status 128 + the signal's number. The settings are Dynamo's, from the environment (DYN_TCP_RPC_HOST, "
        "DYN_FILE_KV, ...).",
    )
    parser.add_argument("handler", metavar="MODULE:HANDLER", help="where the handler is, e.g. my_engine:generate")
    parser.add_argument(
        "--endpoint",
        metavar="NAMESPACE.COMPONENT.ENDPOINT",
        help=f"what callers call it; with --model or --text by default {MODEL_ENDPOINT}",
    )
    model = parser.add_argument_group("as a model behind Dynamo's frontend")
    model.add_argument(
        "--model",
        metavar="PATH",
        help="a model folder: config.json, tokenizer.json, tokenizer_config.json; the handler gets token ids",
    )
    model.add_argument("--name", help="the model's name in requests (default: the name of the folder)")
    model.add_argument(
        "--text",
        action="store_true",
        help="the handler gets the OpenAI request and yields OpenAI chunks; needs --name, and no folder",
    )
    add_discovery(parser)
    parser.add_argument(
        "--transport",
        choices=sorted(REQUEST_SERVERS),
        default=CommandConfig.from_env().request_plane,
        help="how requests come: to a port of this process, or from the NATS server at NATS_SERVER (default: "
        "DYN_REQUEST_PLANE, else tcp)",
    )
    parser.add_argument(
        "--grace",
        type=seconds_or_none,
        metavar="SECONDS",
        help="how long the requests in flight may take after the first signal (default: DYNAMO_FAST_GRACE, else "
        f"{ServeConfig.grace:g}; DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS, if it is set, comes before both)",
    )
    add_wait(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each request at its end")
    parser.set_defaults(run=run, refuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    _check(options)
    handler = load(options.handler)
    model = _model(options)
    return run_until_told(lambda termination: _serve(handler, model, options, termination))


def load(name: str) -> Handler:
    """The handler that `MODULE:HANDLER` names, looked for in the current folder, too. Raises InvalidRequest."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidRequest(f"{name!r} is no handler: expected MODULE:HANDLER, e.g. my_engine:generate")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"the handler {name!r} cannot be imported: {error}") from error
    except Exception as error:  # of the module itself: its author wants to see where
        print(printable_lines("".join(_traceback(error))), end="", file=sys.stderr)
        raise InvalidRequest(f"the handler {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(value):
        raise InvalidRequest(f"the handler {name!r} is a {type(value).__name__}, which cannot be called")
    return cast(Handler, value)


def _traceback(error: Exception) -> Iterator[str]:
    """Where a module failed, without the frames of the import."""
    found = traceback.TracebackException.from_exception(error)
    importing = (
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
        importlib.__file__,
        __file__,
    )
    found.stack = traceback.StackSummary.from_list([each for each in found.stack if each.filename not in importing])
    return found.format()


def _check(options: argparse.Namespace) -> None:
    """Ends the command, and shows its use, if options are missing."""
    is_model = options.model is not None or options.text
    if not is_model and options.endpoint is None:
        options.refuse("--endpoint is missing: only a model has one by default")
    if not is_model and options.name is not None:
        options.refuse("--name is the name of a model: give --model PATH, or --text, too")
    if options.text and options.model is None and options.name is None:
        options.refuse("--text needs the name of the model: give --name")


def _model(options: argparse.Namespace) -> ModelCard | None:
    """The model that the options ask for, read before anything is opened. Raises InvalidRequest."""
    if options.model is None and not options.text:
        return None
    from dynamo_fast.llm import ModelCard, ModelInput

    if options.model is None:
        return ModelCard.text(options.name)
    kind = ModelInput.Text if options.text else ModelInput.Tokens
    return ModelCard.from_folder(options.model, name=options.name, model_input=kind)


async def _serve(
    handler: Handler, model: ModelCard | None, options: argparse.Namespace, termination: Termination
) -> int:
    name = options.endpoint or MODEL_ENDPOINT
    endpoint = endpoint_of(name)
    config = _worker_config(options.grace)
    async with open_discovery(options) as discovery:
        try:
            worker = await serve(handler, endpoint, discovery, config, transport=options.transport, model=model)
        except TypeError as error:
            raise InvalidRequest(str(error)) from error
        termination.began()
        (served,) = worker.endpoints.values()
        print(printable(f"serving {name} at {served.address}"), flush=True)
        if model is not None:
            print(printable(f"model {model.name}"), flush=True)
        if worker.status.url is not None:
            print(f"status at {worker.status.url}", flush=True)
        await termination.asked.wait()
        running = served.metrics.inflight
        limit = f", for at most {config.shutdown_timeout:g} s; another signal ends it now" if running else ""
        print(f"leaving; {running} request{'' if running == 1 else 's'} to finish{limit}", flush=True)
        await worker.close()
    if worker.admission.running:
        end_now(1)  # handlers that ignore their cancellation, for which the loop would wait
    return 0


def _worker_config(grace: float | None) -> WorkerConfig:
    """As the environment says; the grace period is the command's, unless it is set there."""
    config = WorkerConfig.from_env()
    if config.shutdown_timeout is None:
        serving = ServeConfig.from_env() if grace is None else ServeConfig(grace=grace)
        config = replace(config, shutdown_timeout=serving.grace)
    return config
