"""Makes the picture of the panel: ``python -m tests.slicer.picture OUTPUT.png``, without a server."""

import os
import sys
import tempfile
from pathlib import Path


def main(output: str) -> None:
    """Write a picture of the panel with a made-up answer."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtCore import QSettings
    from PySide6.QtWidgets import QApplication

    application = QApplication.instance() or QApplication([])
    application.setApplicationName("slicer-picture")
    from tests.slicer.start import load_module, start

    with tempfile.TemporaryDirectory() as folder:
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        slicer = start(Path(folder))
        import numpy as np

        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CTACardio")
        slicer.util.updateVolumeFromArray(volume, np.zeros((8, 8, 8), np.int16))
        module = load_module()
        panel = module.LoRKDWidget()
        panel.setup()
        from LoRKDLib.results import Row
        from LoRKDLib.session import Server

        department = {"id": "abdomen", "name": "abdomen", "expert": True, "revision": 3, "problem": None}
        department["structures"] = ["liver", "spleen", "left kidney", "right kidney"]
        ours = {"version": "0.1.0", "device": "cuda", "departments": [department]}
        panel.session.server = Server(
            {"models": {}, "lorkd": ours, "strategies": {"uncertainty_diversity": {}}}, {"x": 1}
        )
        panel.ui.serverCombo.setEditText("http://127.0.0.1:8000")
        panel.ui.promptEdit.setPlainText("left kidney; liver\nspleeen")
        panel.session.changed()
        found = "found"
        panel.results.rows = [
            Row(("left kidney", "abdomen/0003", "168.2", found)),
            Row(("liver", "abdomen/0003", "1490.7", found)),
            Row(("spleeen", "", "", "not understood")),
            Row(("→ spleen", "", "", "click to segment this instead"), suggestion="spleen"),
        ]
        panel.results._fill()
        panel.session.say("2 of 2 structures found. Not understood: spleeen.")
        panel.parent.resize(480, 1150)
        panel.parent.show()
        application.processEvents()
        panel.parent.grab().save(output)
        panel.session.server = None
        panel.cleanup()


if __name__ == "__main__":
    main(sys.argv[1])
