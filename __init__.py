"""ComfyUI entry point: the nodes of RDDM defocus deblurring. Everything else lives in `nodes` and `rddm_core`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes import host
from .nodes.compare import RDDMCompare
from .nodes.deblur import RDDMDeblur
from .nodes.deconvolve import RDDMDeconvolve
from .nodes.defocus_map import RDDMDefocusMap
from .nodes.edge_defocus_map import RDDMEdgeDefocusMap
from .nodes.example_photo import RDDMExamplePhoto
from .nodes.image_quality import RDDMImageQuality
from .nodes.model_loader import RDDMModelLoader
from .nodes.pre_deblur import RDDMPreDeblur
from .nodes.render_defocus import RDDMRenderDefocus
from .nodes.residual_merge import RDDMResidualMerge
from .nodes.residual_preview import RDDMResidualPreview
from .nodes.residual_statistics import RDDMResidualStatistics
from .nodes.sampler import RDDMSampler

WEB_DIRECTORY = "./web"


class RDDMExtension(ComfyExtension):
    """What this pack adds to ComfyUI."""

    async def on_load(self) -> None:
        """Make models/rddm known, before the loader lists it."""
        host.register_model_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of a graph."""
        return [
            RDDMModelLoader,
            RDDMExamplePhoto,
            RDDMDefocusMap,
            RDDMEdgeDefocusMap,
            RDDMPreDeblur,
            RDDMSampler,
            RDDMResidualMerge,
            RDDMResidualStatistics,
            RDDMResidualPreview,
            RDDMDeblur,
            RDDMDeconvolve,
            RDDMRenderDefocus,
            RDDMCompare,
            RDDMImageQuality,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI when it loads the pack."""
    return RDDMExtension()
