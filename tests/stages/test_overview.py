"""A look at a plate is one small file that needs nothing else, and shows each field as the plate holds it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from browser import seen
from other_plates import snapshot, write_other
from PIL import Image
from used_plates import computed

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, Problem, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, open_plate, write_field
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.stages.adopt import stage as adopt
from hpc_isl.stages.overview import mosaics
from hpc_isl.stages.overview.figures import field_figures, heat_maps
from hpc_isl.stages.overview.page import SCRIPT
from hpc_isl.stages.overview.stage import overview

CHANNELS = (Channel("Bright <i>field", False), Channel("DAPI & more"))
WELLS = ("B02", "B03", "C03")
FIELDS = 3
EMPTY, LACKING = FieldKey("B03", "2"), FieldKey("C03", "3")


def pixels(number: int) -> np.ndarray:
    """(1, 2, 2, 300, 200): blocks of 40 pixels; in the stain their brightness is that of the field."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 2, (2, 2, 8, 5)).repeat(40, 2).repeat(40, 3)[..., :300, :200]
    stack = blocks * np.array([900, 1000 + 300 * number])[:, None, None, None]
    return (stack + rng.normal(500, 10, stack.shape))[None].astype(np.uint16)


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three wells of three fields; one field of noise alone, and one without the stain's second plane."""
    path = tmp_path_factory.mktemp("plates") / "P01.zarr"
    keys = [FieldKey(well, str(n)) for well in WELLS for n in range(1, FIELDS + 1)]
    fields = [Field(key, (1, 2, 2, 300, 200), "uint16") for key in keys]
    plate = Plate("P01", *layout(set(WELLS)), CHANNELS, tuple(fields), 0.5)
    for number, field in enumerate(fields):
        image = pixels(number)
        if field.key == EMPTY:
            image = np.random.default_rng(1).normal(500, 10, image.shape).astype(np.uint16)
        places = [(0, c, z) for c in (0, 1) for z in (0, 1) if (field.key, c, z) != (LACKING, 1, 1)]
        write_field(path, plate, field, image, measure(image, places), CodecRecipe(chunk=64))
    rows = {"B03": {"treatment": "</script><b>"}}
    return finalise(path, plate, rows, [Problem(FieldKey("B02", "9"), "its file is damaged")])


