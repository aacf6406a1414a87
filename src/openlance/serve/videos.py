"""`/v1/videos`: jobs that go on when the client is gone, and what becomes of finished ones."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile

from openlance.inference.interfaces import Given
from openlance.media import MODEL_FPS, Clip
from openlance.media.transform import resize_to_ratio
from openlance.sequence import tasks
from openlance.serve import media
from openlance.serve.answers import Deleted, Video
from openlance.serve.answers import Videos as VideosPage
from openlance.serve.bodies import RemixBody, VideoCreateBody, VideoEditBody, VideoExtendBody, VideoOf, read
from openlance.serve.failures import Failure, failure_of
from openlance.serve.openapi import answers, form_of, json_of
from openlance.serve.serving import Prepared, Serving
from openlance.serve.store import COMPLETED, FAILED, IN_PROGRESS, Job
from openlance.serve.worker import Begun, Item, Step

POLL = "500"  # milliseconds that clients wait between two looks
LET_GO = 2.0  # seconds that a deletion waits for the step that runs
JOB = answers(Video)
FILES = answers(None, media.MIME["mp4"], media.MIME["webp"])
EXTENDED = "goes on from the last frame alone: the model does not see the motion before it"


class Videos:
    """Jobs and what belongs to those that are not finished: their items, and how far they are, by the job."""

    def __init__(self, serving: Serving) -> None:
        self.serving, self.store, self.config = serving, serving.store, serving.config
        self.items, self.progress = dict[str, Item](), dict[str, int]()

    async def start(self, body: Any, given: dict[str, Clip], num_frames: int | None = None, **more: Any) -> Response:
        """Queue what a body asks for, of what is given beside it; more: see `_job`."""

        def started() -> Job:
            spec = Given.of([body.prompt], False, given).task(tasks.kind_of(2))  # as in a call of the pipeline
            clips = list(given.values())
            region = getattr(body, "region", None)
            prepared = self.serving.drawing(spec, body.prompt, clips, body, num_frames=num_frames, region=region)
            return self._queue(*_job(self.config.name, body.prompt, prepared, **more))

        return self.shown(await self.serving.off_loop(started))

    def _queue(self, job: Job, item: Item, before: Clip | None) -> Job:
        """before: frames that come in front of what is made, which begins with the last one of them."""

        def listen(event: Any) -> None:
            if isinstance(event, Begun):
                self.store.begin(job.id)
            elif isinstance(event, Step):
                self.progress[job.id] = 99 * event.done // event.total  # what is left is encoding

        item.listener = listen
        kept = self.store.add(job)
        self.items[job.id] = item
        item.result.add_done_callback(lambda done: self.serving.pool.submit(self._finish, job.id, item, done, before))
        try:
            self.serving.worker.put([item])
        except Failure as failure:
            self._forget(job.id)
            self.store.fail(job.id, failure)  # where it cannot be deleted, it has ended at least
            self.store.delete(job.id)
            raise
        return kept

    def _finish(self, name: str, item: Item, done: Future, before: Clip | None) -> None:
        try:
            clip = done.result()
            seed, found = item.seed_of(clip), clip.verdict
            if before is not None:
                clip = _joined(before, clip)
            with self.serving.metrics.phase("encode"):
                files = {"mp4": media.encoded(clip, "mp4"), "webp": media.encoded(clip, "webp")}
            self.store.complete(name, files, seed, None if found is None else json.dumps(found.as_data()))
        except Exception as error:  # noqa: BLE001  every job ends
            self.store.fail(name, failure_of(error))
        finally:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self.items.pop(name, None)
        self.progress.pop(name, None)

    def delete(self, name: str) -> None:
        """Remove a job, whatever it does; the step that runs is waited for a moment. Failure (404) if there is none."""
        self.store.job(name)
        item = self.items.get(name)
        if item is not None:
            self.serving.worker.cancel([item])
            with suppress(Failure, TimeoutError):
                item.result.result(timeout=LET_GO)
        self.store.delete(name)

    def file(self, name: str, suffix: str) -> Path:
        """Where the file of a finished job is. Failure if it is not finished, or gone."""
        job = self.store.job(name)
        if job.status != COMPLETED:
            message = f"the video is {job.status}: it can be used once it is completed"
            raise Failure(message, status=409, code="not_completed", param="video_id")
        return self.store.path_of(name, suffix)

    def clip(self, name: str, whole: bool = False) -> Clip:
        """What a finished job made; whole: with all of its frames."""
        return media.read(self.file(name, "mp4").read_bytes(), self.config, "video_id", whole)

    async def sent(self, video: Any, whole: bool = False) -> Clip:
        """A video that was sent, or what a finished job made."""
        if isinstance(video, VideoOf):
            return await self.serving.off_loop(self.clip, video.id, whole)
        return await self.serving.clip(video, "video", whole=whole)

    def as_data(self, job: Job) -> Video:
        return _shown(job, self.progress.get(job.id, 0), self.config.keep)

    def shown(self, job: Job) -> Response:
        return JSONResponse(self.as_data(job), headers={"openai-poll-after-ms": POLL})


def _joined(before: Clip, clip: Clip) -> Clip:
    """A video and what goes on from its last frame, in the size of the latter."""
    first = resize_to_ratio(before.pixels[:-1], clip.height, clip.width)
    return clip.with_pixels(np.concatenate([first, clip.pixels]))


def routes(serving: Serving) -> APIRouter:
    router, videos = APIRouter(tags=["videos"]), Videos(serving)
    _making(router, videos)
    _kept(router, videos)
    return router


def _making(router: APIRouter, videos: Videos) -> None:
    serving, name, stride = videos.serving, videos.config.name, videos.serving.pipe.config.vae.temporal_stride

    @router.post("/v1/videos", openapi_extra=form_of(VideoCreateBody), responses=JOB)
    async def create(request: Request) -> Response:
        body = await read(request, VideoCreateBody, name)
        frames, sent = body.frames(stride), _references(body)
        if len(sent) > 1:
            raise Failure("input_reference: send one image or video", code="invalid_value", param="input_reference")
        clips = [await serving.clip(one, param) for param, one in sent.items()]
        moves = bool(clips) and clips[0].frames > 1
        if moves and frames is not None:
            message = "seconds: a video that is edited keeps its length; leave it out"
            raise Failure(message, code="invalid_value", param="seconds")
        return await videos.start(body, {"video" if moves else "image": clip for clip in clips}, frames)

    @router.post("/v1/videos/edits", openapi_extra=form_of(VideoEditBody), responses=JOB)
    async def edits(request: Request) -> Response:
        body = await read(request, VideoEditBody, name)
        source = body.video.id if isinstance(body.video, VideoOf) else None
        return await videos.start(body, {"video": await videos.sent(body.video)}, source=source)

    @router.post("/v1/videos/extensions", openapi_extra=form_of(VideoExtendBody), responses=JOB)
    async def extensions(request: Request) -> Response:
        body = await read(request, VideoExtendBody, name)
        before = await videos.sent(body.video, whole=True)
        last = before.with_pixels(before.pixels[-1:])
        return await videos.start(body, {"image": last}, body.frames(stride), before=before, notice=EXTENDED)

    @router.post("/v1/videos/{video_id}/remix", openapi_extra=json_of(RemixBody), responses=JOB)
    async def remix(video_id: str, request: Request) -> Response:
        body = await read(request, RemixBody, name)
        return await videos.start(body, {"video": await serving.off_loop(videos.clip, video_id)}, source=video_id)


def _kept(router: APIRouter, videos: Videos) -> None:
    @router.get("/v1/videos", responses=answers(VideosPage), response_model=None)
    def listed(
        limit: int = Query(20, ge=1, le=100), after: str | None = None, order: Literal["asc", "desc"] = "desc"
    ) -> VideosPage:
        jobs, more = videos.store.page(limit, after, order == "desc")
        data = [videos.as_data(job) for job in jobs]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {"object": "list", "data": data, "has_more": more, "first_id": first, "last_id": last}

    @router.get("/v1/videos/{video_id}", responses=JOB)
    def retrieve(video_id: str) -> Response:
        return videos.shown(videos.store.job(video_id))

    @router.get("/v1/videos/{video_id}/content", response_class=Response, responses=FILES)
    def content(video_id: str, variant: str = "video") -> Response:
        suffix = {"video": "mp4", "thumbnail": "webp"}.get(variant)
        if suffix is None:
            message = f"variant: there is no {variant[:40]!r}, only video and thumbnail"
            raise Failure(message, code="invalid_value", param="variant")
        return FileResponse(videos.file(video_id, suffix), media_type=media.MIME[suffix])

    @router.delete("/v1/videos/{video_id}", responses=answers(Deleted), response_model=None)
    def delete(video_id: str) -> Deleted:
        videos.delete(video_id)
        return {"id": video_id, "object": "video.deleted", "deleted": True}


def _references(body: VideoCreateBody) -> dict[str, UploadFile | str]:
    """What is sent along, by its field."""
    found: dict[str, Any] = {
        "input_reference": body.input_reference, "image_reference": body.image_reference,
        "video_reference": body.video_reference,
    }  # fmt: skip
    addresses = {name: getattr(one, "image_url", getattr(one, "video_url", one)) for name, one in found.items()}
    return {name: one for name, one in addresses.items() if one is not None}


def _job(
    name: str, text: str, prepared: Prepared, before: Clip | None = None, notice: str = "", **more: Any
) -> tuple[Job, Item, Clip | None]:
    """A job and its item. before: a video that it goes on from; notice: what is to be said about it."""
    (item,) = prepared.items
    frames, height, width = item.request[-1].size or (1, 1, 1)
    frames += 0 if before is None else before.frames - 1
    notices = [*([notice] if notice else []), *prepared.notices]
    job = Job(
        id=f"video_{uuid.uuid4().hex}", model=name, prompt=text, num_frames=frames, width=width, height=height,
        seed=item.seed, notice="; ".join(notices) or None, **more,
    )  # fmt: skip
    return job, item, before


def _shown(job: Job, progress: int, keep: float) -> Video:
    """A job as OpenAI's, with what this server adds."""
    done = {COMPLETED: 100, IN_PROGRESS: progress}.get(job.status, 0)
    error: Any = {"code": job.error_code, "message": job.error_message} if job.status == FAILED else None
    finished = job.completed_at
    return {
        "id": job.id, "object": "video", "created_at": int(job.created_at), "status": cast(Any, job.status),
        "progress": done, "model": job.model, "prompt": job.prompt, "seconds": f"{job.num_frames / MODEL_FPS:.6g}",
        "size": f"{job.width}x{job.height}", "completed_at": None if finished is None else int(finished),
        "expires_at": None if finished is None else int(finished + keep), "remixed_from_video_id": job.source,
        "error": error, "num_frames": job.num_frames, "fps": MODEL_FPS, "width": job.width, "height": job.height,
        "seed": job.seed, "notice": job.notice, "check": None if job.verdict is None else json.loads(job.verdict),
    }  # fmt: skip
