"""A folder that has been trained in already: what goes on, and what cannot be meant.

The position of a run is one in its data, its weights are those of its base and its rank: another of these is another
run. What may change is how it goes on: steps, rate, workers and the like.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openlance.config.train import Stage
from openlance.config.values import as_data, brief, read_json
from openlance.data.report import Report
from openlance.errors import UserError
from openlance.media.files import write_json
from openlance.training.checkpoint import Checkpoints
from openlance.training.files import Settings, starts_of

# Fields of a stage on which the weights, or the position in the data, depend.
FIXED = ("mixture", "pack_tokens", "max_sample_tokens", "resolutions", "max_frames", "draws", "seed", "drop_text",
         "drop_all", "preserve")  # fmt: skip
FOUND = "found.json"
SETTINGS = {"model": "base", "init": "init", "data": "data", "adapter": "an adapter to begin with:"}
# Of these `note_schedule` tells more.
RATES = ("lr", "schedule", "lr_end", "warmup", "accumulate")


def check_again(stage: Stage, settings: Settings, checkpoints: Checkpoints) -> None:
    """Say on stderr what becomes of a folder with a checkpoint.

    Raises:
        UserError: If it is of other data, another base or rank, or of settings that cannot change; or if it is finished
            and what is asked for would change nothing.
    """
    steps, starts = checkpoints.steps(), starts_of(settings.out)
    if not steps or not starts:
        return
    was, now = starts[-1], {"stage": as_data(stage), "options": settings.recorded()}
    differ = list(_differences(was["options"], was["stage"], now["options"], now["stage"]))
    if differ:
        fix = "choose another folder for another run, or give this one what it had"
        raise UserError(f"{settings.out} holds a run with {'; '.join(differ)}: {fix}")
    done, own = steps[-1], was["stage"]
    changed = [
        f"{name} {brief(now['stage'][name])} in the place of {brief(own[name])}"
        for name in now["stage"]
        if name in own and name not in ("steps", "frozen", *FIXED) and _plain(own[name]) != _plain(now["stage"][name])
    ]
    if done < stage.steps:
        named = [said for said in changed if said.split()[0] not in RATES]
        more = f", with {', '.join(named)}" if named else ""
        said = f"{settings.out} goes on at step {done + 1} of {stage.steps}{more}"
    elif changed:
        fix = f"ask for more than {done} steps, or choose another folder"
        raise UserError(f"{settings.out} is finished (step {done} of {stage.steps}), so {', '.join(changed)}: {fix}")
    else:
        said = (
            f"{settings.out} is finished (step {done} of {stage.steps}): nothing is trained; more steps go on with it"
        )
    if checkpoints.processes.leads:
        print(f"note: {said}", file=sys.stderr)


def note_found(folder: Path, report: Report) -> None:
    """Keep what was found in `found.json` of a run, and say on stderr where that is not what it began with."""
    path, now = folder / FOUND, report.as_data()
    if path.is_file():
        had = {one["task"]: one for one in read_json(path).get("sources", ())}
        for one in now["sources"]:
            before = had.get(one["task"])
            if before is not None and before.get("mark") != one["mark"]:
                said = f"the data of {one['task']} in {one['source']} have changed since the run began"
                print(f"note: {said}: {before.get('used')} samples then, {one['used']} now", file=sys.stderr)
    else:
        write_json(path, now)


def _differences(
    had: Mapping[str, Any], stage: Mapping[str, Any], asked: Mapping[str, Any], plan: Mapping[str, Any]
) -> Iterator[str]:
    for name, called in SETTINGS.items():
        one, other = (_where(options.get(name)) for options in (had, asked))
        if name in had and one != other:
            yield f"{called} {_brief(had[name])}, and {_brief(asked[name])} is asked for"
    one, other = stage.get("lora"), plan.get("lora")
    if bool(one) != bool(other):
        yield (
            "an adapter alone, and the whole model is asked for"
            if one
            else "the whole model, and an adapter is asked for"
        )
    elif one and other:
        one, other = ({**lora, "alpha": lora.get("alpha") or lora["rank"]} for lora in (one, other))
        for name in ("rank", "alpha", "targets", "dropout"):
            if name in one and one[name] != other[name] and not (name == "alpha" and one["rank"] != other["rank"]):
                yield f"{name} {one[name]}, and {other[name]} is asked for"
    for name in FIXED:
        if name in stage and _plain(stage[name]) != _plain(plan[name]) and not _other_tasks(stage[name], plan[name]):
            yield f"{name} {brief(stage[name])}, and {brief(plan[name])} is asked for"


def _other_tasks(one: Any, other: Any) -> bool:
    """Whether two mixtures are of other tasks, which the position in the data itself tells."""
    return isinstance(one, Mapping) and one.keys() != other.keys()


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _where(value: Any) -> Any:
    """Paths from wherever a command was started."""
    if isinstance(value, Mapping):
        return {key: _where(held) for key, held in value.items()}
    if isinstance(value, (str, Path)) and Path(value).exists():
        return str(Path(value).resolve())
    return str(value)


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={held}" for key, held in value.items()) or "none of its own"
    return str(value)
