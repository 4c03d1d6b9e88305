"""A report shows everything and runs nothing."""

import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.base import html

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
import nbformat  # noqa: E402

from workbench.jobs.report import SHOWN_CHARS, clean, report_html  # noqa: E402

ATTACKS = [
    "<script>document.title='HIT'</script>",
    "<ScRiPt >document.title='HIT'</sCrIpT >",
    "<img src=x onerror=\"document.title='HIT'\">",
    "<svg onload=\"document.title='HIT'\"><script>document.title='HIT'</script></svg>",
    "<svg><style><img src=x onerror=\"document.title='HIT'\"></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=document.title='HIT'&gt;\">",
    "<a href=\"javascript:document.title='HIT'\">go</a>",
    "<a href=\" java\tscript:document.title='HIT'\">go</a>",
    "<iframe srcdoc=\"<script>parent.document.title='HIT'</script>\"></iframe>",
    "<body onload=\"document.title='HIT'\"><details open ontoggle=\"document.title='HIT'\">x</details>",
    "<svg><a xlink:href=\"javascript:document.title='HIT'\"><text y='9'>go</text></a></svg>",
    "<svg><animate onbegin=\"document.title='HIT'\" attributeName=x dur=1s></svg>",
    "<meta http-equiv=refresh content=\"0;url=javascript:document.title='HIT'\"><base href='https://elsewhere.example/'>",
    "<form action='https://elsewhere.example/'><input autofocus onfocus=\"document.title='HIT'\"></form>",
    "<div style=\"background:url(https://elsewhere.example/x)\">x</div><link rel=stylesheet href='https://elsewhere.example/'>",
    "<div style='background:u\\72l(https://elsewhere.example/y)'>x</div><svg><rect fill='url(https://elsewhere.example/f)'/></svg>",
    "<img src='https://elsewhere.example/x.png'><img srcset='https://elsewhere.example/x.png 1x'>",
    "<object data='data:text/html,<script>document.title=1</script>'></object><embed src='data:text/html,x'>",
    "</pre></main></body><script>document.title='HIT'</script>",
]


def book(*cells: Any) -> Any:
    return nbformat.v4.new_notebook(cells=list(cells))


def code(source: str = "x", **outputs: Any) -> Any:
    made = [
        nbformat.v4.new_output("display_data", {kind.replace("_", "/", 1): v}) for kind, v in outputs.items()
    ]
    return nbformat.v4.new_code_cell(source, outputs=made)


def attacked() -> str:
    "Every attack in every place that a notebook has."
    cells = []
    for attack in ATTACKS:
        stream = nbformat.v4.new_output("stream", name="stdout", text=attack)
        error = nbformat.v4.new_output("error", ename=attack, evalue=attack, traceback=[attack])
        javascript = {"application/javascript": "document.title='HIT'", "text/plain": attack}
        both = nbformat.v4.new_output("display_data", javascript)
        isolated = nbformat.v4.new_output(
            "display_data", {"text/html": attack}, metadata={"text/html": {"isolated": True}}
        )
        rich = code(attack, text_html=attack, text_markdown=attack, text_latex=attack, text_plain=attack)
        cells += [nbformat.v4.new_markdown_cell(attack), nbformat.v4.new_raw_cell(attack), rich]
        cells.append(nbformat.v4.new_code_cell(attack, outputs=[stream, error, both, isolated]))
        cells.append(
            nbformat.v4.new_code_cell(
                execution_count=1, metadata={"tags": [attack.replace(",", "")], "name": attack}
            )
        )
    made = book(*cells)
    made.metadata["title"] = ATTACKS[0]
    return report_html(made, ATTACKS[-1], "".join(ATTACKS))


def test_nothing_active_is_left() -> None:
    from bleach._vendor import html5lib

    root = html5lib.parse(attacked(), namespaceHTMLElements=False)
    names = {str(node.tag).rpartition("}")[2].lower() for node in root.iter() if isinstance(node.tag, str)}
    assert not names & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "input",
        "base",
        "link",
        "animate",
        "math",
    }
    for node in root.iter():
        for name, value in node.attrib.items():
            assert not name.lower().startswith("on"), (node.tag, name)
            assert "javascript:" not in value.lower().replace("\t", "") or name in ("content", "class"), (
                node.tag,
                name,
                value,
            )
            if name in ("src", "href", "{http://www.w3.org/1999/xlink}href") and node.tag != "a":
                assert value.startswith(("data:image/", "#")), (node.tag, name, value)
            assert "url(" not in value or name != "style"


def test_what_shows_stays() -> None:
    picture = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'><defs><clipPath id='c'><rect width='9'/></clipPath>"
    picture += "<linearGradient id='g'><stop offset='0'/></linearGradient></defs><use xlink:href='#c'/><path d='M0 0'/></svg>"
    card = html.card(
        "fit flights", html.badge("succeeded", "good"), html.table([{"auc": 0.7}]), facts={"id": "r1"}
    )
    frame = (
        "<style scoped>th{color:red}</style><table border='1' class='dataframe'><tr><th>a</th></tr></table>"
    )
    made = book(
        nbformat.v4.new_markdown_cell(
            "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[site](https://example.org)"
        ),
        code("1 < 2", text_html=card + picture + frame),
        code(image_png="aGVsbG8=", text_plain="<Figure>"),
        code(**{"image_svg+xml": picture}),
    )
    page = report_html(made, "a < b")
    for part in (
        "viewBox=", "<clipPath", "<linearGradient", 'href="#c"', 'd="M0 0"', "border-collapse:collapse", "<td>2</td>",
        "border-radius:6px", 'href="https://example.org"', "data:image/png;base64,aGVsbG8=", "data:image/svg+xml;base64,",
        "<title>a &lt; b</title>", ">succeeded</b>", 'class="dataframe"',
    ):  # fmt: skip
        assert part in page, part
    assert "color:red" not in page and "<Figure>" not in page


def test_a_long_output_is_cut_and_says_so() -> None:
    stream = nbformat.v4.new_output("stream", name="stdout", text="x" * (SHOWN_CHARS + 1234))
    rich = nbformat.v4.new_output("display_data", {"text/html": "<b>" * SHOWN_CHARS, "text/plain": "short"})
    made = book(nbformat.v4.new_code_cell("print()", outputs=[stream, rich]))
    page = report_html(made, "long")
    assert "1,234 more characters in notebook.ipynb" in page and "short" in page
    assert len(page) < SHOWN_CHARS + 20_000
    assert len(made.cells[0].outputs[0].text) == SHOWN_CHARS + 1234  # the notebook itself is untouched


def test_text_is_not_lost() -> None:
    assert clean("a < b & c > d") == "a &lt; b &amp; c &gt; d"


@pytest.mark.browser
def test_in_a_browser_nothing_runs_and_nothing_is_asked_for(tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium")
    (tmp_path / "report.html").write_text(attacked())
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        for link in page.query_selector_all("a"):
            link.dispatch_event("click")
        page.wait_for_timeout(500)
        title, url = page.title(), page.url
        browser.close()
    assert "HIT" not in title.replace(ATTACKS[-1], "") and url.endswith("report.html")
    assert [u for u in asked if not u.startswith(("file:///", "data:image/"))] == []
