"""The wishes of a user, the same in every widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Container, FloatSpinBox, Label, Widget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QLabel, QSizePolicy

from mdrn_plugin.plan import QUALITIES, Options

if TYPE_CHECKING:
    from mdrn_plugin.viewer.preferences import Preferences

_LABEL_PX = 72

_NOISE = [("measure it", "auto"), ("given, of 255", ""), ("given, in pixel values", "dn")]


class OptionsForm:
    """The rows for noise, quality and strength; to be put into a container.

    Parameters
    ----------
    preferences : Preferences
        What the rows start with; device and threads are taken from there as they are.
    changed : callable
        Called after every change.
    """

    def __init__(self, preferences: Preferences, changed: Callable[[], None]) -> None:
        self._preferences = preferences
        self._changed = changed
        self.noise = ComboBox(
            label="Noise",
            choices=_NOISE,
            tooltip="How strong the noise is: measured in the image, or a standard deviation you know",
        )
        self.level = FloatSpinBox(
            label="Level", value=25, min=0, max=1e9, step=1, tooltip="Standard deviation of the noise"
        )
        self.level.visible = False
        self.quality = ComboBox(
            label="Quality",
            choices=list(QUALITIES),
            value=preferences.quality,
            tooltip="Larger models take longer; best+ averages eight symmetries",
        )
        self.strength = FloatSpinBox(
            label="Strength",
            value=1,
            min=0,
            max=1,
            step=0.1,
            tooltip="0 keeps the image, 1 the result",
        )
        self.rows = [self.noise, self.level, self.quality, self.strength]
        for row in self.rows:
            row.changed.connect(self._on_change)
        for box in (self.noise, self.quality):
            narrow(box)

    def _on_change(self, _: object) -> None:
        self.level.visible = self.noise.value != "auto"
        self._changed()

    def options(self) -> Options:
        """Return what the rows say.

        Raises
        ------
        BadOption
            As `Options`.
        """
        kind = str(self.noise.value)
        return Options(
            noise=kind if kind == "auto" else f"{self.level.value:g}{kind}",
            quality=str(self.quality.value),
            strength=round(float(self.strength.value), 3),
            device=self._preferences.device,
            threads=self._preferences.threads,
        )


def narrow(box: ComboBox) -> None:
    """Let a box be narrower than its longest choice: layer names can be long."""
    native: Any = box.native
    native.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    native.setMinimumContentsLength(8)


def rows(*widgets: Widget) -> Container[Widget]:
    """Return a container of labelled rows, the labels of equal width."""
    container: Container[Widget] = Container()
    container.margins = (0, 0, 0, 0)
    container.extend(widgets)
    layout: Any = container.native.layout()
    for k in range(layout.count()):
        row = layout.itemAt(k).widget().layout()
        label = row.itemAt(0).widget() if row is not None and row.count() else None
        # magicgui measures the labels in another font than napari's.
        if isinstance(label, QLabel):
            label.setFixedWidth(_LABEL_PX)
    return container


def text() -> Label:
    """Return a label that breaks its lines and asks for no width."""
    label = Label(value="")
    native: Any = label.native
    native.setWordWrap(True)
    native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    policy = native.sizePolicy()
    policy.setHorizontalPolicy(QSizePolicy.Policy.Ignored)
    native.setSizePolicy(policy)
    return label
