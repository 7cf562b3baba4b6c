"""Denoise folders: the same code as `mdrn-batch`, with a table to watch."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, Container, FileEdit, LineEdit, ProgressBar, PushButton
from qtpy.QtCore import QAbstractTableModel, Qt, QThreadPool, QTimer
from qtpy.QtWidgets import QApplication, QHeaderView, QPlainTextEdit, QTableView

from mdrn_plugin.batch import jobs as batch_jobs
from mdrn_plugin.batch import report
from mdrn_plugin.batch.run import Outcome, Settings, run
from mdrn_plugin.errors import Cancelled, MdrnError
from mdrn_plugin.formats import READABLE_SUFFIXES
from mdrn_plugin.viewer import preferences, running
from mdrn_plugin.viewer.options_form import OptionsForm, rows, text
from mdrn_plugin.viewer.running import Runner, Stop

if TYPE_CHECKING:
    import napari

    from mdrn_plugin.options import Options

_DEBOUNCE_MS = 400
_REFRESH_MS = 200
_LOOKING = "Looking for pictures …"
_FOLDER = FileDialogMode.EXISTING_DIRECTORY
_COLUMNS = ("File", "State", "Details")


@dataclasses.dataclass(frozen=True, slots=True)
class Errand:
    """What a batch is asked to do.

    Attributes
    ----------
    folder, out : str
        As typed.
    recursive, overwrite : bool
    pattern : str
    options : Options
    """

    folder: str
    out: str
    recursive: bool
    overwrite: bool
    pattern: str
    options: Options

    def collect(self) -> batch_jobs.Jobs:
        """Return the files to be done, as the command would find them."""
        return batch_jobs.collect(
            [self.folder],
            Path(self.out),
            suffixes=frozenset(READABLE_SUFFIXES),
            recursive=self.recursive,
            pattern=self.pattern,
        )

    def settings(self) -> Settings:
        """Return what the batch is run with."""
        return Settings(self.options, None, self.overwrite)

    def command(self) -> list[str]:
        """Return the command that does the same."""
        words = ["mdrn-batch", "denoise", "-o", self.out]
        words += ["--recursive"] if self.recursive else []
        words += ["--pattern", self.pattern] if self.pattern != "*" else []
        words += ["--overwrite"] if self.overwrite else []
        wishes, plain = dataclasses.asdict(self.options), _plain_options()
        for name in ("noise", "noise_model", "quality", "model", "device", "threads", "strength"):
            if wishes[name] != plain[name]:
                words += [f"--{name.replace('_', '-')}", str(wishes[name])]
        return [*words, *(["--"] if self.folder.startswith("-") else []), self.folder]


@functools.cache
def _plain_options() -> dict[str, Any]:
    from mdrn_plugin.options import Options

    return dataclasses.asdict(Options())


def as_typed(words: list[str]) -> str:
    """Return a command as it is typed into a terminal of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


