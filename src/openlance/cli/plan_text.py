"""Plans as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openlance.config.train import Stage
    from openlance.planning.sampling import SamplingPlan
    from openlance.planning.training import Machine, Plan

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def short(value: float) -> str:
    """Three digits and a unit: 1.50T, 47.0K."""
    for size, unit in UNITS:
        if value >= size:
            number = value / size
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}{unit}"
    return f"{value:.3g}"


def table(rows: list[tuple[str, str, str]]) -> str:
    """Three columns, the second to the right."""
    first, second = (max(len(row[n]) for row in rows) for n in (0, 1))
    return "\n".join(f"  {a.ljust(first)}  {b.rjust(second)}  {c}".rstrip() for a, b, c in rows)


def training(found: Plan, stage: Stage, machine: Machine) -> str:
    """The plan of a stage."""
    parts = [
        f"{found.stage} on {machine.count} x {machine.device.name}, {_sharing(machine)}, at {machine.utilization:.0%} "
        f"of {machine.device.tflops:g} TFLOP/s",
        "Model\n" + _model(found, stage, machine),
        "Memory per device, for the longest pack, in GiB\n" + _memory(found, stage),
        "Time\n" + _time(found, stage, machine),
    ]
    if found.notes:
        parts.append("Mind\n" + "\n".join(f"  {note}" for note in found.notes))
    return "\n\n".join([*parts, _verdict(found, stage)])


def _sharing(machine: Machine) -> str:
    return "weights whole on each" if machine.group == 1 else f"one copy of the weights per {machine.group}"


def _model(found: Plan, stage: Stage, machine: Machine) -> str:
    m, total = found.model, sum(found.flops_per_token.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in found.flops_per_token.items() if value)
    trained = f"adapters of rank {machine.lora}" if machine.lora else "the rest is frozen"
    whole = f"decoder {short(m['decoder'])}, vision tower {short(m['vision tower'])}"
    whole += f"; VAE encoder {short(m['VAE encoder'])} beside them"
    return table(
        [
            ("parameters", short(m["decoder"] + m["vision tower"]), whole),
            ("trained", short(m["trained"]), trained),
            ("active per token", short(m["active, understanding"]), "in either stream; embedding and heads apart"),
            ("operations per token", short(total), f"forward and backward: {shares}"),
            (
                "tokens of a pack", short(found.pack["tokens"]),
                f"mean: {short(found.pack['generation'])} latents, {short(found.pack['labels'])} labels; videos of "
                f"{stage.max_frames} frames assumed",
            ),
        ]
    )  # fmt: skip


def _memory(found: Plan, stage: Stage) -> str:
    notes = {
        "weights": "float32" + (", with those of the VAE's encoder" if stage.dtype else ""),
        "whole layers": "copies in which a pass computes",
        "activations": "at the end of the forward pass, " + ("recomputed" if stage.checkpointing else "all kept"),
        "backward": "the layer at work",
        "peak": "gradients come while activations go, so this is less than the sum",
    }
    rows = [(name, f"{value:.1f}", notes.get(name, "")) for name, value in found.memory.items()]
    other = found.without_checkpointing if stage.checkpointing else found.with_checkpointing
    rows.append((f"peak with checkpointing={'false' if stage.checkpointing else 'true'}", f"{other:.1f}", ""))
    rows.append(("usable", f"{found.usable:.1f}", "92 % of the device"))
    return table(rows)


def _time(found: Plan, stage: Stage, machine: Machine) -> str:
    rate, packs = found.tokens_per_second, machine.count * stage.accumulate
    seconds = found.tokens_per_step / rate
    rows = [
        ("tokens per second", short(rate), f"{short(rate / machine.count)} on each device; {seconds:.1f} s a step"),
        ("tokens per step", short(found.tokens_per_step), f"{packs} pack{'s' * (packs > 1)}"),
    ]
    if found.paper:
        p = found.paper
        rows += [
            ("tokens", short(p["tokens"]), f"as the paper prints; {p['steps_here']:,.0f} steps of {packs} here"),
            ("", "", f"its {stage.steps:,} steps are then {short(p['tokens_per_step'])} each: {_ranks(p)}"),
            ("", "", f"(all {stage.steps:,} steps here would see {short(p['tokens_of_all_steps_here'])})"),
        ]  # fmt: skip
    else:
        rows.append(("tokens", short(found.tokens), f"in {stage.steps:,} steps"))
    hours = found.days * 24
    rows += [
        (
            "days",
            f"{found.days:.1f}" if hours > 48 else f"{found.days:.3g}",
            f"{short(hours * machine.count)} device hours",
        ),
        ("cost", f"${short(found.cost)}", f"at ${machine.device.price:g} per device and hour"),
    ]
    return table(rows)


def _ranks(p: dict[str, float]) -> str:
    """How many packs a step the paper's counts mean, and which numbers of whole machines of eight fit."""
    low, high = p["packs_per_step_low"], p["packs_per_step_high"]
    eights = [str(n) for n in range(8 * int(-(-low // 8)), int(high) + 1, 8)]
    fitting = f" ({' or '.join(eights)} devices)" if eights else ""
    return f"{low:.1f} to {high:.1f} packs{fitting}, not 128"


def _verdict(found: Plan, stage: Stage) -> str:
    peak = f"{found.memory['peak']:.1f} of {found.usable:.1f} GiB"
    if found.fits:
        return f"Verdict: fits, {peak} at the peak."
    if not found.changes:
        return f"Verdict: does NOT fit, {peak} at the peak; nothing that this command tries makes it fit."
    return f"Verdict: does NOT fit, {peak} at the peak. Any one of these makes it fit:\n" + "\n".join(
        f"  {flags(change)}" for change in found.changes
    )


def flags(change: str) -> str:
    """A change of a plan with its settings as options of this command."""
    words, _, settings = change.partition(": ")
    own = {"gpus", "shard", "lora"}
    pairs = [(setting.partition("=")[0], setting) for setting in settings.split()]
    return f"{words}: " + " ".join(f"--{s.replace('=', ' ')}" if name in own else f"--set {s}" for name, s in pairs)


def sampling(found: SamplingPlan) -> str:
    """The plan of one request."""
    w, t = found.wanted, found.tokens
    clip = f", {w.frames} frames" if w.frames > 1 else ""
    made = f"{t['denoised']:,.0f} tokens to denoise, " if t["denoised"] else ""
    rows = [(name, gigabytes(value), "") for name, value in found.weights.items()]
    rows += [
        ("keys and values", gigabytes(found.cache), f"of {t['context']:,.0f} tokens of context"),
        ("activations", gigabytes(found.activations), "at the fullest, on the large side"),
    ]
    places = [(text, gigabytes(needed), "") for text, needed in found.placements]
    return "\n\n".join(
        [
            f"{w.task} at {w.width}x{w.height}{clip}: {made}{t['context']:,.0f} of context",
            "What it needs in bfloat16, in GB\n" + table(rows),
            "What is on the device at once, in GB\n" + table(places),
            f"Verdict: {found.verdict}{'; --memory says what you have' if found.memory is None else ''}.",
        ]
    )


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}" if value >= 1e8 else f"{value / 1e9:.2g}"
