"""Denoising: fill the visual target of each request, all requests and all guidance branches in one batch. Media are in
model space before it begins (`runtime.media_encoder`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from openlance.config.sampling import Sampling
from openlance.errors import UserError
from openlance.flow import SOLVERS, Solver, schedule
from openlance.inference.compiled import Pass, Recorded, can_record, compiled
from openlance.inference.prefix import PrefixStore, prefill
from openlance.inference.step_cache import Run, StepCache
from openlance.model.lance import Cache, Lance, Layout
from openlance.runtime.distributed import Shared
from openlance.sequence.pack import Codec, Pack, Visual, pack
from openlance.sequence.segment import (
    CONDITIONS,
    LATENTS,
    PROMPT,
    WORDS,
    Kind,
    Role,
    Rows,
    Segments,
    Value,
    drop,
    given_in,
    region_in,
    source_in,
    with_prompt,
)

OnStep = Callable[[int, float, Tensor], None]


@dataclass
class Branches:
    """All documents of a request batch: the full one, then those that dropped conditions."""

    pack: Pack
    requests: int
    text_free: bool  # has the branch without the prompt
    free: bool  # has the branch without prompt and visual conditions

    @property
    def count(self) -> int:
        return 1 + self.text_free + self.free

    def docs(self, branch: int) -> range:
        return range(branch * self.requests, (branch + 1) * self.requests)


def forms(requests: Sequence[Segments], s: Sampling, negatives: Sequence[str]) -> tuple[list[Segments], bool, bool]:
    """List the forms of requests that guidance compares: as they are, then without their words, then without all that
    they show too; and whether there are the second and the third."""
    has_text = s.guidance_scale > 1 and not s.distilled
    seen = any(x.role in CONDITIONS - WORDS for r in requests for x in r)
    has_none = seen and s.image_guidance_scale > 1 and not s.distilled
    documents = list(requests)
    if has_text:
        documents += [with_prompt(r, text) for r, text in zip(requests, negatives, strict=True)]
    if has_none:
        documents += [drop(r, CONDITIONS) for r in requests]
    return documents, has_text, has_none


def branch_out(
    model: Lance, codec: Codec, requests: list[Segments], s: Sampling, negatives: Sequence[str] = ()
) -> Branches:
    """Pack the guidance branches: guidance is dropping segments and packing again. A released checkpoint keeps one
    quirk of its cache.

    Args:
        model: The decoder.
        codec: Of tokens.
        requests: Their media are tensors.
        s: Its guidance scales decide which branches there are.
        negatives: Of each request the text that the branch without its words has in their place, empty for none.
    """
    negatives = negatives or [""] * len(requests)
    documents, has_text, has_none = forms(requests, s, negatives)
    packed = pack(documents, codec, model.config.position)
    if has_text and s.cached and model.config.quirks.uncond_keeps_positions:
        wordless = [doc for doc, text in enumerate(negatives) if not text]
        packed = replace(packed, rows=_keep_positions(packed.rows, len(requests), wordless))
    return Branches(packed, len(requests), has_text, has_none)


def _keep_positions(rows: Rows, requests: int, wordless: Sequence[int]) -> Rows:
    """The release caches the unconditional prefix at the positions of the conditional one. wordless: the requests
    whose unconditional prefix has no other words."""
    position, prefix = rows.position.clone(), before_target(rows)
    for doc in wordless:
        kept = (rows.doc == doc) & (rows.code != PROMPT) & prefix
        mine = (rows.doc == doc + requests) & prefix
        position[mine] = rows.position[kept]
    return rows.moved(position)


def before_target(rows: Rows) -> Tensor:
    """Tell which rows are of the prefix of each document: what comes before its first noisy row."""
    first = torch.full((int(rows.doc.max()) + 1,), torch.iinfo(torch.long).max)
    noisy = rows.noisy.nonzero()[:, 0]
    first = first.scatter_reduce(0, rows.doc[noisy], rows.index[noisy], "amin")
    return rows.index < first[rows.doc]


@dataclass
class Denoiser:
    """Velocities of every branch at a state, from the cache or from the whole sequence at every call."""

    model: Lance
    branches: Branches
    features: Tensor | None
    context: Tensor  # (n, C) clean latents of the conditions, in row order
    cached: bool
    store: PrefixStore | None = None  # of prefixes that ran in earlier calls
    compile: bool = False
    shared: Shared | None = None  # how processes share the work
    on_pass: Callable[[int], None] | None = None
    cache: Cache | None = None
    layouts: dict[tuple[int, ...], Chosen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shared is not None and (self.compile or not self.cached):
            raise UserError("several processes draw with cached=True and compile=False: leave those settings out")
        rows = self.branches.pack.rows
        self.prefix = before_target(rows)
        if self.cached and self.cache is None:
            at, media = self.prefix.nonzero()[:, 0], (self.features, self.context)
            self.cache = prefill(self.model, self.branches.pack, at, media, self.store).cache

    def chosen(self, documents: tuple[int, ...]) -> Chosen:
        """What to run for some documents; worked out once for each set of them."""
        if documents not in self.layouts:
            rows = self.branches.pack.rows
            mine = torch.isin(rows.doc, torch.tensor(documents))
            wanted = mine & (rows.noisy if self.cached else rows.noisy | self.prefix)
            own = rows.at(wanted.nonzero()[:, 0])
            clean = mine[rows.is_latent & ~rows.noisy].nonzero()[:, 0]
            patches = mine[rows.is_patch].nonzero()[:, 0]
            layout = self.model.layout(own, self.cache, self.shared.context if self.shared else None)
            self.layouts[documents] = Chosen(layout, self._through(layout), own.noisy[own.is_latent], clean, patches)
        return self.layouts[documents]

    def _through(self, layout: Layout) -> Pass | None:
        """What the steps run in the place of the model's layers as they are, if they are to be compiled."""
        if not self.compile:
            return None
        through = partial(compiled(self.model).through, layout=layout, cache=self.cache)
        return Recorded(through) if can_record(self.model, len(layout.rows)) else through

    def velocities(self, x_NC: Tensor, times_N: Tensor, branches: int, run: Run | None = None) -> list[Tensor]:
        """Give the velocities (N, C) of each branch.

        Args:
            x_NC: Target rows of all requests.
            times_N: Their times; those of given frames are 0.
            branches: How many.
            run: What takes the place of `run`.
        """
        documents = tuple(range(branches * self.branches.requests))
        found = (run or self.run)(documents, x_NC.repeat(branches, 1), times_N.repeat(branches))
        return list(found.split(len(x_NC)))

    def run(self, documents: tuple[int, ...], x_MC: Tensor, times_M: Tensor) -> Tensor:
        """Velocities (M, C) of the target rows of some documents (numbers in rising order), one after another."""
        if self.shared is None:
            return self._pass(documents, x_MC, times_M)
        # Branches have equal targets, so equal numbers of documents mostly have equal numbers of rows; where not, or
        # where they do not come out even, every group of processes runs all of them.
        branch, context = self.shared.branch, self.shared.context
        rows = self.branches.pack.rows
        most = self.branches.count * self.branches.requests
        counts = torch.bincount(rows.doc[rows.noisy & rows.is_latent], minlength=most)
        dealt = counts[list(documents)].chunk(branch.size)
        even = len(dealt) == branch.size and len({int(part.sum()) for part in dealt}) == 1
        mine, whole = documents, len(x_MC)
        if even:
            place = branch.own(len(documents))
            mine, rows_of = documents[place], branch.own(whole)
            x_MC, times_M = x_MC[rows_of], times_M[rows_of]
        part = context.own(len(x_MC))
        v = context.gather(self._pass(mine, x_MC[part], times_M[part]), len(x_MC))
        return branch.gather(v, whole) if even else v

    def _pass(self, documents: tuple[int, ...], x_MC: Tensor, times_M: Tensor) -> Tensor:
        """... of this process's own rows."""
        chosen = self.chosen(documents)
        latents, times, patches, target = x_MC, times_M, None, chosen.target
        if not self.cached:
            latents = x_MC.new_zeros(len(target), x_MC.shape[1])
            latents[target] = x_MC
            latents[~target] = self.context[chosen.clean].to(latents)
            times = times_M.new_zeros(len(target))
            times[target] = times_M
            patches = self.features[chosen.patches] if len(chosen.patches) and self.features is not None else None
        if self.on_pass is not None:
            self.on_pass(len(x_MC))
        media = {"patches": patches, "latents": latents, "times": times}
        _, gen = self.model(chosen.layout, **media, cache=self.cache, through=chosen.through)
        v = self.model.velocity(gen)
        return (v if self.cached else v[target]).float()


