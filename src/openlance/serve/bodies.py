"""What clients send. A name that no field has is refused; fields of OpenAI's API that change nothing here are accepted
and listed in `docs/howto/serving.md`.

Names of other servers (vLLM-Omni's) mean what `OTHER_NAMES` says, at the top of a body or inside `extra_body`.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from starlette.datastructures import UploadFile
from starlette.requests import Request

from openlance.config.sampling import LARGEST_SEED, LARGEST_SIDE, LONGEST, MOST_DRAWS, STRONGEST, Decoding, Sampling
from openlance.data.front import Asked
from openlance.media.clip import MODEL_FPS
from openlance.media.region import Box, is_box, number_in, typed
from openlance.serve.failures import Failure

OTHER_NAMES = {
    "true_cfg_scale": "guidance_scale", "cfg_text_scale": "guidance_scale", "cfg_img_scale": "image_guidance_scale",
    "cfg_interval": "interval", "cfg_renorm_type": "renorm", "cfg_renorm_min": "renorm_min",
    "flow_shift": "shift", "timestep_shift": "shift", "video_height": "height", "video_width": "width",
    "origin_fps": "fps", "max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens",
    "max_think_tokens": "max_tokens", "text_temperature": "temperature",
}  # fmt: skip
SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})")
MOST_RESULTS = 10  # of one request (OpenAI's)
LONGEST_PROMPT = 32_000  # characters (OpenAI's)
LONGEST_TALK = 200_000  # of all texts of a conversation
LONGEST_NAME, MOST_REGIONS = 200, 16
MOST_STOPS, LONGEST_STOP = 16, 200
# What vLLM-Omni's clients put around words: the marks of the release's template, up to where an answer begins.
WRAPPED = re.compile(
    r"\s*(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\s*)?<\|im_start\|>(?:user\n)?(?P<words>.*?)"
    r"(?:<\|im_end\|>\s*(?:<\|im_start\|>assistant\s*)?)?",
    re.DOTALL,
)
SHOWN = re.compile(r"(?:<\|vision_start\|>(?:<\|(?:image|video)_pad\|>)*<\|vision_end\|>\s*)+")


def unwrapped(text: str) -> tuple[str, str | None]:
    """Words without the marks that some clients put around them, and a system prompt that these enclose. Marks inside
    are words."""
    match = WRAPPED.fullmatch(text)
    if match is None:
        return text, None
    words = match["words"]
    shown = SHOWN.match(words)  # the place of a medium, which comes in a part of its own
    return words[shown.end() :] if shown else words, match["system"]


def _unwrapped(text: str) -> str:
    words, said = unwrapped(text)
    if said is not None:
        raise ValueError("a system prompt belongs into the messages of /v1/chat/completions")
    return words


Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(_unwrapped)]
Stop = Annotated[str, Field(max_length=LONGEST_STOP)]


class Body(BaseModel):
    """Fields of every request. model: None is the one that is served."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None


class DrawingBody(Body):
    """How something is drawn; None is the checkpoint's own."""

    size: str | None = None
    height: int | None = Field(None, ge=1, le=LARGEST_SIDE)
    width: int | None = Field(None, ge=1, le=LARGEST_SIDE)
    seed: int | None = Field(None, ge=-1, le=LARGEST_SEED)
    negative_prompt: str | None = Field(None, max_length=LONGEST_PROMPT)
    num_inference_steps: int | None = Field(None, ge=1, le=200)
    guidance_scale: float | None = Field(None, ge=0, le=STRONGEST)
    image_guidance_scale: float | None = Field(None, ge=0, le=STRONGEST)
    shift: float | None = None
    interval: tuple[float, float] | None = None
    renorm: str | None = None
    renorm_min: float | None = None
    solver: str | None = None
    step_cache: float | None = None
    distilled: bool | None = None
    think: bool = False
    check: int | None = Field(None, ge=1, le=MOST_DRAWS)

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of `Sampling`, None where the client says nothing."""
        return {name: getattr(self, name) for name in Sampling.__dataclass_fields__ if hasattr(self, name)}

    def asked(self, num_frames: int | None = None) -> Asked:
        """Frames, height and width, None where nobody says."""
        if self.size in (None, "auto"):
            return num_frames, self.height, self.width
        match = SIZE.fullmatch(self.size or "")
        if match is None:
            raise Failure('size: write WIDTHxHEIGHT, such as "64x64", or "auto"', code="invalid_value", param="size")
        if self.height is not None or self.width is not None:
            raise Failure("size: give it, or height and width, not both", code="invalid_value", param="size")
        return num_frames, int(match[2]), int(match[1])


class ImageBody(DrawingBody):
    """`/v1/images/generations`."""

    prompt: Prompt
    n: int = Field(1, ge=1, le=MOST_RESULTS)
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    background: Literal["auto", "opaque"] = "auto"
    quality: Any = None
    style: Any = None
    moderation: Any = None


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _regions(value: Any) -> Any:
    """What `Methods.edit` takes as a region: one, or a list of several; words, or those of a form, may be a box."""
    if isinstance(value, list) and not is_box(value):
        if len(value) > MOST_REGIONS:
            raise ValueError(f"{len(value)} regions are more than the {MOST_REGIONS} allowed")
        if len(value) > 1 and all(isinstance(one, str) and number_in(one) is not None for one in value):
            return _region(",".join(value))
        found = [_region(one) for one in value]
        return found[0] if len(found) == 1 else found
    return _region(value)


def _region(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_NAME:
        raise ValueError(f"a region of {len(value)} characters is longer than the {LONGEST_NAME} allowed")
    return typed(value) if isinstance(value, str) else value


# "auto", "none", words, a box of four numbers, or a list of the last two.
Regions = Annotated[str | Box | list[str | Box] | None, BeforeValidator(_regions)]


class ImageEditBody(ImageBody):
    """`/v1/images/edits`. image: uploads or addresses; url: addresses (vLLM-Omni). mask: one of either, transparent
    where the first image may change; region: the same said in another way."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: Annotated[list[UploadFile | str], BeforeValidator(_several)] = Field(default_factory=list, max_length=16)
    url: Annotated[list[str], BeforeValidator(_several)] = Field(default_factory=list, max_length=16)
    mask: UploadFile | str | None = None
    region: Regions = None
    input_fidelity: Any = None


