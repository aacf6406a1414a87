"""The application: routes over one queue, and what holds for all: request ids, keys, limits, errors, metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openlance.config.versions import versions
from openlance.errors import UserError
from openlance.runtime.machine import give_back
from openlance.serve import admin, chat, images, videos
from openlance.serve.answers import Model, Models, Status
from openlance.serve.bodies import unknown_model
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure, failure_of, shutting_down
from openlance.serve.keys import opens
from openlance.serve.metrics import Metrics
from openlance.serve.openapi import answers
from openlance.serve.serving import Serving
from openlance.serve.store import Store
from openlance.serve.worker import REQUEST_ID, Queue, Worker

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline

log = logging.getLogger("openlance.serve")
# A file is found by whoever was told its name; /admin and the Studio ask for their keys themselves.
OPEN = ("/health", "/ready", "/metrics", "/files/", "/admin/", "/studio", "/favicon.ico")
METHODS = ("GET", "POST", "DELETE", "OPTIONS", "HEAD")
SWEPT = 15.0  # seconds between two looks at what is too old, and at memory that is free
LEFT = 499  # a client that is gone (nginx's number)
LAST_STEP = 5.0  # seconds that a step may still take at the end


def create_app(
    pipe: LancePipeline, config: ServeConfig, queue: Callable[[LancePipeline, ServeConfig, Metrics], Queue] = Worker
) -> FastAPI:
    """Put a server together; its worker begins with the application's lifespan.

    Args:
        pipe: The model.
        config: What is allowed.
        queue: Makes what runs the model.

    Raises:
        UserError: The folder cannot hold the server's files.
    """
    metrics = Metrics()
    worker = queue(pipe, config, metrics)
    serving = Serving(
        pipe=pipe, config=config, metrics=metrics, worker=worker, store=Store(config),
        pool=ThreadPoolExecutor(8 if config.media_hosts else 2, "openlance-media"),  # a fetch waits more than it works
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.thread.start()
        sweeps = asyncio.ensure_future(_sweeping(serving.store))
        yield
        sweeps.cancel()
        await asyncio.to_thread(worker.close, LAST_STEP)
        serving.pool.shutdown()
        serving.store.close()

    version = versions("openlance").get("openlance", "")
    app = FastAPI(title="openlance", version=version, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = serving
    for part in (images, videos, chat):
        app.include_router(part.routes(serving))
    if config.admin_key:
        app.include_router(admin.routes(serving))
    _operations(app, serving)
    for kind in (Failure, UserError, ValidationError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _told)
    app.add_middleware(Guard, config=config)
    if config.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(config.origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Watch, metrics=metrics)
    return app


async def _sweeping(store: Store) -> None:
    while True:
        await asyncio.sleep(SWEPT)
        try:
            await asyncio.to_thread(store.sweep)
        except Failure:  # a full disk, say, which is in the log: the next sweep may find room
            log.warning("what is too old was not removed")
        await asyncio.to_thread(give_back)


def _operations(app: FastAPI, serving: Serving) -> None:
    name, created = serving.config.name, int(time.time())
    model: Model = {"id": name, "object": "model", "created": created, "owned_by": "openlance"}

    @app.get("/v1/models", tags=["models"], responses=answers(Models), response_model=None)
    async def models() -> Models:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{model_id:path}", tags=["models"], responses=answers(Model), response_model=None)
    async def one_model(model_id: str) -> Model:
        if model_id != name:
            raise unknown_model(model_id)
        return model

    @app.get("/health", tags=["operations"], responses=answers(Status), response_model=None)
    async def health() -> Status:
        return {"status": "alive"}

    @app.get("/ready", tags=["operations"], responses=answers(Status) | answers(Status, status=503))
    async def ready() -> Response:
        state = serving.worker.state if serving.store.there else "its folder is gone"
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @app.get("/metrics", tags=["operations"], response_class=Response, responses=answers(None, "text/plain"))
    def measured() -> Response:
        return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4")


async def _told(_: Request, error: Exception) -> Response:
    """Every failure is OpenAI's error object."""
    if isinstance(error, HTTPException):
        known = {400: "invalid_form", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
        code = known.get(error.status_code, "invalid_request")
        failure = Failure(str(error.detail), status=error.status_code, code=code)
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param = str(first["loc"][-1])
        failure = Failure(f"{param}: {first['msg']}", code="invalid_value", param=param)
    else:
        failure = failure_of(error)
    return _answer_of(failure)


def _answer_of(failure: Failure) -> Response:
    return JSONResponse(failure.body, status_code=failure.status, headers=failure.headers)


class Guard:
    """Asks for a key, and refuses bodies that are too large, before anything is read."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, left = Headers(scope=scope), self.config.body_bytes
        too_large = Failure(f"the body has more than {left} bytes", status=413, code="request_too_large")
        length = headers.get("content-length", "")
        if not self._may(scope["path"], headers.get("authorization", "")):
            failure = Failure("the API key is missing or wrong", status=401, code="invalid_api_key")
            await _answer_of(failure)(scope, receive, send)
        elif length.isdecimal() and int(length) > left:
            await _answer_of(too_large)(scope, receive, send)
        else:

            async def limited() -> Message:
                nonlocal left
                message = await receive()
                left -= len(message.get("body", b""))
                if left < 0:
                    raise too_large
                return message

            await self.app(scope, limited, send)

    def _may(self, path: str, authorization: str) -> bool:
        return not self.config.api_keys or path.startswith(OPEN) or opens(authorization, self.config.api_keys)


class Watch:
    """Gives every request an id, counts it, and writes one line about it, without anything that the client sent."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name, began, status, told = f"req_{uuid.uuid4().hex}", time.perf_counter(), 500, False
        token = REQUEST_ID.set(name)

        async def named(message: Message) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status, told = message["status"], True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"], headers["x-content-type-options"] = name, "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, named)
        except asyncio.CancelledError:  # the server ends, and this client has not sent or read everything
            if not told:
                await _answer_of(shutting_down())(scope, receive, named)
        except ClientDisconnect:  # nobody is there to be told
            status = LEFT
        except Exception as error:  # noqa: BLE001  a defect: the client gets the error object all the same
            log.exception("a request failed")
            if not told:
                await _answer_of(failure_of(error))(scope, receive, named)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.http.labels(method, route, status).inc()
            spent = round(time.perf_counter() - began, 4)
            with suppress(ValueError):  # the log may be closed at the very end
                log.info("request", extra={"method": method, "route": route, "status": status, "seconds": spent})
            REQUEST_ID.reset(token)


class JSONLines(logging.Formatter):
    """Log records as lines of JSON, with the id of the request they are about."""

    FIELDS = ("method", "route", "status", "seconds")

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        if request := REQUEST_ID.get():
            said["request_id"] = request
        said |= {name: getattr(record, name) for name in self.FIELDS if hasattr(record, name)}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)