@pytest.fixture(scope="module")
def page(plate: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "P01.html"
    made = overview(plate.path, out)
    assert (made.page, made.fields, made.edge) == (out, 9, 256)
    return out


LOOK = """(() => {
  document.querySelectorAll("button[data-well]")[%d].dispatchEvent(new MouseEvent("click",
    {bubbles: true, detail: 1, ...place(%d)}));
  function place(n) {
    const box = document.querySelectorAll("button[data-well]")[%d].getBoundingClientRect();
    return {clientX: box.left + box.width * (n %% 2 + .5) / 2,
            clientY: box.top + box.height * (Math.floor(n / 2) + .5) / 2};
  }
  const look = document.getElementById("look"), means = () => [...look.querySelectorAll("canvas")].map(c => {
    const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    return data.filter((_, i) => i %% 4 === 0).reduce((a, b) => a + b) / (data.length / 4);
  });
  const found = {
    open: look.open, title: look.querySelector("h3").textContent, text: look.querySelector("p").textContent,
    captions: [...look.querySelectorAll("figcaption")].map(c => c.textContent), means: means(),
    images: document.images.length, bold: look.querySelectorAll("b").length,
    decoded: [...document.images].filter(i => i.complete && i.naturalWidth === 512).length,
    asked: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
    wide: document.documentElement.scrollWidth - window.innerWidth,
    columns: [...document.querySelectorAll("section#images-0 .sheet > span")].map(s => s.textContent)
      .join("|"),
  };
  document.getElementById("next").click();
  return {...found, next: look.querySelector("h3").textContent};
})()"""


@pytest.mark.parametrize("width", [390, 1400])
def test_a_click_shows_the_field_that_was_clicked_in_every_channel(
    page: Path, plate: Index, tmp_path: Path, width: int
) -> None:
    found = seen(page, LOOK % (1, 1, 1), tmp_path, width)  # the second field of the second well
    assert found["open"]
    assert (found["title"], found["next"]) == ("B03/2", "B03/3")
    assert "empty: Bright <i>field, DAPI & more" in found["text"]
    assert "treatment: </script><b>" in found["text"]
    assert found["bold"] == 0
    assert [line.split(": ")[0] for line in found["captions"]] == ["Bright <i>field", "DAPI & more"]
    assert found["images"] == found["decoded"] == 6
    assert found["asked"] == 0
    assert found["wide"] <= 0
    assert found["columns"] == "|2|3|B|C|"
    brighter = seen(page, LOOK % (5, 2, 5), tmp_path, width)  # the last field, by the sheet of the stain
    assert (brighter["title"], brighter["next"]) == ("C03/3", "B02/1")
    assert "1 plane is missing" in brighter["text"]
    assert brighter["means"][1] > found["means"][1] + 20


def test_a_click_needs_no_browser_of_these_years() -> None:
    """Iterators have `map` since Firefox 131 and Safari 18.4 alone, and institutes keep older ones."""
    assert not re.search(r"\.(values|keys|entries)\(\)\.", SCRIPT)


def test_thumbnails_are_the_fields_on_one_scale_of_counts(page: Path, plate: Index) -> None:
    sources = re.findall(r'data:image/jpeg;base64,([^"]+)"[^>]*data-channel="DAPI', page.read_text())
    assert len(sources) == len(WELLS)
    low, high = mosaics.contrast(plate, [field.key for field in plate.plate.fields], 1)
    for well, source in enumerate(sources):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))), float)
        assert shown.shape == (512, 512)
        for number in range(FIELDS):
            at = well * FIELDS + number
            if plate.plate.fields[at].key in (EMPTY, LACKING):
                continue
            brightest = pixels(at)[0, 1].max(0)
            y, x = 256 * (number // 2), 256 * (number % 2)
            own = shown[y : y + 256, x : x + 256]
            expected = ((brightest - low) * 255 / (high - low)).clip(0, 255)
            sample = np.ix_(np.arange(20, 300, 40), np.arange(20, 200, 40))  # the middles of blocks
            scaled = own[np.ix_(*(np.round(axis.ravel() * 256 / 300).astype(int) for axis in sample))]
            np.testing.assert_allclose(scaled, expected[sample], atol=12)
            assert own[:, 180:].max() < 20  # the field is narrower than its place
    assert sources[1] != sources[0]


def test_heat_maps_hold_the_figures_of_the_index(plate: Index) -> None:
    figures = field_figures(plate)
    maps = {one.title: one.plates[0].values for one in heat_maps(plate, figures, ["DAPI & more"])}
    assert list(maps) == [
        "Focus, DAPI & more", "Intensity, DAPI & more", "Saturated fields", "Empty fields", "Blurred fields",
        "Missing planes",
    ]  # fmt: skip
    assert maps["Empty fields"] == {"B02": 0, "B03": 1, "C03": 0}
    assert maps["Missing planes"] == {"B02": 0, "B03": 0, "C03": 1}
    means = [float(pixels(number)[0, 1].mean()) for number in range(3)]
    assert maps["Intensity, DAPI & more"]["B02"] == pytest.approx(np.median(means), rel=1e-6)
    sharpest = max(measure(pixels(0)).planes[0, 1, z].focus for z in (0, 1))
    assert figures[FieldKey("B02", "1")].focus["DAPI & more"] == pytest.approx(sharpest)


def test_the_page_says_what_is_odd_and_what_was_left_out(page: Path) -> None:
    text = page.read_text()
    assert "empty fields: 1; blurred fields: 0; missing planes: 1." in text
    assert "B02/9: its file is damaged" in text
    assert "url(" not in text
    assert 'src="http' not in text
    with Image.open(page.with_suffix(".png")) as picture:
        assert picture.width > 1500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100


def test_many_fields_become_smaller_until_the_page_does_not_grow(
    plate: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rule keeps the page of a plate of thousands of fields small."""
    monkeypatch.setattr(mosaics, "MOST_BYTES", 25_000)
    made = overview(plate.path, tmp_path / "small.html")
    assert made.edge < 192
    images = re.findall(r"data:image/jpeg;base64,([^\"]+)", made.page.read_text())
    assert sum(map(len, images)) < 40_000  # each file has a header of its own


def test_wells_and_channels_can_be_chosen(
    plate: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "some.html"
    words = ["overview", str(plate.path), f"out={out}", "wells=b3, C03/1", "channels=DAPI & more"]
    assert run_command(words) == 0
    assert re.search(rf"page     {out}: 0\.\d MB, 4 fields of 256 pixels", capsys.readouterr().out)
    assert re.findall(r'alt="([^"]*)"', out.read_text()) == ["B03, DAPI &amp; more: 3 fields",
                                                             "C03, DAPI &amp; more: 1 field"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wells=H12"], "'H12' is not on the plate"),
        (["channels=DAPY"], "has no channel 'DAPY'; there are: 'Bright <i>field', 'DAPI & more'"),
        (["out=x.pdf"], "out=x.pdf: the page is a file that ends in .html"),
        (["well=B03"], "overview well=: no such key; did you mean 'wells'"),
        (["out="], "overview out=: a value is missing"),
        (["P02.zarr"], "overview: name one plate"),
    ],
)
def test_a_wrong_word_is_named_with_what_would_be_right(
    plate: Index, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["overview", str(plate.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_only_an_earlier_overview_is_replaced(plate: Index, tmp_path: Path) -> None:
    page, picture = tmp_path / "a.html", tmp_path / "a.png"
    picture.write_text("somebody's")
    with pytest.raises(UserError, match=r"a.png exists and overview has not made it; choose another name"):
        overview(plate.path, page, ["B02/1"])
    assert (picture.read_text(), page.exists()) == ("somebody's", False)
    picture.unlink()
    overview(plate.path, page, ["B02/1"])
    assert overview(plate.path, page, ["B03"]).fields == 3


def test_a_plate_of_another_program_looks_the_same_and_is_left_alone(plate: Index, tmp_path: Path) -> None:
    other = write_other(plate, tmp_path / "theirs.zarr", version="0.4")
    with pytest.raises(UserError, match="measure it once, where it lies"):
        overview(other, tmp_path / "early.html")
    computed(adopt, tmp_path, "P01", f"plate={other}", "transmitted=[Bright <i>field]")
    before = snapshot(other)
    mosaic = {}
    for index in (plate, open_plate(other)):
        keys = [field.key for field in index.plate.fields if field.key.well == "B02"]
        mosaic[index.path] = mosaics.mosaics(index, {"B02": keys}, [1])["B02", 1].jpeg
    assert len(set(mosaic.values())) == 1
    made = overview(other, tmp_path / "theirs.html")
    assert made.fields == 9
    assert snapshot(other) == before
