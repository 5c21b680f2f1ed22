"""Take pictures of the pages of the built site as a reader sees them, and say which pages do not fit the window.

    python scripts/screenshots.py FOLDER [PAGE ...]

Each page of site/ (or only those named, such as `quickstart.html`) is photographed from top to bottom in Chromium, on a
wide window and on a phone, light and dark: FOLDER/quickstart.wide.light.png and so on. Printed are the pages that
scroll sideways, pictures that are missing and errors of scripts; the exit status is 1 if there are any. Nothing is
needed but Chromium: the script speaks its DevTools protocol over a pipe.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

SITE = Path(__file__).resolve().parents[1] / "site"
WINDOWS = {"wide": (1400, 900, False), "phone": (390, 844, True)}
COLOURS = ("light", "dark")
LONGEST = 16_000
"""Longest picture in pixels: Chromium repeats the beginning of a longer one."""

FAULTS = """(() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const boxes = wide > 0 ? [...document.querySelectorAll('.md-content *')].filter(box =>
      box.getBoundingClientRect().right > innerWidth + 1 && !box.closest('.md-typeset__scrollwrap, pre, math')) : [];
  const names = boxes.slice(0, 3).map(box => box.outerHTML.slice(0, 80)).join(' | ');
  const missing = [...document.images].filter(image => image.complete && !image.naturalWidth);
  return [...(wide > 0 ? [`${wide} px too wide: ${names}`] : []), ...missing.map(image => `no picture ${image.src}`)];
})()"""


class Browser:
    """A Chromium without windows with one page."""

    def __init__(self) -> None:
        program = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
        if program is None:
            sys.exit("Chromium was not found: install it, or put it on the PATH")
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, from_here = os.pipe()
        from_browser, to_here = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command = [program, *options, "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}"]
        # Chromium reads commands from file 3 and writes answers to file 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{to_here}', "bash", *command]
        files = (to_browser, to_here)
        self.process = subprocess.Popen(shell, pass_fds=files, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(to_here)
        self.commands, self.answers = os.fdopen(from_here, "wb"), os.fdopen(from_browser, "rb")
        self.number, self.rest, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def __call__(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and return its answer."""
        self.number += 1
        command: dict[str, object] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        self.commands.write(json.dumps(command).encode() + b"\0")
        self.commands.flush()
        while (answer := self._receive()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def window(self, size: str, colours: str) -> None:
        """Set the size of the window and the colours that the system prefers."""
        width, height, mobile = WINDOWS[size]
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=mobile, deviceScaleFactor=1)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colours}])

    def open(self, address: str) -> list[str]:
        """Open a page, wait until it is loaded, and return the errors of its scripts."""
        self.events.clear()
        self("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        # The theme's scripts get time to work, and nothing fades in while the picture is taken.
        style = "Object.assign(document.createElement('style'), {textContent: '* {transition: none !important}'})"
        self.evaluate(f"document.head.append({style}); new Promise(done => setTimeout(done, 150))")
        errors = [event["params"] for event in self.events if event.get("method") == "Runtime.exceptionThrown"]
        logged = [event["params"]["entry"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return [error["exceptionDetails"]["text"] for error in errors] + [
            f"{entry['text']} {entry.get('url', '')}"
            for entry in logged
            # The theme asks for a list of pages, which a browser refuses for a page from a folder.
            if entry["level"] == "error" and "/sitemap.xml" not in entry["text"] + entry.get("url", "")
        ]

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def photograph(self) -> bytes:
        """Return a picture (PNG) of the whole page."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], LONGEST), "scale": 1}
        return base64.b64decode(
            self("Page.captureScreenshot", captureBeyondViewport=True, optimizeForSpeed=True, clip=clip)["data"]
        )

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.answers.fileno(), 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


def main() -> None:
    """Photograph the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("pages", nargs="*", help="pages to photograph, from the root of the site (default: all)")
    parser.add_argument("--site", type=Path, default=SITE, help="the built site")
    arguments = parser.parse_intermixed_args()
    site = arguments.site.resolve()
    pages = arguments.pages or sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    pages = [page for page in pages if page != "404.html"]  # which needs a web server
    faults = 0
    with Browser() as browser:
        for size in WINDOWS:
            for colours in COLOURS:
                browser.window(size, colours)
                for page in pages:
                    found = browser.open((site / page).as_uri()) + browser.evaluate(FAULTS)
                    picture = arguments.folder / f"{page.removesuffix('.html')}.{size}.{colours}.png"
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    picture.write_bytes(browser.photograph())
                    for fault in found:
                        print(f"{page} ({size}, {colours}): {fault}", flush=True)
                    faults += len(found)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
