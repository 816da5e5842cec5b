"""Figures of the models: manifolds with their data, energies by latent, maps of the free energy.

Each function returns a :class:`matplotlib.figure.Figure`; ``figure.savefig("out.png")`` writes it.
The figures do not use pyplot, so they need no display and no global state. Matplotlib is imported
when the first figure is made.
"""

from lebm_kernels.figures.latents import (
    energy_curves_figure,
    latent_map_figure,
    likelihood_figure,
    pulls_figure,
    restored_figure,
    restored_images_figure,
)
from lebm_kernels.figures.manifolds import (
    horn_data_figure,
    horn_points_figure,
    manifold_figure,
)
from lebm_kernels.figures.maps import (
    cold_and_warm_figure,
    free_energy_figure,
    gradient_figure,
)
from lebm_kernels.figures.overview import overview_figure
from lebm_kernels.figures.sections import section_figure, sections_figure, surface_figure

__all__ = [
    "cold_and_warm_figure",
    "energy_curves_figure",
    "free_energy_figure",
    "gradient_figure",
    "horn_data_figure",
    "horn_points_figure",
    "latent_map_figure",
    "likelihood_figure",
    "manifold_figure",
    "overview_figure",
    "pulls_figure",
    "restored_figure",
    "restored_images_figure",
    "section_figure",
    "sections_figure",
    "surface_figure",
]
