"""The wishes of a user, the same in every widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Container, FloatSpinBox, Label, Widget
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QLabel, QSizePolicy

from mdrn_plugin.errors import MdrnError
from mdrn_plugin.options import QUALITIES, Options
from mdrn_plugin.plan_models import is_for_raw, is_refiner

if TYPE_CHECKING:
    from mdrn_plugin.viewer.preferences import Preferences

_LABEL_PX = 72

_NOISE = [("measure it", "auto"), ("given, of 255", ""), ("given, in pixel values", "dn")]
_KINDS = [
    ("find out", "auto"),
    ("the same everywhere", "gaussian"),
    ("grows with the signal", "poisson-gaussian"),
    ("alike in neighbours", "correlated"),
]
_BY_NOISE = ("fits noise and quality", "")


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
        self.kind = ComboBox(
            label="Kind",
            choices=_KINDS,
            tooltip="What the noise is like: found out, or what you know of your instrument",
        )
        self.model = ComboBox(
            label="Model",
            choices=_models,
            tooltip="A model by name, such as one that you trained on your own images",
        )
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
        self.rows = [self.noise, self.level, self.kind, self.quality, self.model, self.strength]
        for row in self.rows:
            row.changed.connect(self._on_change)
        for box in (self.noise, self.kind, self.quality, self.model):
            narrow(box)

    def _on_change(self, _: object) -> None:
        self.level.visible = self.noise.value != "auto"
        self._changed()

    def refresh(self) -> None:
        """Look for new models of the user's own."""
        self.model.reset_choices()

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
            noise_model=str(self.kind.value),
            quality=str(self.quality.value),
            model=str(self.model.value) or None,
            strength=round(float(self.strength.value), 3),
            device=self._preferences.device,
            threads=self._preferences.threads,
        )


def _models(_: object = None) -> list[tuple[str, str]]:
    """Return the choices of models: shipped ones for pictures, then the user's own."""
    from mdrn_plugin.zoo import available, shipped

    try:
        zoo = available()
    except MdrnError:  # said where the plan is made
        zoo = shipped()
    names = [d.name for d in zoo.all() if not is_for_raw(d) and not is_refiner(d)]
    return [_BY_NOISE, *((name, name) for name in names)]


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
