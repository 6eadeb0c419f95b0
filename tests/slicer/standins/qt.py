"""Qt as 3D Slicer's PythonQt gives it, over PySide6: properties are attributes, signals are connected by their text.

What PythonQt forgives is an error here: an unknown signal, an unknown class in a .ui file.
"""

import sys
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

_METHODS = {"singleShot"}  # of QTimer: a property and a static method of one name


def _signal(sender: Any, signature: str) -> Any:
    name, _, types = signature.partition("(")
    meta = sender.metaObject()
    known = {bytes(meta.method(index).methodSignature().data()).decode() for index in range(meta.methodCount())}
    declared = QtCore.QMetaObject.normalizedSignature(signature)
    signal = getattr(sender, name, None)
    # signals that stand-ins define have the types of PySide6
    own = isinstance(vars(type(sender)).get(name), QtCore.Signal)
    if signal is None or (not own and bytes(declared.data()).decode() not in known):
        raise ValueError(f"{meta.className()} has no signal {signature}")
    arguments = types.rstrip(")")
    return signal if own or "," in arguments or "*" in arguments or not arguments else _overload(signal, arguments)


def _overload(signal: Any, arguments: str) -> Any:
    try:
        return signal[{"bool": bool, "int": int, "QString": str}[arguments]]
    except (KeyError, IndexError):
        return signal


def connect(self: Any, signature: str, slot: Callable[..., None]) -> bool:
    """As PythonQt's: a slot gets the arguments of the signature."""
    arguments = signature.partition("(")[2].rstrip(")")
    count = len(arguments.split(",")) if arguments else 0
    trimmed = lambda *given: slot(*given[:count])  # noqa: E731
    _signal(self, signature).connect(trimmed)
    return True


def _properties(cls: type) -> None:
    meta = cls.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        found = meta.property(index)
        name = found.name()
        if name in _METHODS:
            continue
        setter = getattr(cls, f"set{name[0].upper()}{name[1:]}", None)
        setattr(cls, name, property(lambda self, name=name: QtCore.QObject.property(self, name), setter))


def _wrapped(cls: type) -> type:
    def carry(sub: type) -> None:
        sub.connect = connect  # each class needs its own: PySide6 asks the bases last

    return type(cls.__name__, (cls,), {"connect": connect, "__init_subclass__": classmethod(carry)})


class _Foreign:
    """An object that Qt made itself: it is of a class of PySide6, whose ``connect`` is another one."""

    def __init__(self, made: QtCore.QObject) -> None:
        self._made = made

    def connect(self, signature: str, slot: Callable[..., None]) -> bool:
        return connect(self._made, signature, slot)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


def _export() -> None:
    here = sys.modules[__name__]
    for module in (QtCore, QtGui, QtNetwork, QtWidgets):
        for name in dir(module):  # its classes are made when they are asked for
            if name.startswith("_") or name.islower():
                continue
            cls = getattr(module, name)
            if isinstance(cls, type) and issubclass(cls, QtCore.QObject) and hasattr(cls, "staticMetaObject"):
                _properties(cls)
                cls = _wrapped(cls)
            setattr(here, name, cls)


_export()
QtCore.QObject.name = QtCore.QObject.objectName


class QNetworkAccessManager(QtNetwork.QNetworkAccessManager):
    """Gives replies that can be connected as PythonQt's."""

    def get(self, request: Any) -> _Foreign:
        return _Foreign(super().get(request))

    def post(self, request: Any, body: Any) -> _Foreign:
        return _Foreign(super().post(request, body))

    def put(self, request: Any, body: Any) -> _Foreign:
        return _Foreign(super().put(request, body))

    def deleteResource(self, request: Any) -> _Foreign:
        return _Foreign(super().deleteResource(request))


class QComboBox(globals()["QComboBox"]):
    """Gives a line edit that can be connected as PythonQt's."""

    def lineEdit(self) -> Any:
        return _Foreign(super().lineEdit()) if self.editable else None


class QUiLoader(QtUiTools.QUiLoader):
    """Builds every widget of a .ui file from the classes here, of ``ctk`` and of ``slicer``."""

    def createWidget(self, name: str, parent: Any = None, objectName: str = "") -> Any:
        import ctk
        import slicer

        for module in (sys.modules[__name__], ctk, slicer):
            cls = getattr(module, name, None)
            if cls is not None:
                widget = cls(parent)
                widget.setObjectName(objectName)
                return widget
        raise LookupError(f"no stand-in for the widget {name} of the .ui file")
