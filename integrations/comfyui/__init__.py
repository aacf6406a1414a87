"""openlance in ComfyUI: its folder goes into `custom_nodes`, see README.md."""

from comfy_api.latest import ComfyExtension

from .nodes import NODES


class Openlance(ComfyExtension):
    """All nodes of the package."""

    async def get_node_list(self) -> list:
        return list(NODES)


async def comfy_entrypoint() -> Openlance:
    return Openlance()
