"""Train a model on one's own noisy images; disabled until self-supervised training is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magicgui.types import FileDialogMode
from magicgui.widgets import ComboBox, Container, FileEdit, PushButton, SpinBox
from napari.layers import Image

from mdrn_plugin.viewer.options_form import narrow, rows, text

if TYPE_CHECKING:
    import napari

REASON = (
    "Not available yet: training on your own noisy images, without clean ones, is still to come. "
    "The models that are shipped need no training; try them with Denoise first."
)


class TrainWidget(Container):
    """The training panel: what it will ask for, and why it cannot be used yet.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer, optional
        Where it is docked.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer | None = None) -> None:
        super().__init__(labels=False)
        self._viewer = napari_viewer
        self.reason = text()
        self.reason.value = REASON
        self.layer = ComboBox(label="Image", choices=self._images, tooltip="A noisy image to learn from")
        narrow(self.layer)
        self.folder = FileEdit(
            label="or folder", mode=FileDialogMode.EXISTING_DIRECTORY, tooltip="Noisy images of the same kind"
        )
        self.folder.choose_btn.text = "…"
        self.folder.choose_btn.native.setMaximumWidth(32)
        self.folder.line_edit.value = ""
        self.minutes = SpinBox(label="Minutes", value=20, min=1, max=600, tooltip="How long to train")
        self.train = PushButton(text="Train")
        self.form = rows(self.layer, self.folder, self.minutes)
        self.extend([self.reason, self.form, self.train])
        self.native.layout().addStretch()
        self.native.setMinimumWidth(260)
        self.form.enabled = self.train.enabled = False
        if napari_viewer is not None:
            self.layer.reset_choices()

    def _images(self, _: object = None) -> list[tuple[str, object]]:
        layers = self._viewer.layers if self._viewer is not None else ()
        return [(layer.name, layer) for layer in layers if isinstance(layer, Image)]
