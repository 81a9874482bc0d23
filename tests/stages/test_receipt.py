"""The receipt of a conversion says of every file what became of it, and notices what is not so."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import metaxpress_export as metaxpress
import numpy as np
import pytest
import tifffile
import zarr
from metaxpress_export import Shot

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.recipes.plates import ConvertRecipe, PatternRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.receipt import check_receipt, receipt_paths, write_receipt
from hpc_isl.stages.convert.stage import convert
from hpc_isl.stages.pack import pack
from hpc_isl.stages.synthetic.stage import write as write_synthetic

PATTERN = PatternRecipe(regex=r"(?P<well>\w\d\d)_w(?P<channel>\d)\.tif")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two wells of two channels as MetaXpress writes them, a thumbnail, notes, a link that leads out."""
    folder = tmp_path / "export"
    for well in ("B02", "B03"):
        for wave in (1, 2):
            metaxpress.write(folder / f"{well}_w{wave}.tif", Shot(well, wave=wave))
    tifffile.imwrite(folder / "B02_w1_thumb.tif", np.zeros((4, 4), np.uint8))
    (folder / "notes").mkdir()
    (folder / "notes" / "plate.txt").write_text("seeded on Monday\n")
    (tmp_path / "elsewhere.txt").write_text("not of the export\n")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    return folder


def converted(export: Path, **keys: object) -> Path:
    recipe = ConvertRecipe(
        source=export,
        out=export.parent / "P.zarr",
        reader="pattern",
        pattern=PATTERN,
        **keys,  # type: ignore[arg-type]
    )
    convert(recipe, Attempt(Run(export.parent / "runs" / "convert" / "c"), cpus=1))
    return recipe.out


def rows(plate: Path) -> dict[str, dict[str, str]]:
    with receipt_paths(plate)[0].open(newline="") as stream:
        return {row["file"]: row for row in csv.DictReader(stream)}


def test_every_file_of_the_export_has_one_row_and_the_receipt_is_complete(export: Path) -> None:
    plate = converted(export)
    (export / "link.txt").unlink()
    verdict = write_receipt(plate, None, 1)
    assert verdict["verdict"] == "COMPLETE"
    assert verdict["open"] == []
    files = rows(plate)
    assert set(files) == {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()}
    assert {name: row["state"] for name, row in files.items()} == {
        **dict.fromkeys(("B02_w1.tif", "B02_w2.tif", "B03_w1.tif", "B03_w2.tif"), "stored equal"),
        "B02_w1_thumb.tif": "not stored",
        "notes/plate.txt": "stored verbatim",
    }
    assert files["B03_w2.tif"]["where"] == "B03/1 2 plane 0 time 0"
    assert files["B03_w2.tif"]["decoder"] == "Pillow"
    assert files["B03_w2.tif"]["assignment"] == "independent"  # MetaSeries states the well
    assert files["B02_w1_thumb.tif"]["why"] == "thumbnail"
    assert (plate / "source" / "notes" / "plate.txt").read_text() == "seeded on Monday\n"
    assert any("thumbnail" in text for text in verdict["only the originals hold"])
    assert check_receipt(plate, 1) == []


def test_a_link_that_leads_out_is_not_followed_and_leaves_the_receipt_incomplete(export: Path) -> None:
    plate = converted(export)
    verdict = write_receipt(plate, None, 1)
    assert verdict["verdict"] == "INCOMPLETE"
    assert rows(plate)["link.txt"]["state"] == "not stored"
    assert not (plate / "source" / "link.txt").exists()


def test_a_file_whose_pixels_are_others_is_named(export: Path) -> None:
    plate = converted(export)
    shot = tifffile.imread(export / "B02_w1.tif")
    metaxpress.write(export / "B02_w1.tif", Shot("B02", wave=2))
    assert not np.array_equal(tifffile.imread(export / "B02_w1.tif"), shot)
    assert write_receipt(plate, None, 1)["verdict"] == "INCOMPLETE"
    assert rows(plate)["B02_w1.tif"]["state"] == "FAILED"
    assert rows(plate)["B02_w1.tif"]["why"] == "pixels differ from B02/1 1 plane 0 time 0"
    assert rows(plate)["B02_w2.tif"]["state"] == "stored equal"


def test_files_that_were_exchanged_are_found_by_what_they_state(export: Path) -> None:
    for wave in (1, 2):
        for well, other in (("B02", "B03"), ("B03", "B02")):
            metaxpress.write(export / f"{well}_w{wave}.tif", Shot(other, wave=wave))
    plate = converted(export)
    assert write_receipt(plate, None, 1)["verdict"] == "INCOMPLETE"
    assert rows(plate)["B02_w1.tif"]["why"] == "states well B03, and is stored as B02"


def test_a_file_with_planes_of_several_fields_is_counted_over_all_of_them(tmp_path: Path) -> None:
    """Columbus may keep planes of several fields in one file; its index names the page of each."""
    write_synthetic(tmp_path / "export", wells=2, fields=2, size=64, planes=1)
    images = tmp_path / "export" / "Images"
    index = images / "Index.idx.xml"
    names = re.findall(r"<URL>(.*?)</URL>", index.read_text("utf-8-sig"))
    pixels = [tifffile.imread(images / name) for name in names]
    text = index.read_text("utf-8-sig")
    for page, name in enumerate(names):
        text = text.replace(f"<URL>{name}</URL>", f'<URL BufferNo="{page}">all.tif</URL>')
        (images / name).unlink()
    index.write_text(text)
    for more, why in ((0, ""), (1, f"1 of its {len(names) + 1} planes are not stored")):
        stack = np.stack([*pixels, *pixels[:more]])
        tifffile.imwrite(images / "all.tif", stack, photometric="minisblack", metadata=None)
        recipe = ConvertRecipe(source=tmp_path / "export", out=tmp_path / f"P{more}.zarr", reader="harmony")
        convert(recipe, Attempt(Run(tmp_path / "runs" / "convert" / f"c{more}"), cpus=1))
        write_receipt(recipe.out, None, 1)
        row = rows(recipe.out)["Images/all.tif"]
        assert (row["state"], row["why"]) == ("FAILED" if why else "stored equal", why)
        assert row["where"].count("plane") == len(names)


