"""What the panel remembers in the scene."""

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper

AUTO = "auto"


@parameterNodeWrapper
class LoRKDParameterNode:
    """Parameters of the module: they are saved with the scene.

    Attributes:
        volume: to segment.
        segmentation: that results are added to; None for a new one.
        text: the prompt.
        department: id of the department, or ``auto``; on other servers the name of a model.
        modality: of the volume: ``auto``, ``ct`` or ``mri``.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode
    text: str
    department: str = AUTO
    modality: str = AUTO
