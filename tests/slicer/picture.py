"""Pictures of the panel beside Slicer's views: ``python -m tests.slicer.picture`` plays test_story.py and keeps them.

They lie in ``slicer_module/Screenshots`` then, or in the folder that is named.
"""

import os
import sys
from pathlib import Path
from typing import Any

PICTURES = "LORKD_PICTURES"
"""Variable of the environment: the folder for the pictures."""
ROOT = Path(__file__).parents[2]
PANEL_WIDTH, VIEW_WIDTH, LEAST_HEIGHT = 460, 420, 760


class Pictures:
    """Writes what a user sees: the panel and four views.

    Args:
        slicer: with a scene.
        folder: made if it is missing.
    """

    def __init__(self, slicer: Any, folder: Path) -> None:
        from tests.slicer.views import FourUp

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._views = folder, FourUp(slicer)

    def write(self, name: str, panel: Any, segmentation: Any, segments: tuple[str, ...]) -> None:
        """Write ``name``.png, with the slices through the middle of segments."""
        from PySide6.QtGui import QImage, QPainter

        widget = panel.parent
        widget.resize(PANEL_WIDTH, max(LEAST_HEIGHT, widget.layout().totalHeightForWidth(PANEL_WIDTH)))
        own = widget.grab().toImage()
        views = self._views.draw(segmentation, segments, (VIEW_WIDTH, own.height() // 2))
        whole = QImage(own.width() + views.width(), views.height(), QImage.Format.Format_RGB32)
        painter = QPainter(whole)
        painter.drawImage(0, 0, own)
        painter.drawImage(own.width(), 0, views)
        painter.end()
        assert whole.save(str(self._folder / f"{name}.png"), "PNG", 0)

    def close(self) -> None:
        """Take the views away."""
        self._views.close()


def main(folder: str = str(ROOT / "slicer_module" / "Screenshots")) -> int:
    """Play the story; gives pytest's status."""
    import pytest

    os.environ[PICTURES] = str(Path(folder).absolute())
    return pytest.main(["-q", str(Path(__file__).with_name("test_story.py"))])


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
