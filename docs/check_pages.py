"""Looks at each built page with Chromium: at two widths, in light and dark.

A page is wrong if it scrolls sideways, if a link, an anchor or a picture of this site
leads nowhere, if the browser reports an error, or if a formula is not drawn. Links to
other sites are listed, not followed. Pictures of the pages go to results/pages.
Build first: ``make docs``. It takes about a minute.
"""

import argparse
import functools
import itertools
import os
import shutil
import sys
import threading
from collections import defaultdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

from playwright.sync_api import Page, ViewportSize, sync_playwright
from tqdm import tqdm

BUILT = Path(__file__).parent / "_build" / "html"
WIDTHS = {"phone": 375, "desk": 1280}
THEMES = ("light", "dark")

LOOK = r"""() => {
    const article = document.querySelector("article");
    const prose = article.cloneNode(true);
    prose.querySelectorAll("pre, code, math").forEach(element => element.remove());
    // What is cut off on the right, unless it is in something that scrolls by itself.
    const cut = element => element.getBoundingClientRect().right > innerWidth + 1
        && !scrolls(element.parentElement);
    const scrolls = element => element !== article
        && (/auto|scroll/.test(getComputedStyle(element).overflowX)
            || scrolls(element.parentElement));
    const hrefs = links => [...links].map(link => link.href);
    return {
        width: document.documentElement.scrollWidth,
        cut: [...article.querySelectorAll("*")].filter(cut)
            .map(element => element.outerHTML.slice(0, 60)),
        pictures: [...document.images]
            .filter(image => !image.complete || image.naturalWidth === 0 || !image.alt)
            .map(image => image.src),
        links: hrefs(document.links),
        fromArticle: hrefs(article.querySelectorAll("a[href]")),
        anchors: [...document.querySelectorAll("[id]")].map(element => element.id),
        flat: [...article.querySelectorAll("math")]
            .filter(formula => !formula.clientHeight).length,
        source: prose.textContent.match(/.{0,20}(\$|\\[a-z(]).{0,20}/),
    };
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without telling about each."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""


def look(page: Page, address: str, width: int) -> tuple[dict[str, Any], list[str]]:
    """What is on the page, and what is wrong with it as the browser shows it."""
    faults: list[str] = []

    def console(message: Any) -> None:
        if message.type in ("error", "warning"):
            faults.append(f"console: {message.text} {message.location['url']}")

    page.on("console", console)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.goto(address)
    seen = page.evaluate(LOOK)
    if seen["width"] > width:
        faults.append(f"is {seen['width']} px wide and scrolls sideways")
    faults += [f"cut off on the right: {html}" for html in seen["cut"][:3]]
    faults += [f"no picture or no text for it: {source}" for source in seen["pictures"]]
    if seen["flat"]:
        faults.append(f"{seen['flat']} formulas are not drawn")
    if seen["source"]:
        faults.append(f"a formula as its source: {seen['source'][0]!r}")
    return seen, faults


def broken_links(seen: dict[str, dict[str, Any]], root: str) -> dict[str, list[str]]:
    """By page, its links that lead to nothing on this site."""
    faults = defaultdict(list)
    for address, page in seen.items():
        for link in dict.fromkeys(page["links"]):
            if not link.startswith(root):
                continue
            target, anchor = urldefrag(link)
            if target in seen:
                if anchor and unquote(anchor) not in seen[target]["anchors"]:
                    faults[address].append(f"no anchor at {link}")
            elif not (BUILT / unquote(target.removeprefix(root))).is_file():
                faults[address].append(f"nothing at {link}")
    return faults


def main(arguments: list[str] | None = None) -> None:
    """Exits with the pages and their faults, if there are any."""
    parser = argparse.ArgumentParser(
        prog="python docs/check_pages.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    parser.add_argument("--chromium", default=found, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/pages"))
    options = parser.parse_args(arguments)
    if options.chromium is None:
        parser.error("no chromium found: install it, or set CHROMIUM to its path")
    names = sorted(path.name for path in BUILT.glob("*.html"))
    if not names:
        parser.error(f"no pages in {BUILT}: make docs")
    options.out.mkdir(parents=True, exist_ok=True)

    handler = functools.partial(Quiet, directory=BUILT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"

    seen: dict[str, dict[str, Any]] = {}
    faults: dict[str, list[str]] = defaultdict(list)  # with the looks that have them
    looks = list(itertools.product(names, WIDTHS.items(), THEMES))
    with sync_playwright() as playwright, tqdm(total=len(looks), unit="look") as bar:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox"]
        )
        for name, (device, width), theme in looks:
            size = ViewportSize(width=width, height=900)
            page = browser.new_page(viewport=size, color_scheme=theme)
            seen[root + name], wrong = look(page, root + name, width)
            for fault in dict.fromkeys(wrong):
                faults[f"{name}: {fault}"].append(f"{device} {theme}")
            picture = options.out / f"{Path(name).stem}-{device}-{theme}.png"
            page.screenshot(path=picture, full_page=True)
            page.close()
            bar.update()
        browser.close()
    for address, wrong in broken_links(seen, root).items():
        faults |= {f"{address.removeprefix(root)}: {fault}": [] for fault in wrong}

    links = {link for page in seen.values() for link in page["fromArticle"]}
    others = sorted(link for link in links if not link.startswith(root))
    print("\n".join(["links to other sites, not followed:", *others]))
    print(f"{len(names)} pages looked at {len(looks)} times; pictures: {options.out}")
    if faults:
        lines = [f"{fault} ({', '.join(where)})" for fault, where in faults.items()]
        sys.exit("\n".join(lines).replace(" ()", ""))


if __name__ == "__main__":
    main()
