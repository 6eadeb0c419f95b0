"""The section Annotate: the next case, and what is submitted for the server to learn from."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from LoRKDLib.client import Answer, Failure
from LoRKDLib.multipart import Part, composed, file_name
from LoRKDLib.parameters import AUTO
from LoRKDLib.segments import label_array
from LoRKDLib.session import Session, client_id
from LoRKDLib.volumes import IMAGE, SERVER, read_volume, write_volume

READ = (".nii.gz", ".nii", ".nrrd", ".mha")


class AnnotateSection:
    """Gets cases and submits segmentations."""

    def __init__(self, ui: Any, session: Session) -> None:
        self.ui, self.session = ui, session
        self._working = False
        ui.nextButton.connect("clicked()", self.next)
        ui.submitButton.connect("clicked()", self.submit)
        session.listeners.append(self.update)

    def next(self) -> None:
        """Load the case that the server wants annotated next."""
        department = self.session.parameters.department
        asked = {"client_id": client_id()}
        if self.session.server.ours and department != AUTO:
            asked["department"] = department
        self._begin(self.ui.caseLabel, _("Asking for a case …"))
        self.session.client.post(
            f"/activelearning/{self.ui.strategyCombo.currentText}", asked, self._chosen, self._not_chosen
        )

    def _chosen(self, answer: Answer) -> None:
        told = answer.json()
        image = told.get("id")
        if not image:
            self._end(self.ui.caseLabel, _("Every image has a label, or somebody who works on it."))
            return
        reason = (told.get("lorkd") or {}).get("reason", "")
        self.ui.caseLabel.setText(_("Loading {image} …").format(image=image))
        self.session.client.get(
            "/datastore/image",
            lambda file: self._loaded(file, image, reason),
            self._not_chosen,
            seconds=0,
            image=image,
        )

    def _loaded(self, answer: Answer, image: str, reason: str) -> None:
        given = file_name(answer.disposition).lower()
        suffix = next((each for each in READ if given.endswith(each)), ".nii.gz")
        folder = Path(tempfile.mkdtemp(prefix="lorkd-", dir=slicer.app.temporaryPath))
        try:
            path = folder / f"image{suffix}"
            path.write_bytes(answer.body)
            volume = read_volume(path, image)
        except OSError:
            self._end(self.ui.caseLabel, _("The image {image} can't be read here.").format(image=image))
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        volume.SetAttribute(IMAGE, image)
        volume.SetAttribute(SERVER, self.session.client.address)
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        if self.session.parameters is not None:
            self.session.parameters.volume = volume
            self.session.parameters.segmentation = None
        self._end(self.ui.caseLabel, f"{image}. {reason}".strip())

    def _not_chosen(self, failure: Failure) -> None:
        self._end(self.ui.caseLabel, failure.text)

    def submit(self) -> None:
        """Send the segmentation as the final label of its image; an image that the server lacks is sent first."""
        parameters, client = self.session.parameters, self.session.client
        volume, node = parameters.volume, parameters.segmentation
        there = volume.GetAttribute(SERVER) == client.address and volume.GetAttribute(IMAGE)
        if not there and not self.session.consent():
            self.ui.submitLabel.setText(_("Nothing was sent."))
            return
        try:
            array, names = label_array(node, volume)
            overlap = any(len(values) > 1 for values in names.values())
            if overlap and not self.session.server.ours:
                raise ValueError(_("Segments overlap, and this server keeps no overlaps; remove them first."))
            label = self._file(volume, array)
            form = composed({"params": json.dumps(described(names, overlap=overlap))}, {"label": label})
            image = composed({}, {"file": self._file(volume, None)}) if not there else None
        except (OSError, ValueError) as error:
            self.ui.submitLabel.setText(str(error))
            return
        self._begin(self.ui.submitLabel, _("Sending …"))

        def save(name: str) -> None:
            client.put_form(
                "/datastore/label",
                form,
                lambda _answer: self._submitted(name, sorted(names)),
                lambda failure: self._end(self.ui.submitLabel, failure.text),
                image=name,
                tag="final",
            )

        def added(answer: Answer) -> None:
            name = str(answer.json().get("image") or "")
            if slicer.mrmlScene.GetNodeByID(volume.GetID()) is volume:
                volume.SetAttribute(IMAGE, name)
                volume.SetAttribute(SERVER, client.address)
            save(name)

        if image is None:
            save(volume.GetAttribute(IMAGE))
        else:
            client.put_form(
                "/datastore/image", image, added, lambda failure: self._end(self.ui.submitLabel, failure.text)
            )

    def _submitted(self, image: str, names: list[str]) -> None:
        text = _("Submitted for {image}: {names}.").format(image=image, names=", ".join(names))
        self._end(self.ui.submitLabel, text)
        self.session.refresh()

    def _file(self, volume: Any, array: Any) -> Part:
        """Give the volume as a file, or an array on its grid."""
        folder = Path(tempfile.mkdtemp(prefix="lorkd-", dir=slicer.app.temporaryPath))
        path = folder / "file.nrrd"
        try:
            if array is None:
                write_volume(volume, path)
                return Part(f"{volume.GetName()}.nrrd", path.read_bytes())
            labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "LoRKD labels")
            try:
                labels.CopyOrientation(volume)
                slicer.util.updateVolumeFromArray(labels, array)
                write_volume(labels, path)
            finally:
                slicer.mrmlScene.RemoveNode(labels)
            return Part("label.nrrd", path.read_bytes())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _begin(self, label: Any, text: str) -> None:
        self._working = True
        label.setText(text)
        self.update()

    def _end(self, label: Any, text: str) -> None:
        self._working = False
        label.setText(text)
        self.update()

    def update(self) -> None:
        """Show strategies and what can be done now."""
        server, parameters = self.session.server, self.session.parameters
        if server is None:
            self._working = False
        else:
            combo, known = self.ui.strategyCombo, list(server.info.get("strategies") or {})
            first = "uncertainty_diversity"
            known = sorted(known, key=lambda name: (name != first, name))
            if [combo.itemText(index) for index in range(combo.count)] != known:
                combo.clear()
                combo.addItems(known)
        ready = server is not None and parameters is not None and not self._working
        self.ui.nextButton.setEnabled(ready and self.ui.strategyCombo.count > 0)
        drawn = ready and parameters.volume is not None and parameters.segmentation is not None
        self.ui.submitButton.setEnabled(drawn)


def described(names: dict[str, list[int]], *, overlap: bool) -> dict[str, Any]:
    """Give what a server is told of a label map's values: MONAI Label's list, or with overlaps values of each name."""
    told: dict[str, Any] = {"client_id": client_id()}
    if overlap:
        return {**told, "params": {"label_names": names}}
    listed = sorted((values[0], name) for name, values in names.items())
    return {**told, "label_info": [{"name": name, "idx": value} for value, name in listed]}
