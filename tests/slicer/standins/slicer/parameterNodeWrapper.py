"""``@parameterNodeWrapper`` for text and nodes, over a real vtkMRMLScriptedModuleNode, and ``connectGui``."""

from typing import get_type_hints

import vtk


def parameterNodeWrapper(cls):
    """Make annotated fields properties that are kept in a node of the scene."""
    fields = get_type_hints(cls)
    defaults = {name: vars(cls).get(name) for name in fields}

    class Wrapped(_Wrapper):
        __doc__ = cls.__doc__

    for name, kind in fields.items():
        if kind is not str and not issubclass(kind, vtk.vtkObject):
            raise TypeError(f"the stand-in knows no field of type {kind}")
        setattr(Wrapped, name, _text(name, defaults[name] or "") if kind is str else _node(name))
    Wrapped._fields = fields
    Wrapped.__name__ = cls.__name__
    return Wrapped


def _text(name, default):
    def get(self):
        found = self.parameterNode.GetParameter(name)
        return found if name in self.parameterNode.GetParameterNames() else default

    return property(get, lambda self, value: self.parameterNode.SetParameter(name, value))


def _node(name):
    def put(self, node):
        self.parameterNode.SetNodeReferenceID(name, node.GetID() if node is not None else None)

    return property(lambda self: self.parameterNode.GetNodeReference(name), put)


class _Wrapper:
    def __init__(self, node):
        self.parameterNode = node
        self._connections = {}

    def __getattr__(self, name):  # AddObserver and the like
        return getattr(self.parameterNode, name)

    def connectGui(self, ui):
        tag = len(self._connections)
        pairs = [
            (_connector(widget), str(widget.property("SlicerParameterName")))
            for widget in vars(ui).values()
            if widget.property("SlicerParameterName")
        ]
        for _widget, name in pairs:
            if name not in self._fields:
                raise ValueError(f"{name} is no field of the parameter node")

        def show(*_):
            for widget, name in pairs:
                if widget.read() != getattr(self, name):
                    widget.write(getattr(self, name))

        for widget, name in pairs:
            widget.listen(lambda widget=widget, name=name: setattr(self, name, widget.read()))
        show()
        self._connections[tag] = (self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, show), pairs)
        return tag

    def disconnectGui(self, tag):
        observer, pairs = self._connections.pop(tag)
        self.parameterNode.RemoveObserver(observer)
        for widget, _name in pairs:
            widget.listen(None)


class _Connector:
    """Between a widget and a field."""

    def __init__(self, widget, signal, read, write):
        self.read, self.write, self._slot = read, write, None
        widget.connect(signal, lambda: self._slot and self._slot())

    def listen(self, slot):
        self._slot = slot


def _connector(widget):
    kind = type(widget).__name__
    if kind == "QTextEdit":
        return _Connector(widget, "textChanged()", lambda: widget.plainText, widget.setPlainText)
    if kind == "qMRMLNodeComboBox":
        return _Connector(widget, "currentNodeChanged()", widget.currentNode, widget.setCurrentNode)
    raise TypeError(f"Slicer's connectors take no {kind}, or the stand-in knows none")
