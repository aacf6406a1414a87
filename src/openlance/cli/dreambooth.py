"""Data of `openlance train dreambooth`: a few images of one subject beside results of the model for its class.

runs/toy/prior/0000.png ...       what the model draws for the class before it learns, seeds 0, 1, 2 ...
runs/toy/prior/made.json          from which prompt, by which model
runs/toy/samples.jsonl            both: as often images of the subject as results for the class
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openlance.config.values import read_json
from openlance.errors import UserError
from openlance.media.files import atomic_path, write_json
from openlance.runtime.distributed import Distributed

TOGETHER = 16  # results that are drawn in one pass


def samples(data: Path, prompt: str, class_prompt: str, count: int, model: str, out: Path) -> Path:
    """Write the list of samples of a subject, and draw what is missing of the class; all processes may call it.

    Args:
        data: Folder or list of the subject's images. Texts of their own are used in the place of `prompt`.
        prompt: Names the subject.
        class_prompt: Names what it is one of.
        count: Results of the model; 0 for none.
        model: That draws them, the one that is trained.
        out: Folder of the run.

    Returns:
        The list, for the task t2i.

    Raises:
        UserError: If there are no images, or the folder has results for another class or of another model.
    """
    from openlance.data.open import FolderSource, open_source

    source = open_source({"path": str(data), "caption": prompt}, "t2i")
    if not isinstance(source, FolderSource):
        raise UserError(f"{data} is a table: give a folder with a few images of the subject, or a list of them")
    own = [_entry(row.folder, source.layout.renamed(row.values), prompt) for row in source.found]
    processes, listed = Distributed.join(), out / "samples.jsonl"
    if processes.leads:
        prior = _drawn(class_prompt, count, model, out / "prior") if count else []
        repeats = max(1, round(len(prior) / len(own)))
        rows = own * repeats + [{"file_name": f"prior/{file.name}", "text": class_prompt} for file in prior]
        with atomic_path(listed) as path:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    processes.wait()
    return listed


def _entry(folder: Path, values: dict[str, Any], prompt: str) -> dict[str, Any]:
    return {"file_name": str((folder / str(values["image_bytes"])).resolve()), "text": values.get("caption") or prompt}


def _drawn(prompt: str, count: int, model: str, folder: Path) -> list[Path]:
    """The model's results for a prompt, of which those that are there already stay."""
    import openlance

    said = {"prompt": prompt, "model": model}
    made = folder / "made.json"
    if made.is_file() and (held := read_json(made)) != said:
        raise UserError(
            f"{folder} holds results of {held.get('model')} for {held.get('prompt')!r}, and {prompt!r} of {model} is "
            "asked for: choose another folder for another run"
        )
    write_json(made, said)
    files = [folder / f"{n:04d}.png" for n in range(count)]
    first = next((n for n, file in enumerate(files) if not file.is_file()), count)
    pipe = openlance.load(model) if first < count else None
    for at in range(first, count, TOGETHER):
        assert pipe is not None
        images = pipe.generate(prompt, num_images=min(TOGETHER, count - at), seed=at)  # of image k it is seed + k
        for file, image in zip(files[at:], images):
            with atomic_path(file) as path:
                image.save(path, format="PNG")
    return files