def test_files_that_are_stored_resampled_are_compared_and_are_no_originals(export: Path) -> None:
    """The same resampling of the file gives the stored pixels, but these do not give the file's back."""
    (export / "link.txt").unlink()
    for well in ("B02", "B03"):
        ramp = np.add.outer(100.0 * np.arange(12), 10.0 * np.arange(16)) + ord(well[2])
        tifffile.imwrite(export / f"{well}_w2.tif", ramp.astype(np.uint16))
    plate = converted(export, resample=True)
    verdict = write_receipt(plate, None, 1)
    assert verdict["verdict"] == "INCOMPLETE"
    assert verdict["open"] == ["2 files stored resampled: the plate does not hold the pixels of the file"]
    assert "2 files: pixels before they were resampled" in verdict["only the originals hold"]
    files = rows(plate)
    assert {files[f"{well}_w2.tif"]["state"] for well in ("B02", "B03")} == {"stored resampled"}
    assert files["B02_w2.tif"]["where"] == "B02/1 2 plane 0 time 0"
    assert {files[f"{well}_w1.tif"]["state"] for well in ("B02", "B03")} == {"stored equal"}
    assert check_receipt(plate, 1) == []
    array = zarr.open_array(plate / "B" / "03" / "1" / "0", mode="r+")
    array[1, 0, 3, 4] += 1
    assert write_receipt(plate, None, 1)["verdict"] == "INCOMPLETE"
    assert rows(plate)["B03_w2.tif"]["why"] == "pixels differ from B03/1 2 plane 0 time 0"
    assert rows(plate)["B02_w2.tif"]["state"] == "stored resampled"


def test_what_was_skipped_or_not_asked_for_is_no_complete_receipt(export: Path) -> None:
    (export / "link.txt").unlink()
    plate = converted(export, fields=["B02"])
    verdict = write_receipt(plate, None, 1)
    assert verdict["verdict"] == "INCOMPLETE"
    assert verdict["open"] == ["2 files not stored: not asked for"]
    shutil.rmtree(plate)
    whole = (export / "B03_w2.tif").read_bytes()
    (export / "B03_w2.tif").write_bytes(whole[: len(whole) // 2])
    plate = converted(export, on_error="skip")
    verdict = write_receipt(plate, None, 1)
    assert verdict["verdict"] == "INCOMPLETE"
    assert any("B03/1" in text for text in verdict["open"])


def test_check_tells_what_changed_since(export: Path) -> None:
    plate = converted(export)
    write_receipt(plate, None, 1)
    array = zarr.open_array(plate / "B" / "03" / "1" / "0", mode="r+")
    array[0, 0, 3, 4] += 1
    (plate / "source" / "notes" / "plate.txt").write_text("seeded on Tuesday\n")
    assert check_receipt(plate, 1) == [
        "B03/1: its pixels are others than when the receipt was written",
        "source/notes/plate.txt: gone, or another file",
    ]


def test_a_plate_moved_with_its_receipt_still_holds(export: Path, tmp_path: Path) -> None:
    plate = converted(export)
    write_receipt(plate, None, 1)
    (tmp_path / "archive").mkdir()
    for path in (plate, *receipt_paths(plate)):
        shutil.move(path, tmp_path / "archive" / path.name)
    assert check_receipt(tmp_path / "archive" / "P.zarr", 1) == []


def test_a_packed_plate_is_checked_and_takes_no_receipt_of_its_own(export: Path) -> None:
    plate = converted(export)
    write_receipt(plate, None, 1)
    made = pack(plate, None).path
    shutil.rmtree(plate)
    assert check_receipt(made, 1) == []
    with pytest.raises(UserError, match="is packed"):
        write_receipt(made, None, 1)


def test_on_the_command_line(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export / "link.txt").unlink()
    plate = converted(export)
    assert run_command(["validate", str(plate), "--receipt"]) == 0
    assert f"{plate}: COMPLETE\n" in capsys.readouterr().out
    assert run_command(["validate", str(plate), "--check"]) == 0
    assert "the receipt holds" in capsys.readouterr().out
    (export / "B03_w2.tif").unlink()
    (export / "B03_w1.tif").unlink()
    assert run_command(["validate", str(plate), "--receipt"]) != 0


def test_a_plate_without_its_recipe_or_receipt_is_answered_with_what_to_do(export: Path) -> None:
    plate = converted(export)
    with pytest.raises(UserError, match="no receipt"):
        check_receipt(plate, 1)
    record = plate / "index" / "conversion.json"
    content = read_json(record)
    assert content
    del content["recipe"]  # as in plates that were converted before there were receipts
    record.write_text(json.dumps(content))
    with pytest.raises(UserError, match="name the run of convert: --run RUN"):
        write_receipt(plate, None, 1)
