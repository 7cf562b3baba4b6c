"""Denoise the layer on the screen: look, preview, run, cancel."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, FloatSlider, ProgressBar, PushButton
from napari.layers import Image
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QAbstractSpinBox

from mdrn_plugin.errors import Cancelled, MdrnError
from mdrn_plugin.viewer import layers, preferences, running, work
from mdrn_plugin.viewer.options_form import OptionsForm, narrow, rows, text
from mdrn_plugin.viewer.running import Gauge, Runner

if TYPE_CHECKING:
    import napari

    from mdrn_plugin.options import Options
    from mdrn_plugin.viewer.layers import Part, Source

_DEBOUNCE_MS = 250
_REFRESH_MS = 200
_PREVIEW_NAME = "MDRN preview"
_PREVIEW_MARK = "mdrn_preview"

CURRENT, ALL, CHOSEN = "current plane", "all planes", "chosen axes"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """What a run needs to put its result on the screen, as it was when Run was pressed."""

    name: str
    attributes: dict[str, Any]
    contrast_range: Any
    rgb: bool


class DenoiseWidget(Container):
    """The denoise panel.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where it is docked.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(labels=False)
        self._viewer = napari_viewer
        # viewer.camera until napari 0.8.
        scene = getattr(napari_viewer, "scene", None)
        self._camera = scene.camera if scene is not None else napari_viewer.camera
        self._closed = False
        self._finding: work.Finding | None = None
        self._finding_of: Any = None  # the layer
        self._shown: work.Preview | None = None
        self._shown_source: Source | None = None
        self._preview_layer: Any = None
        self._followed: Any = None  # the layer whose events are connected
        self._gauge = Gauge()
        self._build()
        self._looker = Runner(self._looked, self._look_failed)
        self._previewer = Runner(self._previewed, self._preview_failed)
        self._runner = Runner(self._ran, self._run_failed)
        self._look_timer = self._timer(self._look)
        self._preview_timer = self._timer(self._preview)
        # Looks whether the view has moved: the canvas tells of a new size only after it is drawn.
        self._view_timer = QTimer(self.native)
        self._view_timer.setInterval(2 * _DEBOUNCE_MS)
        self._view_timer.timeout.connect(self._follow_view)
        self._gauge_timer = QTimer(self.native)
        self._gauge_timer.setInterval(_REFRESH_MS)
        self._gauge_timer.timeout.connect(self._show_progress)
        self._connect()
        active = napari_viewer.layers.selection.active
        self._refresh_choices()
        if isinstance(active, Image):
            self.layer.value = active
        self._on_layer()

    # --- building -------------------------------------------------------------------------------

    def _build(self) -> None:
        self.layer = ComboBox(label="Image", choices=self._images, nullable=False, tooltip="What to denoise")
        narrow(self.layer)
        self.form = OptionsForm(preferences.load(), self._on_options)
        self.apply = ComboBox(
            label="Apply to",
            choices=[CURRENT, ALL, CHOSEN],
            value=ALL,
            tooltip="Which planes of a stack: the one you see, all, or all along the axes that you choose",
        )
        self.axes: Container[Any] = Container(label="Along", layout="horizontal", labels=False)
        self.axes.margins = (0, 0, 0, 0)
        self.finding = text()
        self.preview = CheckBox(text="Preview", tooltip="Denoise what is on the screen, at once")
        self.hold = PushButton(text="Hold to see before", tooltip="Shows the image as it was while pressed")
        self.split = FloatSlider(
            label="Split",
            value=0.5,
            min=0,
            max=1,
            step=0.01,
            tooltip="Left of the line: before",
        )
        self.residual = CheckBox(text="Add what was removed as a layer", tooltip="The residual")
        self.run = PushButton(text="Run")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(visible=False, max=100)
        self.status = text()
        self.verdict = text()
        form = rows(self.layer, *self.form.rows, self.apply, self.axes)
        for readout in self.split.native.findChildren(QAbstractSpinBox):
            readout.setParent(None)  # magicgui hides it, napari's theme draws a rest of it
        looking = Container(widgets=[self.preview, self.hold], layout="horizontal", labels=False)
        self.comparing = rows(self.split)
        buttons = Container(widgets=[self.run, self.cancel], layout="horizontal", labels=False)
        looking.margins = buttons.margins = (0, 0, 0, 0)
        self.extend(
            [
                form,
                self.finding,
                looking,
                self.comparing,
                self.residual,
                buttons,
                self.progress,
                self.status,
                self.verdict,
            ]
        )
        self.native.layout().addStretch()
        self.native.setMinimumWidth(260)
        self._show_preview_tools(False)

    def _timer(self, action: Any) -> QTimer:
        timer = QTimer(self.native)
        timer.setSingleShot(True)
        timer.setInterval(_DEBOUNCE_MS)
        timer.timeout.connect(action)
        return timer

    def _connect(self) -> None:
        self.layer.changed.connect(self._on_layer)
        self.apply.changed.connect(self._on_apply)
        self.preview.changed.connect(self._on_preview)
        self.split.changed.connect(self._show_split)
        self.run.changed.connect(self._on_run)
        self.cancel.changed.connect(self._on_cancel)
        self.hold.native.pressed.connect(lambda: self._hide_preview(True))
        self.hold.native.released.connect(lambda: self._hide_preview(False))
        events = self._viewer.layers.events
        events.inserted.connect(self._refresh_choices)
        events.removed.connect(self._refresh_choices)
        self._viewer.dims.events.current_step.connect(self._on_view)
        self._viewer.dims.events.ndisplay.connect(self._on_view)
        self._camera.events.zoom.connect(self._on_view)
        self._camera.events.center.connect(self._on_view)
        self.native.destroyed.connect(functools.partial(DenoiseWidget._on_destroyed, self))

    def _on_destroyed(self, *_: object) -> None:
        """Stop everything: the viewer or the panel was closed."""
        if self._closed:
            return
        self._closed = True
        for runner in (self._looker, self._previewer, self._runner):
            runner.close()
        viewer = self._viewer
        for emitter, slot in (
            (viewer.layers.events.inserted, self._refresh_choices),
            (viewer.layers.events.removed, self._refresh_choices),
            (viewer.dims.events.current_step, self._on_view),
            (viewer.dims.events.ndisplay, self._on_view),
            (self._camera.events.zoom, self._on_view),
            (self._camera.events.center, self._on_view),
        ):
            emitter.disconnect(slot)
        self._follow(None)
        self._remove_preview()

    # --- what is chosen -------------------------------------------------------------------------

    def _images(self, _: object = None) -> list[tuple[str, Any]]:
        return [
            (layer.name, layer)
            for layer in self._viewer.layers
            if isinstance(layer, Image) and _PREVIEW_MARK not in layer.metadata
        ]

    def _refresh_choices(self, _: object = None) -> None:
        if self._closed:
            return
        before = self.layer.value
        self.layer.reset_choices()
        if self.layer.value is not before:
            self._on_layer()
        self._enable()

    def reset_choices(self, *_: object) -> None:
        """Take layers and models anew; napari calls this."""
        self._refresh_choices()
        self.form.refresh()

    def wishes(self) -> Options:
        """Return what the panel says."""
        return self.form.options()

    def part(self, layer: Any, source: Source) -> Part:
        """Return which planes the panel says."""
        if self.apply.value == ALL:
            along = source.leading
        elif self.apply.value == CURRENT:
            along = ""
        else:
            along = "".join(str(box.name) for box in self.axes if box.value)
        return layers.part_of(source, self._position(layer, source), along)

    def _position(self, layer: Any, source: Source) -> dict[str, int]:
        return layers.position_in(layer, source, self._viewer.dims.point)

    def _on_layer(self, _: object = None) -> None:
        layer = self.layer.value
        self._follow(layer)
        self._finding = None
        self._build_axes(layer)
        self._enable()
        if layer is None:
            self.finding.value = "Open an image first. Labels, shapes and points cannot be denoised."
            self.preview.value = False
            return
        self.finding.value = "Measuring the noise …"
        self.verdict.value = ""
        self._on_options()

    def _follow(self, layer: Any) -> None:
        """Hear when the pixels or the name of the chosen layer change."""
        if self._followed is layer:
            return
        for one, connect in ((self._followed, False), (layer, True)):
            if one is not None:
                for emitter, slot in (
                    (one.events.data, self._on_layer),
                    (one.events.name, self._refresh_choices),
                ):
                    (emitter.connect if connect else emitter.disconnect)(slot)
        self._followed = layer

    def _build_axes(self, layer: Any) -> None:
        self.axes.clear()
        leading = layers.source_of(layer).leading if layer is not None else ""
        for axis in leading:
            self.axes.append(CheckBox(name=axis, text=_AXIS_WORDS[axis], value=True))
        stack = bool(leading)
        self.apply.visible = stack
        self._on_apply()

    def _on_apply(self, _: object = None) -> None:
        self.axes.visible = self.apply.value == CHOSEN and len(self.axes) > 0

    def _on_options(self) -> None:
        self._look_timer.start()

    def _enable(self) -> None:
        there = self.layer.value is not None
        self.run.enabled = there and not self._runner_busy()
        self.preview.enabled = there and not self._runner_busy()

    def _runner_busy(self) -> bool:
        return hasattr(self, "_runner") and self._runner.busy

    # --- looking --------------------------------------------------------------------------------

    def _look(self) -> None:
        layer = self.layer.value
        if self._closed or layer is None:
            return
        try:
            options = self.wishes()
        except MdrnError as error:
            self.finding.value = str(error)
            return
        source, known = layers.source_of(layer), self._finding
        self._looker.submit(lambda stop: (layer, work.examine(source, options, known, stop)))

    def _looked(self, found: tuple[Any, work.Finding]) -> None:
        layer, finding = found
        if layer is not self.layer.value:
            return
        self._finding = finding
        self.finding.value = finding.text
        if self.preview.value:
            self._preview()

    def _look_failed(self, error: Exception) -> None:
        if not isinstance(error, Cancelled):
            self._finding = None
            self.finding.value = running.in_words(error)

    # --- preview --------------------------------------------------------------------------------

    def _on_preview(self, wanted: bool) -> None:
        self._show_preview_tools(bool(wanted))
        if wanted:
            self._view_timer.start()
            self._preview()
        else:
            self._view_timer.stop()
            self._previewer.stop()
            self._remove_preview()
            if not self._runner_busy():
                self.status.value = ""

    def _show_preview_tools(self, visible: bool) -> None:
        self.comparing.visible = visible
        self.hold.visible = visible

    def _on_view(self, _: object = None) -> None:
        if not self._closed and self.preview.value:
            self._preview_timer.start()

    def _follow_view(self) -> None:
        layer, shown, source = self.layer.value, self._shown, self._shown_source
        if layer is None or shown is None or source is None or self._previewer.busy:
            return
        if self.view(layer, source) != shown.view:
            self._preview()

    def _preview(self) -> None:
        layer, finding = self.layer.value, self._finding
        if self._closed or not self.preview.value or layer is None or finding is None:
            return
        view = self.view(layer, finding.source)
        if view is None:
            self._remove_preview()
            self.status.value = "Nothing of this image is on the screen: no preview."
            return
        if self._shown is None:
            self.status.value = "Preview …"
        self._previewer.submit(lambda stop: (layer, finding, work.preview(finding, view, stop)))

    def view(self, layer: Any, source: Source) -> work.View | None:
        """Return the visible rectangle of a layer, no larger than a preview may be."""
        part = layers.part_of(source, self._position(layer, source), "")
        height, width = source.length("Y"), source.length("X")
        whole = work.View(part, 0, 0, height, width)
        axes = source.axes.replace("S", "")
        lead = layer.ndim - len(axes)
        displayed = [a - (self._viewer.dims.ndim - layer.ndim) for a in self._viewer.dims.displayed]
        spatial = [axes.index("Y") + lead, axes.index("X") + lead]
        corners = np.asarray(layer.corner_pixels)
        flat = len(displayed) == 2 and sorted(displayed) == sorted(spatial)
        if flat and corners[:, spatial].any():
            factors = np.asarray(layer.downsample_factors)[layer.data_level] if layer.multiscale else None
            low, high = (
                c[spatial] * (factors[spatial] if factors is not None else 1)
                for c in (corners[0], corners[1] + 1)
            )
            whole = work.View(
                part, math.floor(low[0]), math.floor(low[1]), math.ceil(high[0]), math.ceil(high[1])
            )
        view = work.limited(whole, height, width)
        return view if min(view.shape) > 1 or min(height, width) == 1 else None

    def _previewed(self, made: tuple[Any, work.Finding, work.Preview]) -> None:
        layer, finding, shown = made
        if layer is not self.layer.value or not self.preview.value:
            return
        self._shown, self._shown_source = shown, finding.source
        view = shown.view
        self.status.value = f"Preview of {view.shape[1]} × {view.shape[0]} pixels at full resolution" + (
            ", one pass of eight" if shown.single_pass else ""
        )
        self._show_split()

    def _preview_failed(self, error: Exception) -> None:
        if isinstance(error, Cancelled):
            return
        self.preview.value = False
        self.status.value = running.tell(error)

    def _show_split(self, _: object = None) -> None:
        layer, shown, source = self.layer.value, self._shown, self._shown_source
        if self._closed or shown is None or source is None or layer is None or not self.preview.value:
            return
        pixel = self._camera.zoom * float(np.min(np.abs(layer.scale)))
        pixels = work.split(
            shown, float(self.split.value), source.axes, max(1, math.ceil(1 / pixel)), _white(layer, shown)
        )
        pixels = layers.unmerged(pixels, source, shown.view.part)
        offset = list(layers.offset_of(layer, source, shown.view.part))
        axes = source.axes.replace("S", "")
        lead = layer.ndim - len(axes)
        offset[axes.index("Y") + lead] = shown.view.top
        offset[axes.index("X") + lead] = shown.view.left
        translate = layers.moved(layer, offset)
        old = self._preview_layer
        if old is not None and old in self._viewer.layers and old.data.shape == pixels.shape:
            old.data = pixels
            if not np.array_equal(old.translate, translate):
                old.translate = translate
            return
        self._remove_preview(forget=False)
        attributes = layers.attributes(layer, source, shown.view.part, name=_PREVIEW_NAME)
        attributes.update(translate=translate, metadata={_PREVIEW_MARK: True})
        self._preview_layer = self._add(pixels, attributes, multiscale=False)

    def _hide_preview(self, hidden: bool) -> None:
        if self._preview_layer is not None and self._preview_layer in self._viewer.layers:
            self._preview_layer.visible = not hidden

    def _remove_preview(self, *, forget: bool = True) -> None:
        if forget:
            self._shown = self._shown_source = None
        old, self._preview_layer = self._preview_layer, None
        if old is not None and old in self._viewer.layers:
            chosen = set(self._viewer.layers.selection)
            self._viewer.layers.remove(old)
            self._viewer.layers.selection = chosen - {old}

    def _add(self, pixels: Any, attributes: dict[str, Any], *, multiscale: bool, select: bool = False) -> Any:
        state = {**attributes, "multiscale": multiscale}
        if not multiscale and state.get("locked_data_level") is not None:
            state["locked_data_level"] = None
        chosen = set(self._viewer.layers.selection)
        new = self._viewer.add_layer(Image(pixels, **state))
        if not select:
            self._viewer.layers.selection = chosen
        return new

    # --- running --------------------------------------------------------------------------------

    def _on_run(self, _: object = None) -> None:
        layer = self.layer.value
        if layer is None or self._runner.busy:
            return
        try:
            options = self.wishes()
        except MdrnError as error:
            self.status.value = running.tell(error)
            return
        source, known = layers.source_of(layer), self._finding
        part = self.part(layer, source)
        order = _Order(
            name=layer.name,
            attributes=layers.attributes(layer, source, part, name=f"{layer.name} denoised"),
            contrast_range=tuple(layer.contrast_limits_range),
            rgb=bool(layer.rgb),
        )
        shapes = [level.shape for level in layer.data] if layer.multiscale else None
        residual = bool(self.residual.value)
        gauge = self._gauge = Gauge()

        def work_through(stop: running.Stop) -> tuple[_Order, work.Finding, work.Made]:
            finding = work.examine(source, options, known, stop)
            made = work.run(
                finding, options, part, shapes=shapes, residual=residual, progress=gauge, stop=stop
            )
            return order, finding, made

        self.preview.value = False
        self.verdict.value = ""
        self._set_running(True)
        self._runner.submit(work_through)
        self._enable()

    def _on_cancel(self, _: object = None) -> None:
        if self._runner.busy:
            self.status.value = "Stopping …"
            self._gauge_timer.stop()
            self._runner.stop()

    def _set_running(self, running_now: bool) -> None:
        self.cancel.enabled = running_now
        self.progress.visible = running_now
        self.progress.value = 0
        if running_now:
            self.status.value = ""
            self._show_progress()
            self._gauge_timer.start()
        else:
            self._gauge_timer.stop()
            self._enable()

    def _show_progress(self) -> None:
        gauge = self._gauge
        if gauge.total:
            self.progress.value = 100 * gauge.done // gauge.total
        # A label would have the whole window laid out anew, 30 ms each time.
        self.progress.native.setFormat(gauge.text())

    def _ran(self, done: tuple[_Order, work.Finding, work.Made]) -> None:
        order, finding, made = done
        self._set_running(False)
        self._finding = finding if finding.source.pixels is self._pixels_now() else self._finding
        attributes = dict(order.attributes)
        attributes["metadata"] = {**attributes["metadata"], layers.PROVENANCE: made.provenance}
        multiscale = bool(attributes["multiscale"])
        new = self._add(made.levels if multiscale else made.levels[0], attributes, multiscale=multiscale)
        new.contrast_limits_range = order.contrast_range
        new.contrast_limits = attributes["contrast_limits"]
        if made.residual is not None:
            self._add_residual(order, made)
        self.status.value = f"Done in {running.duration(made.result.seconds)}: {new.name}"
        self.verdict.value = work.verdict_in_words(made.result)

    def _pixels_now(self) -> Any:
        layer = self.layer.value
        return layers.source_of(layer).pixels if layer is not None else None

    def _add_residual(self, order: _Order, made: work.Made) -> None:
        attributes = dict(order.attributes)
        attributes.update(name=f"{order.name} removed", visible=False, blending="translucent", gamma=1.0)
        reach = work.RESIDUAL_REACH * made.spread or 1.0
        pixels = made.residual
        if order.rgb:
            attributes["metadata"] = {"mdrn_residual": f"0.5 + (before - after) / {2 * reach:g}"}
        else:
            attributes.update(contrast_limits=(-reach, reach), colormap="gray")
            attributes["metadata"] = {"mdrn_residual": "before - after"}
        self._add(pixels, attributes, multiscale=False)

    def _run_failed(self, error: Exception) -> None:
        self._set_running(False)
        if isinstance(error, Cancelled):
            self.status.value = "Cancelled; nothing was changed."
        else:
            self.status.value = running.tell(error)


_AXIS_WORDS = {"T": "time", "Z": "depth", "C": "channel"}


def _white(layer: Any, shown: work.Preview) -> float:
    """Return the value of the split line."""
    if layer.rgb:
        return float(np.iinfo(shown.after.dtype).max) if shown.after.dtype.kind in "ui" else 1.0
    top = float(layer.contrast_limits[1])
    if shown.after.dtype.kind in "ui":
        top = min(top, float(np.iinfo(shown.after.dtype).max))
    return top