@dataclass(frozen=True)
class Chosen:
    """The rows of some documents: their layout, its layers where they are compiled, which latent rows are targets, and
    which clean latents and ViT rows of the whole pack are theirs."""

    layout: Layout
    through: Pass | None
    target: Tensor
    clean: Tensor
    patches: Tensor


def target_noise(visuals: list[Visual], channels: int, seed: int | torch.Generator) -> Tensor:
    """Draw the starting noise (N, C) of one request's target, on the CPU so that a seed means the same everywhere;
    from a generator where that is.

    The released sampler draws for all latents of a request, conditions first, and so do we."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    counts = [v.rows[1] - v.rows[0] for v in visuals]
    return torch.randn(sum(counts), channels, generator=generator, device=generator.device)[sum(counts[:-1]) :]


@torch.inference_mode()
def denoise(
    model: Lance,
    codec: Codec,
    requests: list[Segments],
    s: Sampling,
    *,
    seeds: Sequence[int | torch.Generator] | None = None,
    noise: list[Tensor] | None = None,
    on_step: OnStep | None = None,
    after_step: Callable[[int, float, Tensor], Tensor | None] | None = None,
    on_pass: Callable[[int], None] | None = None,
    store: PrefixStore | None = None,
    shared: Shared | None = None,
    negatives: Sequence[str] = (),
    stops: Callable[[], bool] | None = None,
    wanted: Callable[[], Sequence[bool]] | None = None,
    distilled: Lance | None = None,
    solver: Solver | None = None,
) -> list[Tensor]:
    """Fill the last visual target of each request.

    Args:
        model: The decoder.
        codec: Of tokens.
        requests: Their media are tensors.
        s: How.
        seeds: One per request, where there is no `noise`.
        noise: (N, C) per request.
        on_step: Called with (i, t, x), the state before each step.
        after_step: Called with (i, t, x), the state after it at its time; what that returns, if anything, takes its
            place.
        on_pass: Called with the target rows of each pass through the model, which has all guidance branches in it.
        store: Of prefixes of earlier calls.
        shared: How several processes do this together.
        negatives: See `branch_out`.
        stops: Asked after each step whether to stop.
        wanted: Asked before each pass which requests are still wanted; the others take no further part, and the rest
            are as without them. Without effect where passes are compiled, or several processes share them.
        distilled: The decoder with another generation side, for the noisy rows at times at which guidance acts.
        solver: What takes the steps, in the place of the one that `s` names.

    Returns:
        Latents (T, Y, X, C) of each.
    """
    requests = [until_target(r) for r in requests]
    branches = branch_out(model, codec, requests, s, negatives)
    features, context = conditions(branches.pack, model.device)
    targets = [v for v in branches.pack.visuals if v.segment.role is Role.TARGET][: len(requests)]
    noise = noises(branches, model.config.latent_channels, seeds or ()) if noise is None else noise
    x = torch.cat([part.to(model.device) for part in noise]).float()
    line = Line.of(requests, targets, x)
    lengths = [v.rows[1] - v.rows[0] for v in targets]
    denoiser = Denoiser(model, branches, features, context, s.cached, store, s.compile, shared, on_pass)
    plain = guiding = partial(denoiser.velocities, run=_runs(denoiser, lengths, s, wanted))
    if distilled is not None:  # conditions are always those of the decoder itself, so the two share a cache
        other = replace(denoiser, model=distilled, layouts={})
        guiding = partial(other.velocities, run=_runs(other, lengths, s, wanted))
    times, solver = schedule(s.num_inference_steps, s.shift)[-s.steps - 1 :], solver or SOLVERS[s.solver]()
    guides_before = False
    x = line.at(float(times[0])) if s.strength < 1 else x
    moves = filled(x, targets, lengths)
    counted = in_norm(moves, model, s)
    for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if on_step is not None:
            on_step(i, float(t), x)
        guides = s.acts_at(float(t)) and (branches.count > 1 or distilled is not None)
        guided = branches.count if guides else 1
        found = (guiding if guides else plain)(x, torch.where(moves, t, 0.0), guided)
        velocity = found[0] if guided == 1 else guided_velocity(found, branches, s, lengths, counted)
        if guides != guides_before:
            solver.restart()
        guides_before = guides
        x = line.kept(torch.where(moves[:, None], solver.step(x, velocity, float(t), float(t_next)), x), float(t_next))
        changed = after_step(i, float(t_next), x) if after_step is not None else None
        x = x if changed is None else changed.to(x)
        if stops is not None and stops():
            break
    return [part.reshape(*v.grid, -1) for part, v in zip(x.split(lengths), targets, strict=True)]


@dataclass(frozen=True)
class Line:
    """The straight path from the noise that a target begins with to its source. Outside of a region in which nothing is
    given the rows are on it at every time, so that those inside see what they would if the source came out again; they
    end as its latents.

    Args:
        outside: (N,) rows that stay on it.
        noise: (N, C) states at t = 1.
        source: (N, C) at t = 0; zeros where a target has no source.
        part: Whether there are any outside.
    """

    outside: Tensor
    noise: Tensor
    source: Tensor
    part: bool

    @classmethod
    def of(cls, requests: list[Segments], targets: list[Visual], noise: Tensor) -> Line:
        """Take it from requests whose media are tensors, and where each target goes."""
        outside, source = list[Tensor](), list[Tensor]()
        for request, v in zip(requests, targets, strict=True):
            found, region = source_in(request), region_in(request)
            if region.is_part and found is None and given_in(request) is None:
                raise UserError("a region needs a source of an edit in which the rest stays: give one of this size")
            outside.append(torch.from_numpy(~region.cells(v.grid).flatten() & ~v.given))
            zeros = noise.new_zeros(v.rows[1] - v.rows[0], noise.shape[1])
            source.append(zeros if found is None else found.flatten(0, 2).to(noise))
        rows = torch.cat(outside)
        return cls(rows.to(noise.device), noise.clone(), torch.cat(source), bool(rows.any()))

    def at(self, t: float) -> Tensor:
        return (1 - t) * self.source + t * self.noise

    def kept(self, x: Tensor, t: float) -> Tensor:
        """The state with its rows outside on the line."""
        return torch.where(self.outside[:, None], self.at(t), x) if self.part else x


def filled(x: Tensor, targets: list[Visual], lengths: list[int]) -> Tensor:
    """Put what is given into the states (N, C), and tell which rows (N,) move."""
    given = [torch.from_numpy(v.given).to(x.device) for v in targets]
    for v, part, where in zip(targets, x.split(lengths), given, strict=True):
        if v.given.any():
            part[where] = v.known.to(part)
    return ~torch.cat(given)


def noises(branches: Branches, channels: int, seeds: Sequence[int | torch.Generator]) -> list[Tensor]:
    """Draw the starting noise (N, C) of every request."""
    packed, count = branches.pack, branches.requests
    doc = packed.rows.doc
    own = [[v for v in packed.visuals if v.kind == LATENTS and doc[v.rows[0]] == d] for d in range(count)]
    return [target_noise(o, channels, seed) for o, seed in zip(own, seeds, strict=True)]


def _runs(
    denoiser: Denoiser, lengths: Sequence[int], s: Sampling, wanted: Callable[[], Sequence[bool]] | None
) -> Run:  # fmt: skip
    """What gives the velocities of a step."""
    run: Run = denoiser.run
    if wanted is not None and denoiser.shared is None and not denoiser.compile:
        run = among(run, lengths, wanted)
    return StepCache(run, lengths, s.step_cache) if s.step_cache else run


def among(run: Run, lengths: Sequence[int], wanted: Callable[[], Sequence[bool]]) -> Run:
    """`run` without the documents of requests that are not wanted any more: their velocities are 0. lengths: rows of
    the target of each request; documents are requests, branch after branch."""

    def some(documents: tuple[int, ...], x_MC: Tensor, times_M: Tensor) -> Tensor:
        asked = wanted()
        if all(asked):
            return run(documents, x_MC, times_M)
        requests = [d % len(lengths) for d in documents]
        mine = torch.cat([torch.full((lengths[r],), asked[r]) for r in requests]).to(x_MC.device)
        velocities = torch.zeros_like(x_MC)
        if left := tuple(d for d, r in zip(documents, requests, strict=True) if asked[r]):
            velocities[mine] = run(left, x_MC[mine], times_M[mine])
        return velocities

    return some


def until_target(request: Segments) -> Segments:
    """Everything up to the visual target, which comes last: what follows cannot see it and is not needed."""
    for n, s in enumerate(request):
        if s.kind is Kind.LATENTS and s.role is Role.TARGET:
            return request[: n + 1]
    raise ValueError("the request has no visual target: end it with tasks.make(size)")


def rows_of_target(request: Segments, codec: Codec) -> int:
    """Count the latents of the visual target, with which a request ends."""
    size = request[-1].size
    assert size is not None
    return math.prod(codec.latent_grid(size))


def conditions(packed: Pack, device: torch.device | str | None = None) -> tuple[Tensor | None, Tensor]:
    """Give what the rows of a pack begin with, in row order.

    Returns:
        Features (n, D) of the ViT blocks, and latents (N, C) of the clean blocks; on the device, wherever their makers
        left them.
    """

    def flat(value: Value | None) -> Tensor:
        assert isinstance(value, Tensor)
        return value.flatten(0, 2).to(device or value.device)

    clean = [v for v in packed.visuals if v.kind == LATENTS and v.segment.role is not Role.TARGET]
    patches = [flat(v.segment.value) for v in packed.visuals if v.segment.kind is Kind.PATCHES]
    kept = [flat(v.segment.value) for v in clean]
    return torch.cat(patches) if patches else None, torch.cat(kept) if kept else torch.zeros(0, 1)


def in_norm(moves: Tensor, model: Lance, s: Sampling) -> Tensor:
    """Tell which rows (N,) enter the global norm of `renormalize`: those that move, in the release's cache all."""
    return torch.ones_like(moves) if s.cached and model.config.quirks.norm_includes_given else moves


