"""Train a model on one's own noisy images, without clean ones."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.types import FileDialogMode
from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, ProgressBar, PushButton, SpinBox
from napari.layers import Image
from qtpy.QtCore import QTimer

from mdrn_plugin.errors import BadOption, Cancelled
from mdrn_plugin.formats import READABLE_SUFFIXES
from mdrn_plugin.viewer import layers, preferences, running
from mdrn_plugin.viewer.options_form import narrow, rows, text
from mdrn_plugin.viewer.running import Runner

if TYPE_CHECKING:
    import napari

    from mdrn_plugin.training.selfsupervised import Learnt


_REFRESH_MS = 500
_STAGES = {"mean": "pictures", "noise": "noise", "student": "model"}


class TrainWidget(Container):
    """The training panel.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where it is docked.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(labels=False)
        self._viewer = napari_viewer
        self._share = 0.0  # of the way; written by the thread that trains
        self._stage = ""
        self.layer = ComboBox(label="Image", choices=self._images, tooltip="A noisy image to learn from")
        narrow(self.layer)
        self.folder = FileEdit(
            label="or folder", mode=FileDialogMode.EXISTING_DIRECTORY, tooltip="Noisy images of the same kind"
        )
        self.folder.choose_btn.text = "…"
        self.folder.choose_btn.native.setMaximumWidth(32)
        self.folder.line_edit.value = ""
        self.model_name = LineEdit(
            label="Name", value="my-images", tooltip="Of the new model: small letters, digits, '.', '_', '-'"
        )
        self.minutes = SpinBox(label="Minutes", value=20, min=1, max=600, tooltip="How long to train")
        self.train = PushButton(text="Train")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(visible=False, max=1000)
        self.status = text()
        self.form = rows(self.layer, self.folder, self.model_name, self.minutes)
        buttons = Container(widgets=[self.train, self.cancel], layout="horizontal", labels=False)
        buttons.margins = (0, 0, 0, 0)
        self.extend([self.form, buttons, self.progress, self.status])
        self.native.layout().addStretch()
        self.native.setMinimumWidth(260)
        self._runner = Runner(self._trained, self._failed)
        self._timer = QTimer(self.native)
        self._timer.setInterval(_REFRESH_MS)
        self._timer.timeout.connect(self._show_progress)
        self.train.changed.connect(self._on_train)
        self.cancel.changed.connect(self._on_cancel)
        # napari calls the slots of a panel that is gone: nothing here may be bound to it.
        self.native.destroyed.connect(functools.partial(Runner.close, self._runner))
        self.layer.reset_choices()

    def _images(self, _: object = None) -> list[tuple[str, object]]:
        return [(layer.name, layer) for layer in self._viewer.layers if isinstance(layer, Image)]

    def _sources(self) -> list[Any]:
        """Return what to learn from: the files of the folder if one is given, else the layer."""
        folder = str(self.folder.line_edit.value).strip()
        if folder:
            if not Path(folder).is_dir():
                raise BadOption(f"{folder}: no such folder; choose another")
            return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in READABLE_SUFFIXES)
        if self.layer.value is None:
            raise BadOption("nothing to learn from; open an image or choose a folder")
        return [layers.source_of(self.layer.value)]

    def _on_train(self, _: object = None) -> None:
        if self._runner.busy:
            return
        name, minutes = str(self.model_name.value).strip(), float(self.minutes.value)
        try:
            sources = self._sources()
        except BadOption as error:
            self.status.value = running.tell(error)
            return
        wishes = preferences.load()
        began = time.monotonic()

        def progress(stop: running.Stop, stage: str, step: int, steps: int) -> None:
            if stop():
                raise Cancelled("stopped on request")
            self._stage = f"{_STAGES[stage]}, step {step}"
            self._share = min(1.0, (time.monotonic() - began) / (60 * minutes))

        def learn(stop: running.Stop) -> Learnt:
            import mdrn_plugin
            from mdrn_plugin.engine.device import threads

            pictures = [s if isinstance(s, Path) else layers.as_picture(s) for s in sources]
            with threads(wishes.threads):
                return mdrn_plugin.train_on(
                    pictures,
                    name,
                    minutes=minutes,
                    progress=functools.partial(progress, stop),
                    device="cpu" if wishes.device == "auto" else wishes.device,
                )

        self._stage, self._share = "", 0.0
        self.status.value = ""
        self._set_running(True)
        self._runner.submit(learn)

    def _on_cancel(self, _: object = None) -> None:
        self.status.value = "Stopping …"
        self._runner.stop()

    def _set_running(self, running_now: bool) -> None:
        self.train.enabled = self.form.enabled = not running_now
        self.cancel.enabled = self.progress.visible = running_now
        if running_now:
            self._show_progress()
            self._timer.start()
        else:
            self._timer.stop()

    def _show_progress(self) -> None:
        self.progress.value = round(1000 * self._share)
        self.progress.native.setFormat(f"Learning: {self._stage}" if self._stage else "Measuring …")

    def _trained(self, learnt: Learnt) -> None:
        self._set_running(False)
        gain = learnt.sure_after - learnt.sure_before
        self.status.value = f"Learnt from noise of {learnt.sigma_255:.1f}/255. " + (
            f"Estimated to be {gain:.2f} dB better than the shipped model: choose "
            f"{self.model_name.value} as Model in Denoise."
            if learnt.kept
            else "No better than the shipped model on these images: it equals that one."
        )
        for panel in getattr(self._viewer.window, "dock_widgets", {}).values():
            if hasattr(panel, "reset_choices"):  # the new model is offered at once
                panel.reset_choices()

    def _failed(self, error: Exception) -> None:
        self._set_running(False)
        if isinstance(error, Cancelled):
            self.status.value = "Cancelled; training again with the same choices goes on from here."
        else:
            self.status.value = running.tell(error)
