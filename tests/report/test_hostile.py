"""Hostile completions and names in a real browser: nothing runs, nothing loads, the layout holds."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import synthetic_results as synthetic

from titer.report.page import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARK = "document.title='PWNED';document.documentElement.setAttribute('data-pwned','1')"
HOSTILE = (
    f"""</pre></td></table></details><script>{MARK}</script><img src=x onerror="{MARK}">
<svg onload="{MARK}"><script>{MARK}</script><foreignObject><iframe srcdoc="<script>parent.{MARK}</script>"></iframe>
</foreignObject></svg><style>*{{display:none!important}}body{{width:9000px}}</style></style>
<link rel=stylesheet href=//evil.invalid/x.css><a href="javascript:{MARK}">x</a><base href='//evil.invalid'>
<meta http-equiv=refresh content='0;url=http://evil.invalid'>{{{{ 7*7 }}}} {{% raw %}} " onmouseover="{MARK}" x='
\u202egnp.exe \u2066\u200b \x1b[2J\x1b[31m \x00 \x9b \ufeff \ud800 """
    + "e"
    + "\u0301" * 5000
    + " "
    + "W" * 1_000_000
)


def hostile_results() -> list[dict[str, object]]:
    """Results in which every string that a model or a data set could supply is hostile."""
    result = dict(synthetic.result("repnoise"))
    result["model"] = f"evil/{HOSTILE[:3000]}"
    result["flags"] = [{"code": HOSTILE[:500], "message": HOSTILE, "records": [HOSTILE[:300]]}]
    result["settings"] = {HOSTILE[:400]: HOSTILE}
    curves = [dict(c) for c in result["curves"]]  # type: ignore[attr-defined]
    curves[0] = {**curves[0], "config": HOSTILE[:2000], "record": HOSTILE[:100]}
    return [{**result, "curves": curves}, dict(synthetic.result("adversarial"))]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = hostile_results()
    stored = synthetic.completions(results, HOSTILE, per_run=2)
    return write(tmp_path_factory.mktemp("hostile") / "r.html", results, show_completions=True, completions=stored)


def test_hostile_text_is_inert_as_written(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert report.stat().st_size < 1_000_000
    assert "<script" not in text and "<img" not in text and "<iframe" not in text and text.count("<style") == 1
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", text)
    assert "&lt;script&gt;" in text and "␛[31m" in text and "⟨U+202E⟩" in text


def dump(page: Path, profile: Path) -> str:
    """The page's DOM after loading, from headless Chromium; files may look into files, so that a frame can measure."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", f"--user-data-dir={profile}", "--window-size=1400,1000",
        "--virtual-time-budget=4000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the browser check of the report did not run")

# A second page frames the report (whose policy stays as it is) at two widths, opens everything and measures it.
MEASURE = """<!doctype html><body data-result="none">
<iframe src="r.html" style="width:1280px;height:900px"></iframe><iframe src="r.html" style="width:400px;height:900px">
</iframe><script>addEventListener('load', () => {
document.body.dataset.result = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => {
const d = frame.contentDocument, width = frame.clientWidth;
d.querySelectorAll('details').forEach(x => x.open = true);
const wide = [...d.querySelectorAll('body *')].filter(x => !x.closest('.scroll,svg,pre,.sr,.skip')
 && x.getBoundingClientRect().right > width + 1).map(x => x.tagName + '.' + x.className);
return {pwned: d.documentElement.dataset.pwned || '', overflow: d.documentElement.scrollWidth - width,
 wide: wide.slice(0, 5), height: d.querySelector('main').offsetHeight}}))});</script>"""


@needs_browser
def test_nothing_runs_in_a_browser(report: Path, tmp_path: Path) -> None:
    dom = dump(report, tmp_path)
    assert 'data-pwned="' not in dom and "<title>PWNED" not in dom
    assert "<title>Resistance to harmful fine-tuning" in dom


@needs_browser
def test_no_element_leaves_the_page(report: Path, tmp_path: Path) -> None:
    frame = report.with_name("measure.html")
    frame.write_text(MEASURE)
    text = re.search(r'data-result="([^"]*)"', dump(frame, tmp_path))
    assert text is not None
    found = json.loads(html.unescape(text.group(1)))
    assert len(found) == 2
    for one in found:
        assert one["pwned"] == "" and one["wide"] == [] and one["overflow"] <= 0
        assert 2000 < one["height"] < 400_000
