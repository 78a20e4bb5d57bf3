from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from paligemma_edge.runtime.errors import ImageError, OptionError, OutputError
from paligemma_edge.runtime.results.detection import Detection
from paligemma_edge.runtime.results.result import ObjectResult, TextResult
from paligemma_edge.runtime.run.overlays import Overlays, lacks_masks, open_overlays, safe_name
from paligemma_edge.runtime.run.sources import Source, find_sources

WORDS = TextResult(prompt="caption en", text="a cat", log_prob=-1.0, finish_reason="stop")
SIZE = 40, 30


def boxed() -> ObjectResult:
    corners = (0.2, 0.2, 0.8, 0.8)
    one = Detection(label="cat", log_prob=-1.0, xyxy_normalized=corners, width=40, height=30)
    return ObjectResult(
        prompt="detect cat",
        text="",
        objects=(one,),
        classes=("cat",),
        log_prob=-1.0,
        finish_reason="stop",
        width=40,
        height=30,
    )


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    (folder / "x").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "x/a.png", "c.webp", "d.bmp"):
        Image.new("RGB", SIZE, (9, 99, 200)).save(folder / name)
    return folder


def opened(
    target: Path, paths: Sequence[str], prompts: Sequence[str] = ("p",), *, reuse: bool = False
) -> Overlays:
    return open_overlays(target, prompts, find_sources(paths, io.StringIO()), reuse=reuse)


def claimed(overlays: Overlays, *names: str) -> list[Source]:
    return list(overlays.claim(Source(name, name) for name in names))


def test_overlays_keep_the_names_folders_and_formats_of_their_images(tmp_path: Path) -> None:
    names = ["photos/a.png", "photos/b.jpg", "photos/x/a.png", "photos/c.webp", "photos/d.bmp"]
    overlays = opened(Path("drawn"), names)
    for source in claimed(overlays, *names):
        place = overlays.write(source, "p", boxed())
        assert place == Path("drawn", Path(source.name).relative_to("photos"))
        with Image.open(place) as drawn, Image.open(source.name) as image:
            assert (drawn.format, drawn.size) == (image.format, image.size)
            assert np.asarray(drawn).std() > 5  # a box, not the even image
    files = [path for path in Path("drawn").rglob("*") if path.is_file()]
    assert len(files) == 5


def test_a_text_may_hold_boxes() -> None:
    overlays = opened(Path("drawn.png"), ["photos/a.png"])
    (source,) = claimed(overlays, "photos/a.png")
    text = "<loc0100><loc0100><loc0900><loc0900> cat"
    boxes = TextResult(prompt="p", text=text, log_prob=-1.0, finish_reason="stop")
    with Image.open(overlays.write(source, "p", boxes)) as drawn:
        assert np.asarray(drawn).std() > 5
    overlays = opened(Path("drawn.png"), ["photos/a.png"], reuse=True)
    claimed(overlays, "photos/a.png")
    with Image.open(overlays.write(source, "p", WORDS)) as drawn:
        assert np.asarray(drawn)[..., 0].std() == 0


def test_a_text_may_hold_masks() -> None:
    codes = "".join(f"<seg{number:03}>" for number in range(16))
    text = f"<loc0000><loc0000><loc1023><loc1023> {codes} cat"
    masked = TextResult(prompt="p", text=text, log_prob=-1.0, finish_reason="stop")
    assert lacks_masks(masked, None)
    assert not lacks_masks(WORDS, None)

    def decode(codes: NDArray[np.int64]) -> NDArray[np.float32]:
        assert codes.tolist() == [list(range(16))]
        return np.ones((1, 64, 64), np.float32)

    assert not lacks_masks(masked, decode)
    middles = []
    for name, masks in (("with.png", decode), ("without.png", None)):
        overlays = opened(Path(name), ["photos/a.png"])
        (source,) = claimed(overlays, "photos/a.png")
        with Image.open(overlays.write(source, "p", masked, masks)) as drawn:
            middles.append(drawn.getpixel((20, 22)))
    assert middles[0] != middles[1] == (9, 99, 200)


def test_a_frame_is_drawn_from_its_pixels() -> None:
    overlays = opened(Path("drawn"), ["photos/a.png"])
    frame = Source("clip.mp4@1.500s", np.zeros((30, 40, 3), np.uint8))
    list(overlays.claim([frame]))
    assert overlays.write(frame, "p", WORDS) == Path("drawn/clip.mp4@1.500s.jpg")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("/data/a.jpg", "data/a.jpg"),
        ("//data//a.jpg", "data/a.jpg"),
        ("../../a.jpg", "_/_/a.jpg"),
        ("./x/../a.JPG", "x/_/a.JPG"),
        ("a.gif", "a.gif.jpg"),
        ("..", "_.jpg"),
        ("/", "image.jpg"),
    ],
)
def test_a_name_becomes_a_safe_path(name: str, place: str) -> None:
    assert str(safe_name(name)) == place


@given(st.text("./ab\\:", max_size=12))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    place = safe_name(name)
    assert not place.is_absolute()
    assert ".." not in place.parts
    assert place.suffix


