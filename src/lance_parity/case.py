"""A request of the release in one form of the model, and what our code makes of it.

Axes: L rows, D width, N latent rows, C latent channels, T Y X cells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from lance_parity.checks import Checks
from lance_parity.files import GoldenFile
from lance_parity.layout import that_reads, where
from lance_parity.parts import PLAIN, Parts
from lance_parity.traces import passing, trace
from openlance.compat.interleave import request
from openlance.config.sampling import RELEASED_RUN, Decoding, Sampling
from openlance.inference.text import decode
from openlance.inference.visual import Branches, Denoiser, branch_out, conditions, denoise
from openlance.media.clip import Clip
from openlance.sequence.pack import Pack
from openlance.sequence.segment import Kind, Role, Rows, Segments, drop
from openlance.sequence.tasks import Views

GAP = 0.1  # between the two likeliest tokens in half precision: where it is smaller another kernel may take the other
# What the settings of a variant are called among those of a run.
VARIED = {
    "steps": "num_timesteps", "cfg": "cfg_text_scale", "shift": "timestep_shift", "interval": "cfg_interval",
    "renorm": "cfg_renorm_type", "renorm_min": "cfg_renorm_min",
}  # fmt: skip


def read_request(checks: Checks, parts: Parts) -> Segments:
    """Build the request of a case by the rules of `compat.interleave`.

    The rendered text only decides what the release draws at random.

    Args:
        checks: Of the case.
        parts: The model.

    Returns:
        Its segments, with clips for media.
    """
    file = checks.file

    def views(element: object, kind: str) -> Views:
        number = re.findall("[0-9]+", str(element))[0]
        names = [f"in.media{number}.{branch}_u8" for branch in ("vit", "vae")]
        return Views(*(Clip(file.take(name).numpy()) if name in file else None for name in names))

    # Where the arguments are silent, a target has the stored size.
    stored = file.take("pack.video_sizes")[-1].tolist() if "pack.video_sizes" in file else [None] * 3
    names, arguments = ("num_frames", "H", "W"), file.get("dataset_args", {})
    frames, height, width = (arguments.get(name, known) for name, known in zip(names, stored, strict=True))
    size = (frames, height, width) if frames and height and width else None
    task, data = file.get("task"), file.take("input")
    candidates = [request(task, data, views, size=size, caption=n) for n in range(len(RELEASED_RUN.captions))]
    return that_reads(checks, "rendered_text", file.get("rendered_text"), candidates, parts)


@dataclass(eq=False)
class Case:
    """One request. Everything is worked out when it is first asked for, and once.

    Attributes:
        file: What the released code made of it.
        parts: The model in the form of the run.
        request: The segments, with clips for media.
    """

    file: GoldenFile
    parts: Parts
    request: Segments

    tail = list[int]()  # a request is not padded

    def __post_init__(self) -> None:
        self.run, self.velocities, self.answer = cache(self._run), cache(self._velocities), cache(self._answer)
        self.inputs = self.file.inputs or self.file  # what is in float32
        self.prefix = "" if self.inputs is self.file else self.parts.form.prefix

    @property
    def draws(self) -> bool:
        """Whether the request ends in an image or a video, not in an answer."""
        return any(s.kind is Kind.LATENTS and s.role is Role.TARGET for s in self.request)

    # Media in model space.

    @cached_property
    def features(self) -> list[Tensor]:
        """What our tower makes of each clip, (T, Y, X, D)."""
        return self.parts.features(_seen(self.request))

    @cached_property
    def rotation(self) -> tuple[Tensor, Tensor, Tensor]:
        """What our tower rotates patches by, in their order: angles, cosines and sines."""
        rotation = self.parts.components.vit().tower.rotary_pos_emb
        with passing(rotation) as calls:
            self.parts.features(_seen(self.request))
        (position,), (cos, sin) = calls[0]
        return rotation.angles(position), cos, sin

    @cached_property
    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """What our VAE makes of each clip, (T, Y, X, C) twice."""
        media = [value for s in self.request if s.kind is Kind.LATENTS for value in (s.value, s.given)]
        return [self.parts.moments(clip) for clip in media if isinstance(clip, Clip)]

    @property
    def stored_features(self) -> list[Tensor]:
        """The features that the file has, so that the decoder is tested alone; ours where it has none."""
        plain = self.parts.form is PLAIN
        given = self.inputs.get("vit.embed") if plain else self.file.get(f"{self.prefix}vit.embed")
        if given is None:
            return self.features
        parts = given.split([x.shape[:3].numel() for x in self.features])
        return [part.reshape(x.shape) for part, x in zip(parts, self.features, strict=True)]

    def latents(self, number: int) -> Tensor:
        """Give the clean latents (T, Y, X, C) of a clip as stored; what stands nowhere is the encoder's mean."""
        form, names = self.parts.form, (f"cond.latent{number}_first_frame", f"cond.latent{number}")
        files = (self.file, self.inputs) if form.dtype is torch.bfloat16 else (self.inputs,)
        stored = [file.take(name) for file in files for name in names if name in file]
        return stored[0].to(form.dtype) if stored else self.moments[number][0]

    @cached_property
    def segments(self) -> Segments:
        """The request with the stored media of its form."""
        seen, kept = iter(self.stored_features), (self.latents(n) for n in range(len(self.request)))

        def made(kind: Kind, value: Any) -> Any:
            return next(seen if kind is Kind.PATCHES else kept) if isinstance(value, Clip) else value

        return [replace(s, value=made(s.kind, s.value), given=made(s.kind, s.given)) for s in self.request]

    # Sequences.

    @property
    def samples(self) -> list[Segments]:
        """The request as the only one of its pack."""
        return [self.segments]

    @cached_property
    def packed(self) -> Pack:
        """The whole request."""
        return self.parts.pack(self.samples)

    @property
    def asked(self) -> Segments:
        """The request as it is put: with an empty answer."""
        return [s.filled(None) if s.role is Role.TARGET and s.kind is Kind.TEXT else s for s in self.segments]

    @cached_property
    def question(self) -> Pack:
        """What is asked, at positions without the modality shift (released code)."""
        return self.parts.pack([self.asked], shift=False)

    @cached_property
    def unprompted(self) -> Pack:
        """The request without its prompt."""
        return self.parts.pack([drop(self.segments, {Role.PROMPT})])

    @property
    def rows(self) -> Rows:
        """The rows that a run goes through."""
        return self.packed.rows if self.draws else self.question.rows

    @property
    def context(self) -> int:
        """How many rows come before the target; of an answer all but the last, which is the first step of decoding."""
        return int(where(self.rows.noisy)[0]) if self.draws else len(self.rows) - 1

    def branches(self, cached: bool) -> Branches:
        """Pack the request again with all that guidance needs."""
        settings = replace(self.sampling(), guidance_scale=4.0, cached=cached)
        return branch_out(self.parts.lance, self.parts.codec, [self.segments], settings)

    # Drawing.

    def sampling(self, variant: str | None = None) -> Sampling:
        """Give the settings of the run or of a variant; the release guides at scales above 1 only."""
        gen = self.file.get("gen", {})
        if variant is not None:
            gen = gen | {VARIED[key]: value for key, value in self.file.take("variants")[variant].items()}
        return Sampling(
            num_inference_steps=gen.get("num_timesteps", 4),
            guidance_scale=max(gen.get("cfg_text_scale", 4.0), 1.0),
            shift=gen.get("timestep_shift", 3.5),
            interval=tuple(gen.get("cfg_interval", (0.4, 1.0))),
            renorm=gen.get("cfg_renorm_type") or "none",
            renorm_min=gen.get("cfg_renorm_min", 0.0),
        )

    def drawn_noise(self) -> Tensor:
        """Draw the starting noise (N, C) of all latent rows."""
        seed = self.file.get("gen", {}).get("noise_seed", self.file.get("seed", 42))
        shape = len(self.moves), self.parts.config.latent_channels
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    @property
    def noise(self) -> Tensor:
        """The starting noise (N, C) of all latent rows in the form's precision: stored with the inputs, or drawn."""
        stored = self.inputs.get("gen.noise")
        return (self.drawn_noise() if stored is None else stored).to(self.parts.form.dtype).float()

    @cached_property
    def state(self) -> Tensor:
        """The states (N, C) of all latent rows at the first step: noise, but where a condition or a frame is known."""
        x, (_, clean) = self.noise.clone(), conditions(self.packed)
        given = [v.known for v in self.packed.visuals if v.given.any()]
        known = [y for y in (clean, *given) if len(y)]
        if known:
            x[~self.moves] = torch.cat(known).float()
        return x

    @property
    def moves(self) -> Tensor:
        """Which latent rows are denoised."""
        return self.packed.rows.denoise[self.packed.rows.is_latent]

    @property
    def target_state(self) -> Tensor:
        """The states of the target's rows."""
        return self.state[self.packed.rows.noisy[self.packed.rows.is_latent]]

    def embedded(self) -> Tensor:
        """Embed the latent rows (N, D) at the first step."""
        laid, patches = self.parts.lance.layout(self.packed.rows), conditions(self.packed)[0]
        return self.parts.lance.inputs(laid, patches, self.state, self.moves.float())[1]

    def _run(self, path: str, variant: str | None = None) -> tuple[Tensor, Tensor]:
        """Final latents (T, Y, X, C) and the state before each step (steps, N, C), from the sampler itself."""
        parts, states, start = self.parts, list[Tensor](), self.target_state
        settings = replace(self.sampling(variant), cached=path == "kv", compile="compile" in parts.ways)
        final = denoise(
            parts.runner, parts.codec, [self.segments] * parts.copies, settings, noise=[start.clone()] * parts.copies,
            store=parts.store, on_step=lambda i, t, x: states.append(x[: len(start)].clone()),
        )  # fmt: skip
        return final[0], torch.stack(states)

    def _velocities(self, path: str) -> list[Tensor]:
        """Both branches at t = 1 before guidance; without the cache the release states the denoised rows only."""
        cached = path == "kv"
        branches = self.branches(cached)
        denoiser = Denoiser(self.parts.lance, branches, *conditions(branches.pack), cached)
        moves = self.moves[-len(self.target_state) :]  # the target comes last
        velocities = denoiser.velocities(self.target_state, moves.float(), 2)
        return velocities if cached else [v[moves] for v in velocities]

    # Answering.

    def _answer(self, path: str) -> tuple[list[int], Tensor]:
        """As many greedy tokens as are stored, and the logits (V,) of the first step."""
        stored = self.file.get(f"{self.prefix}und.{path}.token_ids", torch.zeros(1, dtype=torch.long))
        if path != "kv":
            return self._answer_uncached(stored)
        parts = self.parts
        tokens, logits = decode(
            parts.runner, parts.codec, [self.asked] * parts.copies, Decoding(max_new_tokens=len(stored)),
            vocabulary=len(parts.tokenizer), store=parts.store,
        )  # fmt: skip
        return tokens[0], logits[0]

    def _answer_uncached(self, stored: Tensor) -> tuple[list[int], Tensor]:
        """The likeliest token after each stored one, from one pass over the whole sequence, which decoding against a
        cache must equal."""
        model, rows, n = self.parts.lance, self.rows, torch.arange(1, len(stored))
        last = rows.at(torch.full_like(n, len(rows) - 1))
        position = last.position.max() + n[:, None].expand(-1, 3) if len(n) else last.position
        rows = Rows.concat([rows, replace(last, index=last.index + n, token=stored[:-1], position=position)])
        laid = model.layout(rows)
        hidden = model.restore(laid, model(laid, patches=conditions(self.packed)[0]))
        logits = model.logits(hidden[-len(stored) :])[:, : len(self.parts.tokenizer)].float()
        return logits.argmax(dim=1).tolist(), logits[0]

    def tokens(self, path: str) -> Tensor:
        """Give our greedy tokens; from the first step on that another kernel may decide otherwise, the stored ones."""
        want = self.file.take(f"{self.prefix}und.{path}.token_ids")
        gaps = self.file.get(f"{self.prefix.replace('.', '_')}und_{path}_top2_gaps", ())
        certain = next((n for n, gap in enumerate(gaps) if gap < GAP), len(want))
        made = torch.tensor([*self.answer(path)[0], self.parts.codec.im_end])  # the release keeps the closing token
        ours = torch.full_like(want, -1)
        ours[: len(made)] = made[: len(want)]
        ours[certain:] = want[certain:]
        return ours

    def decoder_positions(self, steps: int) -> Tensor:
        """Give (3, L) positions of the question and of an answer of some steps."""
        position = self.question.rows.position
        return torch.cat([position, position.max() + torch.arange(1, steps + 1)[:, None].expand(-1, 3)]).T

    # Inside the decoder.

    @cached_property
    def trace(self) -> dict[str, Tensor]:
        """What the request leaves inside the decoder, of the rows that are stored, by the names of the format."""
        packed = self.packed if self.draws else self.question
        attention, hidden = trace(self.parts.lance, packed, self.context, self.target_state)
        joined, prefix = (self.file.get(f"rows.{name}", slice(None)) for name in ("joined", "prefix"))
        return {name: y[joined] for name, y in attention.items()} | {name: y[prefix] for name, y in hidden.items()}


def _seen(request: Segments) -> list[Clip]:
    """What the tower looks at."""
    return [s.value for s in request if s.kind is Kind.PATCHES and isinstance(s.value, Clip)]
