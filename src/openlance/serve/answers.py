"""What the endpoints answer with, as the description at `/openapi.json` has it. Fields may be added; these stay."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # those of typing do not serve pydantic before Python 3.12


class Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str


class Failed(TypedDict):
    error: Error


class Status(TypedDict):
    status: str


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


class ImageTokens(TypedDict):
    text_tokens: int
    image_tokens: int


class ImageUsage(TypedDict):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: ImageTokens


class Check(TypedDict):
    """What the model found at its own result (`media.clip.Verdict`). fine: it is sure that every fact holds; faults and
    unsure: those that do not, and those of which it is not sure."""

    fine: bool
    draw: int
    draws: int
    facts: int
    faults: list[str]
    unsure: list[str]


class Image(TypedDict):
    """b64_json or url, as `response_format` says."""

    b64_json: NotRequired[str]
    url: NotRequired[str]
    seed: int
    check: NotRequired[Check]


class Images(TypedDict):
    created: int
    size: str
    quality: str
    background: str
    output_format: str
    data: list[Image]
    usage: ImageUsage
    notices: NotRequired[list[str]]


class ChatUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(TypedDict):
    """content: words, or parts of type image_url or video_url; the latter are in images and videos on request."""

    role: Literal["assistant"]
    content: str | list[dict[str, Any]] | None
    images: NotRequired[list[dict[str, Any]]]
    videos: NotRequired[list[dict[str, Any]]]


class Choice(TypedDict):
    index: int
    message: ChatMessage
    finish_reason: str
    check: NotRequired[Check]


class Completion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    notices: NotRequired[list[str]]


class JobError(TypedDict):
    code: str
    message: str


class Video(TypedDict):
    id: str
    object: Literal["video"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    model: str
    prompt: str
    seconds: str
    size: str
    completed_at: int | None
    expires_at: int | None
    remixed_from_video_id: str | None
    error: JobError | None
    num_frames: int
    fps: float
    width: int
    height: int
    seed: int
    notice: str | None
    check: Check | None


class Videos(TypedDict):
    object: Literal["list"]
    data: list[Video]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(TypedDict):
    id: str
    object: Literal["video.deleted"]
    deleted: bool


class QueueItem(TypedDict):
    """A result that an operator sees."""

    request_id: str
    makes: Literal["text", "image", "video"]
    cells: int
    seconds: float
    cancelled: bool


class Queue(Status):
    running: list[QueueItem]
    waiting: list[QueueItem]


class Cancelled(TypedDict):
    cancelled: int
