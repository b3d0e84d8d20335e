"""The page as a browser gets it."""

import json
import re
from html.parser import HTMLParser

import pytest

from lorasmith.errors import InputError
from lorasmith.report import render_report

FILES = ("recipe.yaml", "plan.json", "metrics.jsonl", "evaluation.json", "summary.json")
VOID = {"meta", "line", "circle", "polyline"}


class Balanced(HTMLParser):
    """Raises at the first tag that closes another than the one that is open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(folder):
    return render_report(folder).read_text(encoding="utf-8")


def test_the_page_holds_every_part_of_the_run(run_folder):
    page = page_of(run_folder)
    for shown in ("3.563", "5.242", "4,608 of 32,768", "14.1 %", "quantized weights", "path: models/novels", "Once"):
        assert shown in page
    assert page.count("<svg") == 1 + 6  # one interval; loss, accuracy, learning rate, norm, throughput, memory


def test_the_page_fetches_nothing_and_runs_nothing(run_folder):
    page = page_of(run_folder)
    assert not re.search(r"(src|href)\s*=|url\(|@import|<script|<link|https?://", page)


def test_text_of_models_and_data_cannot_become_markup(run_folder):
    page = page_of(run_folder)
    assert "was &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "upon &amp; a time" in page


def test_tags_are_balanced(run_folder):
    parser = Balanced()
    parser.feed(page_of(run_folder))
    assert parser.open == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_left_out_with_a_sentence(run_folder, name):
    whole = page_of(run_folder)
    (run_folder / name).unlink()
    page = page_of(run_folder)
    assert page != whole
    assert "Could not be read" not in page


def test_an_empty_run_folder_still_makes_a_page(tmp_path):
    page = page_of(tmp_path)
    assert "No step has been logged" in page
    assert "No scores" in page


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"{", b"[1, 2]\n", b"\xff\xfe\x00", b'"text"'])
def test_a_damaged_file_is_named_and_the_rest_is_shown(run_folder, name, content):
    (run_folder / name).write_bytes(content)
    assert re.search(rf"Could not be read and is left out: {re.escape(name)}", page_of(run_folder))


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", '"high"', "[]", "{}", "true"])
def test_values_that_are_no_numbers_are_left_out(run_folder, value):
    line = f'{{"step": 1, "loss": {value}, "lr": {value}, "memory_peak_bytes": {value}}}\n'
    (run_folder / "metrics.jsonl").write_text(line)
    (run_folder / "evaluation.json").write_text(
        f'{{"before": {value}, "after": {{"loss": {value}}}, "samples": {value}}}'
    )
    (run_folder / "plan.json").write_text(f'{{"components": {{"weights": {value}}}}}')
    (run_folder / "summary.json").write_text(f'{{"trainable_parameters": {value}, "steps": {value}}}')
    parser = Balanced()
    parser.feed(page_of(run_folder))
    assert "nan" not in parser.rawdata.lower()


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity"])
def test_a_score_that_is_not_finite_is_told_as_such(run_folder, value):
    good, bad = '{"value": 1.5, "low": 1.0, "high": 2.0, "n": 9}', f'{{"value": {value}, "low": 1.0, "high": {value}}}'
    (run_folder / "evaluation.json").write_text(
        f'{{"before": {{"loss": {good}, "perplexity": {bad}}}, "after": {{"loss": {bad}, "perplexity": {bad}}}}}'
    )
    page = page_of(run_folder)
    assert page.count("<b>not finite</b>") == 3
    assert "<p>not finite</p><small>1.5 before</small>" in page
    assert "nan" not in page.lower() and "inf" not in re.sub("not finite", "", page.lower())


def test_prediction_and_measurement_share_one_scale(run_folder):
    widths = re.findall(r'class="(?:p\d|measured)" style="width:([\d.]+)%', page_of(run_folder))
    predicted = sum(float(width) for width in widths[:2])
    # 860 MB predicted, 850 MB measured
    assert predicted == pytest.approx(100, abs=0.02)
    assert float(widths[2]) == pytest.approx(100 * 850 / 860, abs=0.02)


def test_the_same_folder_gives_the_same_page(run_folder):
    assert page_of(run_folder) == page_of(run_folder)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        render_report(tmp_path / "absent")


def test_each_of_the_ten_components_has_a_colour_of_its_own(run_folder):
    components = {f"component {place}": 1e8 for place in range(10)}
    (run_folder / "plan.json").write_text(json.dumps({"device": "cpu", "components": components}))
    page = page_of(run_folder)
    used = re.findall(r'class="swatch (p\d+)"', page)
    colours = {re.search(rf"--{name}: (#\w+)", page).group(1) for name in used}
    assert len(colours) == 10
