"""openlance: one model that understands, generates and edits images and videos.

import openlance
pipe = openlance.load("nano")
pipe.generate("a red circle left of a blue square", seed=7)[0].save("out.png")
pipe.ask("out.png", "how many squares are there?")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openlance.inference.enhance import Enhancer
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.media.inputs import read_provenance
    from openlance.sequence.segment import Kind, Role, Segment

__version__ = "0.1.0"
__all__ = ["Enhancer", "Kind", "LancePipeline", "Pipeline", "Role", "Segment", "load", "read_provenance"]


def load(model: str = "nano", **options: Any) -> "LancePipeline":
    """Load a model.

    Args:
        model: A shipped one ("nano"), a checkpoint folder of any form (`docs/howto/checkpoints.md`), or a repository of
            the hub.
        **options: As for `LancePipeline.from_pretrained`, which gives the same.

    Raises:
        UserError: If there is no such model, or an option is unknown.
    """
    from openlance.inference.lance_pipeline import LancePipeline

    return LancePipeline.from_pretrained(model, **options)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    homes = {"LancePipeline": "inference.lance_pipeline", "Enhancer": "inference.enhance"}
    homes["read_provenance"] = "media.inputs"
    homes |= dict.fromkeys(("Kind", "Role", "Segment"), "sequence.segment")
    name = "LancePipeline" if name == "Pipeline" else name  # its former name
    if name not in homes:
        raise AttributeError(f"module 'openlance' has no attribute {name!r}")
    return getattr(import_module(f"openlance.{homes[name]}"), name)