class Address(BaseModel):
    """A medium by its address, a data URL for the most part."""

    model_config = ConfigDict(extra="forbid")

    url: str
    detail: Any = None


class ImageReference(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image_url: str


class VideoReference(BaseModel):
    model_config = ConfigDict(extra="forbid")

    video_url: str


class VideoBody(DrawingBody):
    """What makes a video has a length: in seconds, or in frames."""

    seconds: float | None = Field(None, gt=0, le=LONGEST / MODEL_FPS)
    num_frames: int | None = Field(None, ge=1, le=LONGEST)
    fps: float | None = None

    def frames(self, stride: int) -> int | None:
        """The length in frames, None where nobody says; seconds mean the nearest length that a video can have."""
        if self.fps not in (None, MODEL_FPS):
            raise Failure(f"fps: videos have {MODEL_FPS} frames a second", code="invalid_value", param="fps")
        if self.seconds is None:
            return self.num_frames
        if self.num_frames is not None:
            raise Failure("seconds: give it or num_frames, not both", code="invalid_value", param="seconds")
        return 1 + stride * max(round((self.seconds * MODEL_FPS - 1) / stride), 1)


class VideoCreateBody(VideoBody):
    """`POST /v1/videos`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    prompt: Prompt
    input_reference: UploadFile | str | ImageReference | None = None
    image_reference: ImageReference | None = None
    video_reference: VideoReference | None = None


class VideoOf(BaseModel):
    """A finished job whose video is meant."""

    model_config = ConfigDict(extra="forbid")

    id: str


class VideoEditBody(DrawingBody):
    """`POST /v1/videos/edits`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    prompt: Prompt
    video: UploadFile | str | VideoOf
    region: Regions = None


class VideoExtendBody(VideoBody):
    """`POST /v1/videos/extensions`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    prompt: Prompt
    video: UploadFile | str | VideoOf


class RemixBody(DrawingBody):
    """`POST /v1/videos/{id}/remix`."""

    prompt: Prompt
    region: Regions = None


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "image_url", "video_url", "file"]
    text: str | None = None
    image_url: Address | None = None
    video_url: Address | None = None
    file: dict[str, Any] | None = None
    index: Any = None


class Message(BaseModel):
    """What somebody said. images, videos: media beside the content, as gateways put them."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: Any = None
    images: list[Part] = Field(default_factory=list)
    videos: list[Part] = Field(default_factory=list)
    # What an answer of a server has beside them, where it is sent back whole.
    refusal: None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: Any = None

    @property
    def said(self) -> list[Part]:
        """The content as parts."""
        return [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []

    @property
    def parts(self) -> list[Part]:
        """All parts, those beside the content too."""
        return [*self.said, *self.images, *self.videos]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: Any = None


class Plain(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class ChatBody(VideoBody):
    """`/v1/chat/completions`. media: where images and videos come, as parts of the content or in lists beside it."""

    messages: list[Message] = Field(min_length=1, max_length=200)
    modalities: list[Literal["text", "image", "video"]] = Field(["text"], min_length=1)
    media: Literal["content", "message"] = "content"
    n: int = Field(1, ge=1, le=MOST_RESULTS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=4096)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    do_sample: bool | None = None
    system_prompt: str | None = Field(None, max_length=LONGEST_PROMPT)
    response_format: Plain | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _plain(self) -> ChatBody:
        """Take the marks from around the words of users; what they enclose as a system prompt is one."""
        length = sum(len(part.text or "") for message in self.messages for part in message.parts)
        if length > LONGEST_TALK:
            raise ValueError(f"the messages have {length} characters, more than the {LONGEST_TALK} allowed")
        for message in self.messages:
            texts: list[tuple[Any, str]] = [(message, "content")]
            if isinstance(message.content, list):
                texts = [(part, "text") for part in message.content]
            for holder, name in texts if message.role == "user" else []:
                if text := getattr(holder, name):
                    words, said = unwrapped(text)
                    setattr(holder, name, words)
                    self.system_prompt = said if self.system_prompt is None else self.system_prompt
        return self

    @property
    def decoding(self) -> Decoding:
        """How an answer is written: greedy, unless a temperature is given."""
        said = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty", "stop")}
        said |= {"max_new_tokens": self.max_tokens} | ({"temperature": 0.0} if self.do_sample is False else {})
        return Decoding(**{name: value for name, value in said.items() if value is not None})


def unfolded(said: dict[str, Any]) -> dict[str, Any]:
    """A body with `extra_body` and `extra_params` taken apart and other servers' names replaced by ours."""
    flat = dict(said)
    for name in ("extra_body", "extra_params"):
        more = flat.pop(name, None)
        if isinstance(more, str):
            try:
                more = json.loads(more)
            except ValueError:
                more = [more]
        if more is not None and not isinstance(more, dict):
            raise Failure(f"{name}: expected names and values", code="invalid_value", param=name)
        flat = _joined(flat, more or {})
    return _joined({}, flat, OTHER_NAMES)


def _joined(one: dict[str, Any], other: dict[str, Any], names: dict[str, str] | None = None) -> dict[str, Any]:
    found = dict(one)
    for said, value in other.items():
        name = (names or {}).get(said, said)
        if name in found and found[name] != value:
            raise Failure(f"{said}: {name} is given as well, with another value", code="invalid_value", param=said)
        found[name] = value
    return found


BRACKET = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")


def of_form(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a form as a body: `image[]` and what comes twice are lists, `a[b]` is a value inside `a`."""
    found: dict[str, Any] = {}
    for name, value in fields:
        match = BRACKET.fullmatch(name)
        if match and match[2]:
            inside = found.setdefault(match[1], {})
            if not isinstance(inside, dict):
                raise Failure(f"{name}: {match[1]} is given as well", code="invalid_value", param=name)
            inside[match[2]] = value
            continue
        name = match[1] if match else name
        if name in found:
            found[name] = [*_several(found[name]), value]
        else:
            found[name] = [value] if match else value
    return found


REFUSED = {
    "mask_image": "white masks are not read here, send a mask that is transparent where the image may change",
    "markup": "drawings on an image are not read",
}


async def read(request: Request, kind: type[Body], served: str) -> Any:
    """The body of a request, JSON or a form. Failure if it is none, or for another model."""
    form = request.headers.get("content-type", "").lower()
    if form.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        try:
            fields = await request.form(max_files=32, max_fields=200, max_part_size=32 << 20)
        except (UnicodeError, LookupError) as error:
            raise Failure(f"the form cannot be read ({error})", code="invalid_value") from None
        said = of_form(fields.multi_items())
        said = {name: json_in(value) if name.endswith("_reference") else value for name, value in said.items()}
    else:
        try:
            said = await asyncio.to_thread(json.loads, await request.body())  # it may hold a whole video
        except (ValueError, RecursionError) as error:
            raise Failure(f"the body is not JSON ({error})", code="invalid_json") from None
    if not isinstance(said, dict):
        raise Failure("the body is not a JSON object", code="invalid_json")
    said = {name: value for name, value in unfolded(said).items() if value is not None}  # null is not given
    for name, why in REFUSED.items():
        if said.get(name) is not None:
            raise Failure(f"{name}: {why}; leave it out", code="unsupported_parameter", param=name)
    body = TypeAdapter(kind).validate_python(said)
    if body.model not in (None, served):
        raise unknown_model(body.model)
    return body


def unknown_model(name: str) -> Failure:
    return Failure(f"there is no model {name!r} here", status=404, code="model_not_found", param="model")


def json_in(value: Any) -> Any:
    """A field of a form that may be JSON text (vLLM-Omni's examples)."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
