"""Removes one protection after the other, in a copy of the tree, and sees whether its test fails.

    python tests/mutations.py [--only WORD ...]

A test that passes although what it protects is gone is no test. The rows are those of
docs/testing.md. Prints a line for each; the exit code is 1 if a test did not notice, or if the code
has changed so that a mutation no longer applies.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("mdrn_plugin", "training", "tests", "examples", "docs", "scripts")
LINKED = ("weights",)
ALONE = ("pyproject.toml", "README.md", "constraints.txt", "requirements.lock", "napari.yaml")


@dataclasses.dataclass(frozen=True, slots=True)
class Mutation:
    """One protection and who watches it."""

    row: str  # of docs/testing.md
    what: str  # was changed, in words
    file: str
    old: str
    new: str
    test: str  # arguments of pytest


MUTATIONS = (
    Mutation("1", "the ledger does not note that a file is about to be written", "mdrn_plugin/batch/run.py",
             "        ledger.begin(job, key)\n", "",
             "tests/batch/test_crash_points.py"),
    Mutation("1", "a file is written under its final name, not aside", "mdrn_plugin/files.py",
             "                os.replace(part, target)\n            else:",
             "                target.write_bytes(part.read_bytes())\n            else:",
             "tests/test_files.py -k link_is_replaced"),
    Mutation("2", "left-over files are not removed", "mdrn_plugin/batch/run.py",
             "            remove_stale_parts(folder)\n", "            pass\n",
             "tests/batch/test_crash_points.py"),
    Mutation("2", "left-overs beside the output folder stay", "mdrn_plugin/batch/jobs.py",
             "    remove_stale_parts(probe)\n", "",
             "tests/batch/test_crash_points.py"),
    Mutation("2", "whatever has our prefix is taken for ours", "mdrn_plugin/files.py",
             "if not (name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX)):",
             "if not name.startswith('.mdrn-'):",
             "tests/test_files.py -k part_of_a_killed"),
    Mutation("3", "a failed write leaves its temporary file", "mdrn_plugin/files.py",
             "                part.unlink()\n            raise", "                pass\n            raise",
             "tests/formats/test_every_format.py -k failing_encoder"),
    Mutation("3", "a finished file is not checked before it takes its name", "mdrn_plugin/files.py",
             "                    check(part)\n", "                    pass\n",
             "tests/formats/test_every_format.py -k stops_early"),
    Mutation("3", "a full disk is a failure of one file only", "mdrn_plugin/batch/run.py",
             "except (Cancelled, OutputUnusable) as error:", "except Cancelled as error:",
             "tests/batch/test_run.py -k fills_up"),
    Mutation("4", "the output folder may be the input folder", "mdrn_plugin/batch/jobs.py",
             "if Path(os.path.realpath(path)) == out:", "if False:",
             "tests/batch/test_jobs.py -k output_equal"),
    Mutation("4", "outputs inside the input tree are read again", "mdrn_plugin/batch/jobs.py",
             "if recursive and Path(os.path.realpath(path)) != out:", "if recursive:",
             "tests/batch/test_jobs.py -k inside_the_input"),
    Mutation("4", "a folder that cannot be written is noticed late", "mdrn_plugin/batch/jobs.py",
             "not os.access(folder, os.W_OK | os.X_OK)", "False",
             "tests/batch/test_jobs.py -k somebody_else"),
    Mutation("5", "two inputs may have one output", "mdrn_plugin/batch/jobs.py",
             "        if other is not job:\n", "        if False:\n",
             "tests/batch/test_jobs.py -k 'one_output or case_folding'"),
    Mutation("6", "the temporary name contains the final one", "mdrn_plugin/files.py",
             "{secrets.token_hex(6)}{PART_SUFFIX}", "{'n' * 230}{secrets.token_hex(6)}{PART_SUFFIX}",
             "tests/test_files.py -k all_kinds"),
    Mutation("6", "names that are not UTF-8 are printed as they are", "mdrn_plugin/batch/html_report.py",
             '"utf-8", "backslashreplace"', '"utf-8"',
             "tests/batch/test_html_report.py -k loads_nothing"),
    Mutation("7", "links to folders are entered", "mdrn_plugin/batch/jobs.py",
             "entry.is_dir(follow_symlinks=False)", "entry.is_dir()",
             "tests/batch/test_jobs.py -k links"),
    Mutation("8", "a file in work is not claimed", "mdrn_plugin/batch/run.py",
             "        if not ledger.claim(job):", "        if False:",
             "tests/batch/test_run.py -k 'two_at_once or waits_for'"),
    Mutation("8", "the claim of a dead run is never lifted", "mdrn_plugin/batch/ledger.py",
             "            return _lock(self._descriptor, self._place_of_lock(job), take=True)\n",
             "            import os as o\n"
             "            p = self._file.with_name('c' + str(self._place_of_lock(job)))\n"
             "            if p.exists() and p.read_text() != str(o.getpid()): return False\n"
             "            p.write_text(str(o.getpid()))\n            return True\n",
             "tests/batch/test_ledger.py -k killed_process"),
    Mutation("9", "an input that changes while it is read is not noticed", "mdrn_plugin/batch/run.py",
             "if _fingerprint(task.job.source, self._digest) != task.key:", "if False:",
             "tests/batch/test_run.py -k changed_while"),
    Mutation("10", "what a format cannot hold is found when it is written", "mdrn_plugin/pipeline.py",
             "    formats.check_can_hold(\n        target,", "    (lambda *a, **k: None)(\n        target,",
             "tests/test_cli.py -k cannot_hold_a_picture"),
    Mutation("11", "a JPEG without end mark is read", "mdrn_plugin/formats/photo.py",
             'if not re.search(rb"\\xff\\xd9", data[at:]):', "if False:",
             "tests/formats/test_photo.py tests/formats/test_every_format.py -k truncated"),
    Mutation("11", "pages of a TIFF are not counted", "mdrn_plugin/formats/tiff.py",
             "    _check_pages(name, one, offsets, planes, kind, path)\n", "",
             "tests/formats -k 'truncated or zeros or beyond'"),
    Mutation("12", "pipes and devices are opened", "mdrn_plugin/formats/sniffing.py",
             "if not stat.S_ISREG(mode):", "if False:",
             "tests/formats/test_every_format.py -k pipe_folder"),
    Mutation("13", "what a decoder raises gets out", "mdrn_plugin/formats/__init__.py",
             "    except Exception as error:\n        reason", "    except OSError as error:\n        reason",
             "tests/formats/test_every_format.py -k 'flipped or whatever'"),
    Mutation("13", "nothing limits the time of a decoder", "mdrn_plugin/formats/isolated.py",
             "        signal.setitimer(signal.ITIMER_REAL, seconds)\n", "        pass\n",
             "tests/formats/test_isolated.py -k harm_is"),
    Mutation("13", "a helper outlives its parent", "mdrn_plugin/formats/isolated.py",
             "ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)", "pass",
             "tests/formats/test_isolated.py -k parent_is_killed"),
    Mutation("14", "pixels are not limited", "mdrn_plugin/formats/limits.py",
             "    if width * height * planes > limit:", "    if False:",
             "tests/formats -k 'limit_on_pixels or bomb or huge'"),
    Mutation("14", "nothing limits the memory of a decoder", "mdrn_plugin/formats/isolated.py",
             "        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))\n", "        pass\n",
             "tests/formats/test_isolated.py -k memory"),
    Mutation("15", "OME-TIFF may point anywhere", "mdrn_plugin/formats/ome.py",
             "        if os.path.dirname(target) != folder:", "        if False:",
             "tests/formats/test_tiff.py -k ome"),
    Mutation("15", "a missing part of OME-TIFF is overlooked", "mdrn_plugin/formats/ome.py",
             "        if not os.path.isfile(target):", "        if False:",
             "tests/formats/test_tiff.py -k ome"),
    Mutation("16", "missing chunks are not counted", "mdrn_plugin/formats/zarr.py",
             "    return max(0, total - there)\n", "    return 0\n",
             "tests/formats/test_zarr.py -k missing_chunk"),
    Mutation("16", "what blosc is given is not looked at", "mdrn_plugin/formats/zarr.py",
             "                self._files.check(boxes(place, self.shape))\n", "                pass\n",
             "tests/formats/test_zarr.py -k chunk_is_an_error"),
    Mutation("16", "any version is read", "mdrn_plugin/formats/zarr.py",
             'if version != ("0.5" if zarr_format == 3 else "0.4"):', "if False:",
             "tests/formats/test_zarr.py -k wrong_metadata"),
    Mutation("16", "any codec is run", "mdrn_plugin/formats/zarr.py",
             "not in _CODECS:", "in ():",
             "tests/formats/test_zarr.py -k runs_code"),
    Mutation("1", "a store is written under its final name", "mdrn_plugin/files.py",
             "            swap_in(part, target, overwrite=overwrite)\n",
             "            shutil.copytree(part, target, dirs_exist_ok=True)\n",
             "tests/formats/test_zarr.py -k every_touch -m slow"),
    Mutation("volumes", "blocks do not begin at shards", "mdrn_plugin/batch/volume_plan.py",
             "least = math.lcm(shard, multiple) // shard", "least = 1",
             "tests/batch/test_blocks.py -k whole_shards"),
    Mutation("volumes", "a block reads nothing around itself", "mdrn_plugin/engine/tiles.py",
             "first, last = max(0, start - halo), min(length, end + halo)", "first, last = start, end",
             "tests/engine/test_windows.py -k equals_the_whole_plane"),
    Mutation("volumes", "damaged files of a killed process are kept", "mdrn_plugin/formats/zarr_write.py",
             "        file.unlink(missing_ok=True)\n", "        pass\n",
             "tests/batch/test_blocks.py -k traces_of_a_crash"),
    Mutation("17", "a folder that cannot be listed ends the run", "mdrn_plugin/batch/jobs.py",
             "    except OSError as error:\n        failures.append(Failure(folder",
             "    except ValueError as error:\n        failures.append(Failure(folder",
             "tests/batch/test_jobs.py -k 'somebody_else or unreadable'"),
    Mutation("18", "integers wrap", "mdrn_plugin/engine/run.py",
             "stored = np.clip(rounded, low, high)", "stored = rounded",
             "tests/engine -k 'saturates or dtype'"),
    Mutation("19", "Pillow decodes PNG: 16 bit of colour become 8", "mdrn_plugin/formats/png.py",
             "    pixels: NDArray[Any] = imagecodecs.png_decode(data)\n",
             "    import io\n    from PIL import Image\n    pixels: NDArray[Any] = "
             "np.asarray(Image.open(io.BytesIO(data)))\n",
             "tests/formats/test_png.py -k 16_bit"),
    Mutation("20", "pixels that are not finite reach the network", "mdrn_plugin/engine/run.py",
             'odd = ~np.isfinite(x_HWC) if values.dtype.kind == "f" else None', "odd = None",
             "tests/engine/test_run.py -k not_finite"),
    Mutation("22", "tiles have no halo", "mdrn_plugin/plan.py",
             "halo=_halo((descriptor, *coarse), stride, exact=options.exact),", "halo=0,",
             "tests/test_pixels.py tests/test_pipeline.py -k 'seam or tiled'"),
    Mutation("23", "the result is 2 % too dark", "mdrn_plugin/engine/run.py",
             "            return result.astype(dtype)\n",
             "            return (result * 0.98).astype(dtype)\n",
             "tests/test_pixels.py -k mean_is"),
    Mutation("24", "every verdict is good", "mdrn_plugin/result.py",
             "    reasons = list(dict.fromkeys(reasons))\n", "    reasons = []\n",
             "tests/test_pipeline.py -k judge"),
    Mutation("25", "provenance has a clock", "mdrn_plugin/pipeline.py",
             '        "program": "mdrn-plugin",', '        "program": f"mdrn-plugin {time.time()}",',
             "tests/test_pipeline.py tests/test_cli.py -k 'provenance or killed'"),
    Mutation("26", "the chunks of a PNG are not copied", "mdrn_plugin/formats/png.py",
             "        if kind in _PIXEL_CHUNKS:", "        if True:",
             "tests/formats/test_png.py -k 'chunk or text'"),
    Mutation("28", "running out of memory ends the run", "mdrn_plugin/engine/run.py",
             "            if not is_out_of_memory(error):", "            if True:",
             "tests/engine -k out_of_memory"),
    Mutation("29", "SIGTERM is told as SIGINT", "mdrn_plugin/cli.py",
             "return EXIT_TERMINATED if", "return EXIT_INTERRUPTED if",
             "tests/test_cli.py -k interrupted_run"),
    Mutation("29", "a closed pipe is a fault", "mdrn_plugin/cli.py",
             "        except BrokenPipeError as error:\n            raise _ReaderGone from error",
             "        except ZeroDivisionError as error:\n            raise _ReaderGone from error",
             "tests/test_cli.py -k reader_of"),
    Mutation("30", "what was done with other settings counts as done", "mdrn_plugin/batch/ledger.py",
             "if record is None or record.key != _tuple(key):", "if record is None:",
             "tests/batch/test_ledger.py tests/test_cli.py -k 'no_longer or other_settings'"),
    Mutation("30", "--verify does not look at the content", "mdrn_plugin/batch/run.py",
             "elif self._settings.verify and", "elif False and",
             "tests/batch/test_run.py -k flipped_bit"),
    Mutation("30", "--verify does not read back", "mdrn_plugin/formats/__init__.py",
             "            if verify:\n", "            if False:\n",
             "tests/formats/test_every_format.py tests/batch/test_run.py "
             "-k 'verify_finds or verify_decodes'"),
    Mutation("31", "failures end in 0", "mdrn_plugin/batch/run.py",
             "return EXIT_SOME_FAILED if tally.failed else EXIT_OK", "return EXIT_OK",
             "tests/batch/test_run.py tests/test_cli.py -k 'any_number or foreign'"),
    Mutation("32", "weights of any content are loaded", "mdrn_plugin/zoo.py",
             "    if found != sha256:", "    if False:",
             "tests/test_zoo.py"),
    Mutation("32", "tensors are not compared", "mdrn_plugin/zoo.py",
             "    check_tensors(source, tensors, network.state_dict())\n", "",
             "tests/test_zoo.py"),
    Mutation("33", "progress is drawn without a terminal", "mdrn_plugin/cli.py",
             "sys.stderr.isatty() and not quiet", "not quiet",
             "tests/test_cli.py -k without_home"),
    Mutation("34", "a descriptor stays open for every file", "mdrn_plugin/files.py",
             "    finally:\n        os.close(descriptor)\n\n\ndef _is_about",
             "    finally:\n        pass\n\n\ndef _is_about",
             "tests/batch/test_endurance.py -k 'flat_memory and 300'"),
    Mutation("34", "the result of every file is kept", "mdrn_plugin/batch/report.py",
             "        self.bug = self.bug or outcome.bug\n",
             "        self.bug = self.bug or outcome.bug\n"
             "        Tally.__doc__ = (Tally.__doc__ or '') + 'x' * 400_000\n",
             "tests/batch/test_endurance.py -k 'flat_memory and 300'"),
    Mutation("report", "names are not escaped", "mdrn_plugin/batch/html_report.py",
             "    return html.escape(str(value))", "    return str(value)",
             "tests/batch/test_html_report.py -k loads_nothing"),
    Mutation("report", "all pictures are alive from the start", "mdrn_plugin/batch/html_report.py",
             "<template>{inside}</template>", "{inside}",
             "tests/batch/test_html_report.py -k 'browser or bounded'"),
    Mutation("report", "the slider does nothing", "mdrn_plugin/batch/html_report.py",
             'box.style.setProperty("--at", event.target.value + "%");', "",
             "tests/batch/test_html_report.py -k browser"),
    Mutation("35", "a float copy of the whole plane is kept", "mdrn_plugin/engine/run.py",
             "    height, width = source_HWC.shape[:2]\n    while True:",
             "    height, width = source_HWC.shape[:2]\n"
             "    kept = np.asarray(source_HWC).astype(np.float64)\n    while True:",
             "tests/batch/test_scale.py"),
    Mutation("series", "every picture has its own noise", "mdrn_plugin/batch/run.py",
             "            profiles=profiles,\n", "            profiles=None,\n",
             "tests/batch/test_run.py -k same_noise"),
    Mutation("series", "the last choice of a series holds, not the first", "mdrn_plugin/batch/ledger.py",
             "self._series.setdefault(name, record)", "self._series[name] = record",
             "tests/batch/test_ledger.py -k first_choice"),
    Mutation("watch", "a file is taken while it is written", "mdrn_plugin/batch/watch.py",
             "is_being_written(job.source)):", "False):",
             "tests/batch/test_watch.py -k holds_open"),
    Mutation("config", "unknown names are ignored", "mdrn_plugin/cli.py",
             "        if name not in names:\n", "        if name not in names:\n            continue\n",
             "tests/test_cli.py -k that_is_wrong"),
    Mutation("fuzz", "files that are not reported go unnoticed", "tests/fuzz.py",
             '                wrong.append(f"{path.name}: was not reported")\n', "",
             "tests/test_fuzz.py -k planted"),
    Mutation("streamed", "what is streamed is sampled elsewhere", "mdrn_plugin/picture.py",
             "ahead if ahead >= 0 else ahead % step", "max(ahead, 0)",
             "tests/formats/test_streamed.py -k sample_of"),
    Mutation("streamed", "samples beside those that are written are lost", "mdrn_plugin/formats/streamed.py",
             "            whole[..., asked[-1]] = kept\n",
             "            whole[...] = 0\n            whole[..., asked[-1]] = kept\n",
             "tests/formats/test_streamed.py -k scratch_is_written"),
    Mutation("streamed", "a damaged strip is taken for a bug", "mdrn_plugin/formats/streamed.py",
             "        except Exception as error:\n            reason",
             "        except KeyError as error:\n            reason",
             "tests/formats/test_streamed.py -k damaged"),
    Mutation("streamed", "any decoder is let at it", "mdrn_plugin/formats/streamed.py",
             "not in segments.LOSSLESS | {_OLD_DEFLATE}", "== 0",
             "tests/formats/test_streamed.py -k changed_is_read"),
    Mutation("flat", "texture is taken for noise", "mdrn_plugin/engine/flat_parts.py",
             "sure = float(np.clip((agreement - low) / (high - low), 0, 1))", "sure = 1.0",
             "tests/engine/test_flat_parts.py -k without_colour"),
    Mutation("flat", "strips do not see their neighbours", "mdrn_plugin/engine/flat_parts.py",
             "reach = _radius(_FINE_PX)", "reach = 0",
             "tests/engine/test_flat_parts.py -k seams"),
    Mutation("flat", "models that are told the noise are corrected too", "mdrn_plugin/engine/planes.py",
             "if not plan.steps[picture.channel_of(index)].blind:", "if False:",
             "tests/engine/test_flat_parts.py -k left_alone"),
    Mutation("self", "noise of any levels is learnt from", "training/selfsupervised.py",
             "if least < _ONE_LEVEL:", "if False:",
             "tests/training/test_selfsupervised.py -k not_of_one_level"),
    Mutation("self", "a texture that keeps noise is refused", "training/selfsupervised.py",
             "_differences(y).flatten()", "(y - network(y)).flatten()",
             "tests/training/test_selfsupervised.py -k single_noisy"),
    Mutation("self", "recorrupted pictures keep their noise in common", "training/selfsupervised.py",
             "noisy - added / _ALPHA", "noisy",
             "tests/training/test_selfsupervised.py -k independent_noise"),
    Mutation("self", "worse results teach too", "training/selfsupervised.py",
             "if dbsn is not None and (teachers < before or references):", "if dbsn is not None:",
             "tests/training/test_selfsupervised.py -k teach_nothing"),
    Mutation("self", "a blind-spot network with nothing to teach goes on", "training/stage.py",
             "self.given_up = self.hopeless(step / total, best)", "pass",
             "tests/training/test_selfsupervised.py -k given_up"),
    Mutation("self", "last weights are kept though worse than at first", "training/stage.py",
             "step == total and score < first", "step == total",
             "tests/training/test_selfsupervised.py -k last_weights"),
    Mutation("outputs", "what teachers saw turned is not turned back", "training/outputs.py",
             "inverse_dihedral(teacher(*turned), turn)", "teacher(*turned)",
             "tests/training/test_outputs.py -k turned_back"),
    Mutation("outputs", "one teacher for all levels", "training/outputs.py",
             "mine = taught_by == k", "mine = taught_by <= k",
             "tests/training/test_outputs.py -k model_of_its_band"),
    Mutation("range", "noise hides that white is 1", "mdrn_plugin/picture.py",
             "if _UNIT_INTERVAL[0] <= quiet_low and quiet_high <= _UNIT_INTERVAL[1]:", "if False:",
             "tests/test_picture.py -k strong_noise"),
    Mutation("range", "any floats within the noisy interval have white 1", "mdrn_plugin/picture.py",
             "if _UNIT_INTERVAL[0] <= quiet_low and quiet_high <= _UNIT_INTERVAL[1]:", "if True:",
             "tests/test_picture.py -k strong_noise"),
    Mutation("repeats", "a pixel's own value is in its mean", "mdrn_plugin/networks/non_local.py",
             "if (not dy and not dx) or", "if False or",
             "tests/networks/test_non_local.py -k own_value"),
    Mutation("repeats", "what lies outside the picture counts", "mdrn_plugin/networks/non_local.py",
             "slice(max(0, -dy), rows - max(0, dy))", "slice(0, rows)",
             "tests/networks/test_non_local.py -k their_definition"),
    Mutation("repeats", "the halo leaves out the search", "mdrn_plugin/networks/non_local.py",
             "self.halo = _margin(wide) + 2", "self.halo = 2",
             "tests/networks/test_non_local.py -k all_that_a_correction"),
    Mutation("repeats", "wide patches are compared by the result", "mdrn_plugin/networks/non_local.py",
             "[(noisy_CHW, _WIDE_RADIUS", "[(base_CHW, _WIDE_RADIUS",
             "tests/networks/test_non_local.py -k fine_wall"),
    Mutation("repeats", "the halo is that of small patches", "mdrn_plugin/networks/non_local.py",
             "self.halo = _margin(wide)", "self.halo = _margin(False)",
             "tests/networks/test_non_local.py -k all_that_a_correction"),
    Mutation("repeats", "weights become denormal numbers", "mdrn_plugin/networks/non_local.py",
             "exponent < _LEAST_EXPONENT, 0", "exponent < -80, 0",
             "tests/networks/test_non_local.py -k denormal"),
    Mutation("repeats", "correlated noise is looked through for what repeats", "mdrn_plugin/plan.py",
             "None if route.spectra else refining_model(", "refining_model(",
             "tests/test_plan.py -k left_aside"),
    Mutation("repeats", "results are cut without the means that belong to them", "training/refining.py",
             "stacked = torch.cat([cut for cut, _ in cuts])",
             "stacked = torch.cat([cut for cut, _ in cuts])\n"
             "        stacked[:, 3:] = stacked[:, 3:].flip(-1)",
             "tests/training/test_refining.py -k same_place"),
    Mutation("repeats", "a resumed run begins with an empty pool", "training/refining.py",
             "for number in numbers:\n", "for number in numbers[-1:]:\n",
             "tests/training/test_refining.py -k seed_and_step"),
    Mutation("repeats", "what is taken more often counts as much", "training/refining.py",
             "weights[k] * measure(", "measure(",
             "tests/training/test_refining.py -k weighed"),
    Mutation("plan", "a tier's only band serves every noise", "mdrn_plugin/plan_models.py",
             "d.colours == colours and d.tier in tiers]", "d.colours == colours and d.tier == wanted]",
             "tests/test_plan.py -k tier_without_the_band"),
)  # fmt: skip


def try_one(mutation: Mutation, tree: Path) -> str:
    """Return "caught", or what is wrong."""
    target = tree / mutation.file
    sound = target.read_text()
    if sound.count(mutation.old) < 1:
        return "NO LONGER APPLIES"
    target.write_text(sound.replace(mutation.old, mutation.new))
    try:
        done = subprocess.run(
            f"{sys.executable} -m pytest -q -x -p no:cacheprovider -m 'not slow' {mutation.test}",
            shell=True,
            cwd=tree,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=600,
        )
    except subprocess.TimeoutExpired:
        return "caught (hangs)"
    finally:
        target.write_text(sound)
    if done.returncode == 1 and " failed" in done.stdout:
        failed = [
            line.split(" ")[1].rpartition("::")[2]
            for line in done.stdout.splitlines()
            if line.startswith("FAILED")
        ]
        return f"caught by {failed[0]}" if failed else "caught"
    if done.returncode == 0:
        return "NOT NOTICED"
    return f"THE TEST DID NOT RUN (pytest ended with {done.returncode}): {done.stdout[-300:]}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="rows, or words of what is changed")
    wish = parser.parse_args()
    chosen = [m for m in MUTATIONS if not wish.only or any(w == m.row or w in m.what for w in wish.only)]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for part in COPIED:
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in LINKED:
            (tree / part).symlink_to(ROOT / part)
        for part in ALONE:
            shutil.copy(ROOT / part, tree / part)
        # An installed package has it there (pyproject.toml); else the tests would import that of ROOT.
        (tree / "mdrn_plugin" / "training").symlink_to(tree / "training")
        for mutation in chosen:
            end = try_one(mutation, tree)
            missed += not end.startswith("caught")
            print(f"{mutation.row:>7}  {mutation.what}: {end}", flush=True)
    print(f"{len(chosen)} mutations, {len(chosen) - missed} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