def test_no_two_overlays_share_a_place() -> None:
    names = ("photos/a.png", "/photos/a.png", "a.gif", "a.gif.jpg", "photos/a-2.png", "../a.png")
    overlays = opened(Path("drawn"), ["photos"], ("p", "q"))
    claimed(overlays, *names, "_/a.png")
    places = list(overlays._places.values())
    assert len(set(places)) == len(places) == 14
    again = opened(Path("drawn"), ["photos"], ("p", "q"))
    claimed(again, *names, "_/a.png")
    assert again._places == overlays._places


def test_several_prompts_have_an_overlay_each() -> None:
    overlays = opened(Path("drawn"), ["photos/a.png"], ("p", "q"))
    (source,) = claimed(overlays, "photos/a.png")
    assert overlays.write(source, "p", WORDS) == Path("drawn/a.png")
    assert overlays.write(source, "q", WORDS) == Path("drawn/a-2.png")


def test_questions_about_one_image_have_an_overlay_each() -> None:
    overlays = opened(Path("drawn"), ["photos"], ())
    asked = [Source("a.png", "photos/a.png", (prompt,)) for prompt in ("p", "q", "r")]
    places = [overlays.write(one, one.prompts[0], WORDS) for one in overlays.claim(asked)]
    assert places[0] == Path("drawn/a.png")
    assert len(set(places)) == 3


def test_a_prompt_that_is_no_text_has_its_place_too() -> None:
    half = "\ud800"  # of a character; it is refused when it is asked
    sources = [Source("a.png", "a.png", (prompt,)) for prompt in ("ocr", half)]
    overlays = Overlays(Path("drawn"), (), False, frozenset())
    assert list(overlays.claim(sources)) == sources


def test_an_image_is_never_written_over(photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    for target in (photos, photos / "a.png", photos.absolute()):
        overlays = opened(target, ["photos/a.png"], reuse=True)
        with pytest.raises(OutputError, match="would write over the image"):
            claimed(overlays, "photos/a.png")
    Path("_").mkdir()
    (photos / "b.jpg").rename("_/b.jpg")
    overlays = opened(Path(), ["../b.jpg", "_/b.jpg"], reuse=True)
    with pytest.raises(OutputError, match="would write over the image"):
        claimed(overlays, "../b.jpg")  # whose place is the other one's
    assert (photos / "a.png").read_bytes() == before


def test_a_folder_with_files_is_kept_unless_it_may_be_used(photos: Path) -> None:
    with pytest.raises(OutputError, match="holds files already"):
        opened(photos, ["photos/a.png"])
    opened(photos, ["photos/a.png"], reuse=True)
    (photos.parent / "empty").mkdir()
    opened(photos.parent / "empty", ["photos/a.png"])


def test_a_file_is_kept_unless_it_may_be_replaced() -> None:
    Path("mine.png").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.png exists already; give --overwrite"):
        opened(Path("mine.png"), ["photos/a.png"])
    opened(Path("mine.png"), ["photos/a.png"], reuse=True)
    assert Path("mine.png").read_text() == "mine"


def test_a_link_in_the_folder_does_not_lead_out() -> None:
    Path("elsewhere").mkdir()
    Path("drawn").mkdir()
    Path("drawn/x").symlink_to("../elsewhere")
    overlays = opened(Path("drawn"), ["photos"], reuse=True)
    (source,) = claimed(overlays, "photos/x/a.png")
    with pytest.raises(OutputError, match="leads out of drawn"):
        overlays.write(source, "p", WORDS)
    assert not any(Path("elsewhere").iterdir())


def test_a_target_that_cannot_be_used_is_reported(photos: Path) -> None:
    Path("notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"notes\.txt"):
        opened(Path("notes.txt"), ["photos/a.png"])
    with pytest.raises(OptionError, match="names one image"):
        opened(Path("drawn.png"), ["photos"])
    with pytest.raises(OptionError, match="names one image"):
        opened(Path("drawn.png"), ["photos/a.png"], ("p", "q"))
    with pytest.raises(OutputError, match="is not a folder"):
        opened(Path("notes.txt/drawn"), ["photos/a.png"])
    with pytest.raises(OutputError, match="Is a directory"):
        Path("folder.png").mkdir()
        opened(Path("folder.png"), ["photos/a.png"])
    assert Path("notes.txt").read_text() == "mine"
    assert not Path("drawn").exists()


def test_an_image_too_large_for_its_format_names_another(tmp_path: Path) -> None:
    Image.new("L", (16_400, 2)).save("long.png")
    overlays = opened(Path("drawn.webp"), ["long.png"])
    (source,) = claimed(overlays, "long.png")
    with pytest.raises(ImageError, match=r"too large for WEBP; .*\.png"):
        overlays.write(source, "p", WORDS)
    assert not Path("drawn.webp").exists()


def test_an_image_that_has_gone_is_an_image_error() -> None:
    overlays = opened(Path("drawn"), ["photos/a.png"])
    (source,) = claimed(overlays, "photos/a.png")
    Path("photos/a.png").unlink()
    with pytest.raises(ImageError, match="no such file"):
        overlays.write(source, "p", WORDS)


def test_an_image_that_changed_its_shape_is_an_image_error() -> None:
    overlays = opened(Path("drawn"), ["photos/a.png"])
    (source,) = claimed(overlays, "photos/a.png")
    Image.new("RGB", (40, 300)).save("photos/a.png")
    with pytest.raises(ImageError, match="40 x 300 pixels, the answer is about one of 40 x 30"):
        overlays.write(source, "p", boxed())
