"""Pictures of a run: masks, feature maps, similarity of patches, nearest neighbors."""

from openjepa.visualization.figures import visualize_run
from openjepa.visualization.mask_pictures import mask_figure

__all__ = ["mask_figure", "visualize_run"]