def guided_velocity(
    found: list[Tensor], branches: Branches, s: Sampling, lengths: Sequence[int], counted: Tensor
) -> Tensor:  # fmt: skip
    """Mix the velocities (N, C) of all branches, request by request."""
    velocity, *others = found
    mixed = guide(velocity, others[0] if branches.text_free else None, others[-1] if branches.free else None, s)
    parts = (p.split(list(lengths)) for p in (mixed, velocity, counted))
    return torch.cat([renormalize(m, c, n, s) for m, c, n in zip(*parts, strict=True)])


def guide(text: Tensor, no_text: Tensor | None, nothing: Tensor | None, s: Sampling) -> Tensor:
    """Give v_u + g_i (v_i - v_u) + g_t (v - v_i), where v_i dropped the prompt and v_u the visual conditions too.

    All are (N, C). Without `nothing` this is the released rule v_i + g_t (v - v_i).
    """
    guided = text
    if no_text is not None:
        guided = no_text + s.guidance_scale * (text - no_text)
    if nothing is not None:
        below = no_text if no_text is not None else text
        guided = guided + (s.image_guidance_scale - 1) * (below - nothing)
    return guided


def renormalize(guided: Tensor, conditional: Tensor, counted: Tensor, s: Sampling) -> Tensor:
    """Shrink a guided velocity (N, C) to the conditional norm; `counted` rows enter the global norm (released code)."""
    if s.renorm == "none":
        return guided
    if s.renorm == "channel":
        have, want = guided.norm(dim=-1, keepdim=True), conditional.norm(dim=-1, keepdim=True)
    else:
        have, want = guided[counted].norm(), conditional[counted].norm()
    return guided * torch.clamp(want / (have + 1e-8), min=s.renorm_min, max=1.0)
