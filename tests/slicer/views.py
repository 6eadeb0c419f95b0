"""Slicer's own views without a screen: its slice logic and displayable managers, in VTK windows of EGL."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

ORIENTATIONS = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}
COLORS = {"Red": "#f34a33", "Green": "#6eb04b", "Yellow": "#edd54c", "1": "#7474b5"}
"""Of the bars over the views."""
LEVEL = 8
"""Between the brightnesses of pictures: 32 of them look alike and make small files."""
SLICE_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLVolumeGlyphSliceDisplayableManager")
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


class FourUp:
    """Slicer's layout of three slices and a 3D view; the module's jumps and layers act on them as in Slicer.

    Args:
        slicer: with a scene.
    """

    def __init__(self, slicer: Any) -> None:
        import vtk

        self._slicer = slicer
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(slicer.mrmlScene)
        self._logics, self._images, self._windows, self._kept, self._nodes = {}, {}, {}, [], []
        for name, orientation in ORIENTATIONS.items():
            self._add_slice(name, orientation)
        self._add_three_d()
        logics = vtk.vtkCollection()
        for logic in self._logics.values():
            logics.AddItem(logic)
        slicer.app.layoutManager = lambda: SimpleNamespace(mrmlSliceLogics=lambda: logics)

    def _add_slice(self, name: str, orientation: str) -> None:
        import vtk

        logic = self._slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(self._slicer.app.applicationLogic())
        logic.SetMRMLScene(self._slicer.mrmlScene)
        node = logic.AddSliceNode(name)
        node.SetOrientation(orientation)
        self._nodes += [node, logic.GetSliceCompositeNode()]
        self._logics[name] = logic
        self._images[name] = mapper = vtk.vtkImageMapper()
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        image = vtk.vtkActor2D()
        image.SetMapper(mapper)
        image.GetProperty().SetDisplayLocationToBackground()
        self._window(name, node, SLICE_MANAGERS).AddViewProp(image)

    def _add_three_d(self) -> None:
        node = self._slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode", "View1")
        node.SetLayoutName("1")
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
        self._nodes.append(node)
        self._window("1", node, THREE_D_MANAGERS)

    def _window(self, name: str, node: Any, managers: tuple[str, ...]) -> Any:
        import vtk

        window, renderer, interactor = vtk.vtkRenderWindow(), vtk.vtkRenderer(), vtk.vtkRenderWindowInteractor()
        window.SetOffScreenRendering(True)
        window.AddRenderer(renderer)
        interactor.SetRenderWindow(window)
        group = self._slicer.vtkMRMLDisplayableManagerGroup()
        group.SetRenderer(renderer)
        for each in managers:
            manager = getattr(self._slicer, each)()
            manager.SetMRMLApplicationLogic(self._slicer.app.applicationLogic())
            group.AddDisplayableManager(manager)
        group.SetMRMLDisplayableNode(node)
        self._windows[name] = window
        self._kept += [interactor, group]
        return renderer

    def draw(self, segmentation: Any, names: Sequence[str], size: tuple[int, int]) -> Any:
        """Draw slices through the middle of segments, and all surfaces from the front.

        Args:
            segmentation: node of the scene.
            names: of segments.
            size: width and height of one view, in pixels.

        Returns:
            A ``QImage`` of all four.
        """
        from PySide6.QtGui import QColor, QImage, QPainter

        middle = self._middle(segmentation, names)
        for window in self._windows.values():
            window.SetSize(*size)
        for name, logic in self._logics.items():
            logic.GetSliceNode().SetDimensions(*size, 1)
            logic.FitSliceToBackground(*size)
            logic.GetSliceNode().JumpSliceByOffsetting(*middle)
            self._images[name].SetInputConnection(logic.GetImageDataConnection())  # another for other layers
        self._windows["1"].GetRenderers().GetFirstRenderer().ResetCamera()
        width, height = size
        picture = QImage(2 * width, 2 * height, QImage.Format.Format_RGB32)
        painter = QPainter(picture)
        for place, name in enumerate(("Red", "1", "Green", "Yellow")):
            x, y = place % 2 * width, place // 2 * height
            painter.drawImage(x, y, _pixels(self._windows[name]))
            painter.fillRect(x, y, width, 4, QColor(COLORS[name]))
        painter.end()
        return picture

    @staticmethod
    def _middle(segmentation: Any, names: Sequence[str]) -> list[float]:
        keys = [segmentation.GetSegmentation().GetSegmentIdBySegmentName(name) for name in names]
        centers = [segmentation.GetSegmentCenterRAS(key) for key in keys]
        return [sum(center[axis] for center in centers) / len(centers) for axis in range(3)]

    def close(self) -> None:
        """Take the views' nodes out of the scene again."""
        self._slicer.app.layoutManager = lambda: None
        for kept in self._kept:
            if kept.IsA("vtkMRMLDisplayableManagerGroup"):
                kept.SetMRMLDisplayableNode(None)
        for window in self._windows.values():
            window.Finalize()
        for logic in self._logics.values():
            logic.SetMRMLScene(None)
        for node in self._nodes:
            self._slicer.mrmlScene.RemoveNode(node)


def _pixels(window: Any) -> Any:
    """What a window shows, as a ``QImage``."""
    import numpy as np
    import vtk
    from PySide6.QtGui import QImage
    from vtk.util.numpy_support import vtk_to_numpy

    window.Render()
    reader = vtk.vtkWindowToImageFilter()
    reader.SetInput(window)
    reader.ReadFrontBufferOff()
    reader.ShouldRerenderOff()
    reader.Update()
    image = reader.GetOutput()
    width, height, _depth = image.GetDimensions()
    rows = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1]
    rows = rows // LEVEL * LEVEL + LEVEL // 2
    return QImage(np.ascontiguousarray(rows).data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