class Gate:
    """The stop question of a batch that can be paused: it answers when the pause is over."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._open = threading.Event()
        self._open.set()

    def pause(self) -> None:
        """Hold the batch at its next tile."""
        self._open.clear()

    def go_on(self) -> None:
        """Let it go on."""
        self._open.set()

    def __call__(self) -> bool:
        """Return whether to stop, as soon as it is open."""
        if not self._open.is_set():
            pool = QThreadPool.globalInstance()
            pool.releaseThread()  # others may work meanwhile
            try:
                while not self._open.wait(0.05) and not self._stop():
                    pass
            finally:
                pool.reserveThread()
        return self._stop()


@dataclasses.dataclass(slots=True)
class Row:
    """One line of the table."""

    source: Path
    shown: str
    state: str = "waiting"
    details: str = ""


class Table(QAbstractTableModel):
    """The files and their states; only what changes is drawn, however many there are."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.rows: list[Row] = []
        self._places: dict[Path, int] = {}

    def fill(self, jobs: batch_jobs.Jobs, folder: str) -> None:
        """Show what will be done."""
        self.beginResetModel()
        self.rows = [
            Row(f.source, _short(f.source, folder), "failed", f.reason.removeprefix(f"{f.source}: "))
            for f in jobs.failures
        ]
        self.rows += [Row(j.source, _short(j.source, folder)) for j in jobs.jobs]
        self._places = {row.source: k for k, row in enumerate(self.rows)}
        self.endResetModel()

    def change(self, source: Path, state: str, details: str) -> int:
        """Change one line, and return its number."""
        place = self._places.get(source)
        if place is None:
            return -1
        row = self.rows[place]
        row.state, row.details = state, details
        self.dataChanged.emit(self.index(place, 1), self.index(place, 2))
        return place

    def rowCount(self, parent: Any = None) -> int:  # noqa: N802  # Qt's name
        """Return the number of files."""
        return 0 if parent is not None and parent.isValid() else len(self.rows)

    def columnCount(self, parent: Any = None) -> int:  # noqa: N802  # Qt's name
        """Return three."""
        return 0 if parent is not None and parent.isValid() else len(_COLUMNS)

    def data(self, index: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return what a cell shows."""
        row = self.rows[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return (row.shown, row.state, row.details)[index.column()]
        if role == Qt.ItemDataRole.ToolTipRole:
            return f"{row.source}\n{row.state} {row.details}".strip()
        return None

    def headerData(  # noqa: N802  # Qt's name
        self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        """Return the titles of the columns."""
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return _COLUMNS[section]
        return None


class BatchWidget(Container):
    """The batch panel.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer, optional
        Where it is docked.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer | None = None) -> None:
        super().__init__(labels=False)
        self._closed = False
        self._gate: Gate | None = None
        self._heard: deque[Outcome] = deque()
        self._outcomes: list[Outcome] = []
        self._working: tuple[Path, int, int] | None = None
        self._jobs: batch_jobs.Jobs | None = None
        self._errand: Errand | None = None  # that _jobs answers
        self._suggested = ""
        self._began = 0.0
        self._build()
        self._lister = Runner(self._listed, self._list_failed)
        self._runner = Runner(self._ran, self._run_failed)
        self._list_timer = QTimer(self.native)
        self._list_timer.setSingleShot(True)
        self._list_timer.setInterval(_DEBOUNCE_MS)
        self._list_timer.timeout.connect(self._list_files)
        self._refresh_timer = QTimer(self.native)
        self._refresh_timer.setInterval(_REFRESH_MS)
        self._refresh_timer.timeout.connect(self._refresh)
        self.start.changed.connect(self._on_start)
        self.pause.changed.connect(self._on_pause)
        self.stop.changed.connect(self._on_stop)
        self.copy.changed.connect(self._on_copy)
        self.folder.changed.connect(self._on_folder)
        for widget in (self.out, self.recursive, self.pattern, self.overwrite):
            widget.changed.connect(self._on_wishes)
        self.native.destroyed.connect(functools.partial(BatchWidget._on_destroyed, self))
        self._on_wishes()

    def _build(self) -> None:
        self.folder = FileEdit(
            label="From", mode=FileDialogMode.EXISTING_DIRECTORY, tooltip="Folder of pictures"
        )
        self.out = FileEdit(
            label="To",
            mode=FileDialogMode.EXISTING_DIRECTORY,
            tooltip="Folder for the results; made if missing",
        )
        for edit in (self.folder, self.out):
            edit.choose_btn.text = "…"
            edit.choose_btn.native.setMaximumWidth(32)
            edit.line_edit.value = ""
        self.pattern = LineEdit(label="Names", value="*", tooltip="Only files with such names, as *.tif")
        self.recursive = CheckBox(text="Enter sub-folders")
        self.overwrite = CheckBox(text="Replace results that exist")
        self.form = OptionsForm(preferences.load(), self._on_wishes)
        self.model = Table()
        self.table = QTableView()
        self.table.setModel(self.model)
        self.table.verticalHeader().hide()
        self.table.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
        self.table.setMinimumHeight(140)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        header.resizeSection(0, 130)
        header.resizeSection(1, 84)
        self.start = PushButton(text="Start")
        self.pause = PushButton(text="Pause", enabled=False)
        self.stop = PushButton(text="Stop", enabled=False)
        self.progress = ProgressBar(visible=False, max=100)
        self.status = text()
        self.command = QPlainTextEdit()
        self.command.setReadOnly(True)
        self.command.setFixedHeight(64)
        self.command.setToolTip("The same in a terminal")
        self.copy = PushButton(text="Copy this command")
        form = rows(self.folder, self.out, self.pattern)
        wishes = rows(*self.form.rows)
        buttons = Container(widgets=[self.start, self.pause, self.stop], layout="horizontal", labels=False)
        buttons.margins = (0, 0, 0, 0)
        self.extend([form, self.recursive, self.overwrite, wishes, buttons, self.progress, self.status])
        layout = self.native.layout()
        layout.addWidget(self.table, 1)
        layout.addWidget(self.command)
        self.append(self.copy)
        layout.addWidget(self.copy.native)  # below the command
        self.native.setMinimumWidth(260)

    def _on_destroyed(self, *_: object) -> None:
        """Stop everything: the viewer or the panel was closed."""
        self._closed = True
        self._lister.close()
        self._runner.close()

    # --- wishes ---------------------------------------------------------------------------------

    def errand(self) -> Errand:
        """Return what the panel says."""
        return Errand(
            folder=str(self.folder.line_edit.value).strip(),
            out=str(self.out.line_edit.value).strip(),
            recursive=bool(self.recursive.value),
            overwrite=bool(self.overwrite.value),
            pattern=str(self.pattern.value).strip() or "*",
            options=self.form.options(),
        )

    def _on_folder(self, _: object = None) -> None:
        folder = str(self.folder.line_edit.value).strip()
        if str(self.out.line_edit.value).strip() == self._suggested and folder:
            self._suggested = folder.rstrip("/\\") + "-denoised"
            self.out.line_edit.value = self._suggested
        self._on_wishes()

    def _on_wishes(self, _: object = None) -> None:
        if self._closed or not hasattr(self, "_runner") or self._runner.busy:
            return
        try:
            errand = self.errand()
        except MdrnError as error:
            self.status.value = str(error)
            return
        ready = bool(errand.folder and errand.out)
        self.start.enabled = self.copy.enabled = ready
        self.command.setPlainText(as_typed(errand.command()) if ready else "")
        if ready:
            self._list_timer.start()
        else:
            self.status.value = "Choose a folder of pictures and a folder for the results."

    def _on_copy(self, _: object = None) -> None:
        QApplication.clipboard().setText(self.command.toPlainText())

    # --- listing --------------------------------------------------------------------------------

    def _list_files(self) -> None:
        if self._closed or self._runner.busy:
            return
        errand = self.errand()
        if self._errand is not None and _finds_the_same(self._errand, errand):
            return
        self.status.value = _LOOKING
        self._lister.submit(lambda stop: (errand, errand.collect()))

    def _listed(self, found: tuple[Errand, batch_jobs.Jobs]) -> None:
        errand, jobs = found
        if self._runner.busy:
            return
        self._errand, self._jobs = errand, jobs
        self.model.fill(jobs, errand.folder)
        count = len(jobs.jobs)
        self.status.value = f"{count} picture{'' if count == 1 else 's'} found" + (
            "" if count else "; check the folder, the names, and whether to enter sub-folders"
        )

    def _list_failed(self, error: Exception) -> None:
        if not isinstance(error, Cancelled):
            self._errand = self._jobs = None
            self.status.value = running.in_words(error)

    # --- running --------------------------------------------------------------------------------

    def _on_start(self, _: object = None) -> None:
        if self._runner.busy:
            return
        try:
            errand = self.errand()
        except MdrnError as error:
            self.status.value = running.tell(error)
            return
        self._lister.stop()
        self._list_timer.stop()
        self._heard.clear()
        self._outcomes = []
        self._working = None
        self._jobs = None
        self._began = time.perf_counter()
        ready = threading.Event()

        def work_through(stop: Stop) -> None:
            self._gate = gate = Gate(stop)
            jobs = errand.collect()
            batch_jobs.prepare_output(Path(errand.out))
            self._jobs = jobs
            while not ready.wait(0.05) and not stop():
                pass  # the table shows the files first
            run(
                jobs,
                Path(errand.out),
                errand.settings(),
                told=self._heard.append,
                progress=self._note,
                stop=gate,
            )

        self._ready = ready
        self._errand = errand
        self._set_running(True)
        self._runner.submit(work_through)

    def _note(self, job: batch_jobs.Job, done: int, total: int) -> None:
        self._working = (job.source, done, total)

    def _on_pause(self, _: object = None) -> None:
        if self._gate is None or not self._runner.busy:
            return
        if self.pause.text == "Pause":
            self._gate.pause()
            self.pause.text = "Go on"
            self.status.value = "Paused."
        else:
            self._gate.go_on()
            self.pause.text = "Pause"
            self.status.value = ""

    def _on_stop(self, _: object = None) -> None:
        if self._runner.busy:
            self.status.value = "Stopping …"
            self._runner.stop()

    def _set_running(self, running_now: bool) -> None:
        self.start.enabled = not running_now
        self.pause.enabled = self.stop.enabled = running_now
        self.pause.text = "Pause"
        self.progress.visible = running_now
        self.progress.value = 0
        if running_now:
            self.status.value = _LOOKING
            self._refresh_timer.start()
        else:
            self._refresh_timer.stop()

    def _refresh(self) -> None:
        """Show what was heard since the last time."""
        jobs, errand = self._jobs, self._errand
        if jobs is None or errand is None:
            return
        if not self._ready.is_set():
            self.model.fill(jobs, errand.folder)
            self._ready.set()
        for _ in range(min(len(self._heard), 500)):  # the rest next time: the window must not wait
            outcome = self._heard.popleft()
            self._outcomes.append(outcome)
            self.model.change(outcome.source, *_told(outcome))
        share = 0.0
        if self._working is not None:
            source, done, total = self._working
            share = done / max(1, total)
            if not any(o.source == source for o in list(self._outcomes[-3:])):
                place = self.model.change(source, f"{100 * share:.0f} %", "")
                if place >= 0:
                    self.table.scrollTo(self.model.index(place, 0))
            else:
                share = 0.0
        count = max(1, len(self.model.rows))
        self.progress.value = int(100 * min(1.0, (len(self._outcomes) + share) / count))
        if self.status.value == _LOOKING:
            self.status.value = ""
        # A label would have the whole window laid out anew each time.
        self.progress.native.setFormat(f"{len(self._outcomes)} of {len(self.model.rows)} files")

    def _finish(self) -> None:
        while self._heard:
            self._refresh()
        self._refresh()
        for row in self.model.rows:
            if row.state.endswith("%"):
                self.model.change(row.source, "waiting", "")
        self._set_running(False)
        self._on_wishes()

    def _ran(self, _: None) -> None:
        self._finish()
        self._list_timer.stop()
        self.status.value = report.summary(self._outcomes, time.perf_counter() - self._began)

    def _run_failed(self, error: Exception) -> None:
        self._finish()
        self._list_timer.stop()
        if isinstance(error, Cancelled):
            self.status.value = "Stopped: what is done is kept, Start goes on from there."
        else:
            self.status.value = running.tell(error)


def _finds_the_same(a: Errand, b: Errand) -> bool:
    return (a.folder, a.out, a.recursive, a.pattern) == (b.folder, b.out, b.recursive, b.pattern)


def _short(source: Path, folder: str) -> str:
    try:
        return str(source.relative_to(folder))
    except ValueError:
        return source.name


def _told(outcome: Outcome) -> tuple[str, str]:
    """Return the state and the details of a file that ended."""
    if outcome.state != "done" or outcome.result is None:
        return outcome.state, outcome.reason.removeprefix(f"{outcome.source}: ")
    result = outcome.result
    if result.verdict == "good":
        return "done", f"{outcome.seconds:.1f} s"
    return "done", "; ".join([f"{result.verdict}", *result.reasons])
