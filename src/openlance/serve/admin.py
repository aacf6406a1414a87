"""`/admin`: what an operator sees and does, with a key of its own; without one there are no such routes."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import torch
from fastapi import APIRouter, Depends, Request

from openlance.config.sampling import Decoding
from openlance.sequence.segment import any_video
from openlance.serve.answers import Cancelled, Queue, QueueItem, Status
from openlance.serve.failures import Failure
from openlance.serve.keys import opens
from openlance.serve.openapi import answers
from openlance.serve.serving import Serving
from openlance.serve.worker import Item


def routes(serving: Serving) -> APIRouter:
    worker = serving.worker

    async def asked(request: Request) -> None:
        if not opens(request.headers.get("authorization", ""), [serving.config.admin_key]):
            raise Failure("the admin key is missing or wrong", status=401, code="invalid_admin_key")

    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(asked)])

    def status() -> Status:
        return {"status": worker.state}

    @router.get("/queue", response_model=None, responses=answers(Queue))
    def queue() -> Queue:
        running, waiting = worker.items()
        return {"status": worker.state, "running": _told(running), "waiting": _told(waiting)}

    @router.delete("/queue", response_model=None, responses=answers(Cancelled))
    def clear() -> Cancelled:
        return _cancelled(serving, None)

    @router.delete("/queue/{request_id}", response_model=None, responses=answers(Cancelled))
    def cancel(request_id: str) -> Cancelled:
        return _cancelled(serving, request_id)

    @router.post("/drain", response_model=None, responses=answers(Status))
    def drain() -> Status:
        worker.draining = True
        return status()

    @router.post("/resume", response_model=None, responses=answers(Status))
    def resume() -> Status:
        worker.draining = False
        return status()

    @router.post("/sweep", response_model=None, responses=answers(Status))
    def sweep() -> Status:
        serving.store.sweep()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return status()

    return router


def _cancelled(serving: Serving, request_id: str | None) -> Cancelled:
    """Cancel what one request wants, or every request."""
    found = [i for items in serving.worker.items() for i in items if request_id in (None, i.origin) and not i.stopped]
    if request_id is not None and not found:
        raise Failure("nothing of this request runs or waits", status=404, code="not_found", param="request_id")
    serving.worker.cancel(found)
    return {"cancelled": len(found)}


def _told(items: Sequence[Item]) -> list[QueueItem]:
    """Items without anything that clients sent."""
    now = time.monotonic()
    return [
        {
            "request_id": item.origin,
            "makes": "text" if isinstance(item.how, Decoding) else "video" if any_video([item.request]) else "image",
            "cells": item.cells,
            "seconds": round(now - item.arrived, 3),
            "cancelled": item.stopped,
        }
        for item in items
    ]
