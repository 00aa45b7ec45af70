import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic_results as synthetic

import titer
from titer.report.page import MAX_BYTES, render, write
from titer.schema.errors import TiterError
from titer.schema.types import spec_id

BOTH = [synthetic.result("adversarial"), synthetic.result("repnoise")]
TEXT = "synthetic secret answer"


@pytest.fixture(scope="module")
def page() -> str:
    return render(BOTH, completions=synthetic.completions(BOTH, TEXT))


class Tags(HTMLParser):
    """Every tag with its attributes, and the ids and internal links among them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_same_results_same_page(page: str) -> None:
    assert page == render(BOTH, completions=synthetic.completions(BOTH, TEXT))


def test_it_is_self_contained_and_small(page: str) -> None:
    tags = Tags(page).tags
    assert len(page.encode()) < MAX_BYTES
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & {t for t, _ in tags}
    assert all(a["href"].startswith("#") for _, a in tags if a.get("href"))
    assert not any(name == "style" or name.startswith("on") or name == "src" for _, a in tags for name in a)
    assert "http://" not in page and "https://" not in page and "url(" not in page


def test_the_policy_allows_only_this_style_sheet(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page).group(1)
    style = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_every_link_leads_somewhere_and_ids_are_unique(page: str) -> None:
    tags = Tags(page).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    links = {a["href"][1:] for t, a in tags if t == "a"}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)
    assert {f"run-{r}" for r in BOTH[1]["conditions"]["resistance"]["records"]} & links  # type: ignore[index]


def test_sections_come_in_order_and_all_but_the_first_are_folded(page: str) -> None:
    wanted = "verdicts price flags curves stability trainability generalization outcomes tradeoff noise settings runs"
    nav = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r'href="#(\w+)"', nav) == wanted.split()
    assert re.findall(r'<section id="(\w+)"', page) == ["verdicts", "price"]
    assert "<details open" not in page


def test_a_section_put_into_the_folder_is_shown_with_no_other_file_touched(tmp_path: Path) -> None:
    package = tmp_path / "titer"
    package.mkdir()
    for entry in Path(titer.__file__).parent.iterdir():
        if entry.name != "report":
            (package / entry.name).symlink_to(entry)
    shutil.copytree(Path(titer.__file__).parent / "report", package / "report")
    code = 'TITLE = "Put <here>"\n\ndef view(reading):\n    return [m.name for m in reading.models]\n'
    (package / "report/sections/afterwards.py").write_text(code)
    (package / "report/templates/sections/afterwards.html").write_text("<p>seen: {{ view|join(', ') }}</p>")
    (package / "report/sections/nothing.py").write_text('TITLE = "No"\n\ndef view(reading):\n    return None\n')
    program = "from titer.report.page import render; print(render([{'model': 'a<b', 'conditions': {}}]))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env).stdout
    assert "<p>seen: a&lt;b</p>" in found and 'href="#afterwards">Put &lt;here&gt;' in found
    assert found.index('id="runs"') < found.index('id="afterwards"') if 'id="runs"' in found else True
    assert 'id="nothing"' not in found


def test_the_bottom_line_comes_first_and_what_was_not_tried_is_said(page: str) -> None:
    line = re.search(r"<h1>(.*?)</h1>", page).group(1)
    assert "of 2 models passed" in line or line.startswith("None of the 2 models")
    assert "<strong>Not tried:</strong>" in page and "an adaptive search for the cheapest attack" in page
    one = render([{"model": "m", "conditions": {}}])
    assert "<h1>m is not shown to be immunized: not settled or not measured: resistance, stability" in one


def test_dollars_are_shown_only_where_they_are_not_tiny() -> None:
    assert "Dollars" not in render(BOTH[:1])
    dear = deepcopy(BOTH[0])
    usd = {"value": 12.5, "low": 3.0, "high": 12.5, "n": 9, "unit": "usd"}
    dear["conditions"]["resistance"]["details"]["worst"]["usd"] = usd
    assert "Dollars" in render([dear])


def test_flags_are_ranked_and_each_code_is_explained_once() -> None:
    raised = [("few-seeds", "a"), ("budget-too-short", "b"), ("budget-too-short", "c"), ("control-not-breached", "d")]
    one = {**BOTH[0], "flags": [{"code": code, "message": said, "records": []} for code, said in raised]}
    codes = re.findall(r"<h3><code>([\w-]+)</code>", render([one]))
    assert codes == ["control-not-breached", "budget-too-short", "few-seeds"]


def test_equal_checklists_are_one_table() -> None:
    rows = [{"id": "G1", "text": "State the threat model", "status": "shown"}]
    both = [{**r, "guidelines": rows} for r in BOTH]
    assert render(both).count("State the threat model") == 1


def test_charts_have_names_descriptions_and_tables(page: str) -> None:
    drawings = re.findall(r'<svg viewBox="0 0 \d{3} [\d.]+" role="img".*?</svg>', page, re.S)
    assert len(drawings) == 1 + 3 + 2 + 3 + 5 + 1
    assert all("<title>" in d and "<desc>" in d and "nan" not in d for d in drawings)
    assert page.count("Numbers of this chart") == len(drawings) - 1  # the price chart's table stands below it


def test_it_has_landmarks_a_skip_link_and_captions(page: str) -> None:
    tags = Tags(page).tags
    names = [t for t, _ in tags]
    assert all(names.count(n) == 1 for n in ("main", "header", "footer", "nav", "h1"))
    assert names.count("table") == names.count("caption")
    assert ("a", {"class": "skip", "href": "#verdicts"}) in tags
    assert ("html", {"lang": "en"}) in tags


def test_no_breach_is_an_arrow_and_never_a_number(page: str) -> None:
    assert "&gt; 100 steps →" in page and "no breach within 100 steps" in page
    assert "no breach within 100" in re.search(r"<desc>(undefended[^<]+)", page).group(1)


def test_a_defence_that_did_nothing_is_said_plainly(page: str) -> None:
    assert "The defence did nothing measurable against fine-tuning: synthetic/adversarial breaks at step" in page


def test_completions_are_redacted_unless_asked_for(page: str) -> None:
    assert TEXT not in page and "synthetic prompt" not in page
    assert f"{len(TEXT)} characters · sha256 {hashlib.sha256(TEXT.encode()).hexdigest()[:12]}" in page
    shown = render(BOTH, show_completions=True, completions=synthetic.completions(BOTH, TEXT))
    assert TEXT in shown and "synthetic prompt" in shown


def test_many_huge_completions_still_fit() -> None:
    many = synthetic.completions(BOTH, "x" * 20_000, per_run=100)
    page = render(BOTH, show_completions=True, completions=many)
    assert len(page.encode()) < MAX_BYTES and "of 100 completions" in page


def test_unmeasured_conditions_are_not_measured_anywhere() -> None:
    bare = {"schema": 1, "model": "synthetic/bare", "reference": "", "conditions": {}}
    page = render([bare])
    assert page.count('<span class="badge not-measured">') == 4
    assert "The resistance of synthetic/bare was not measured." in page
    assert '<span class="badge met">' not in page


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "no results given"),
        ([{"model": "m"}], "result 1 has no 'conditions'"),
        ([{"model": "m", "conditions": {}, "schema": 9}], "schema 9"),
        ([{"model": "m", "conditions": {}, "curves": [{"record": "r"}]}], "result 1, curve 1: Curve: "),
    ],
)
def test_unreadable_results_are_refused(broken: list[dict[str, object]], message: str) -> None:
    with pytest.raises(TiterError, match=message):
        render(broken)


def test_flags_say_what_to_do(page: str) -> None:
    assert "1 flag was raised" in page and "docs/flags.md" in page and "What to do." in page


def test_guidelines_are_derived_from_and_unknown_is_not_shown() -> None:
    rows = [{"id": "G1", "text": "State the threat model", "status": "shown"}, {"id": "G2", "text": "Define harm"}]
    page = render([{**BOTH[0], "guidelines": rows}])
    assert "Derived from Rosati" in page and "<td>not shown</td>" in page


def test_write_is_atomic(tmp_path, monkeypatch) -> None:
    target = write(tmp_path / "deep" / "report.html", BOTH[:1])
    before = target.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk")))
    with pytest.raises(TiterError, match=r"report.html: cannot be written: disk"):
        write(target, BOTH)
    assert target.read_text() == before and [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_importing_the_package_is_light() -> None:
    code = "import sys, titer.report; print([m for m in ('torch', 'jinja2', 'scipy', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_odd_run_ids_still_get_plain_anchors() -> None:
    from titer.report.cells import run_anchor

    assert run_anchor('x" onload="1') == f"run-{spec_id('x' + chr(34) + ' onload=' + chr(34) + '1')}"
