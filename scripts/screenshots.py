"""Take the pictures of the README from a demo that is running: python scripts/screenshots.py

Waits for the first approval, photographs it, approves it as the demo's second operator, photographs the
rollout half-way and the overview while it runs. Start the demo with --no-approve.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def wait(look: Callable[[], Any], seconds: float = 180) -> Any:
    """What a look finds, within a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.3)
    raise SystemExit("gave up waiting")


def main() -> None:
    """Play the photographer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", default="http://127.0.0.1:8081")
    parser.add_argument("--home", type=Path, default=Path("~/.local/share/meta-agent").expanduser())
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    key = (options.home / "keys" / "night-shift.key").read_text().strip()
    password = (options.home / "keys" / "admin-password").read_text().strip()
    http = httpx.Client(
        base_url=f"{options.control}/api/v1/", headers={"authorization": f"Bearer {key}"}, trust_env=False
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": 1360, "height": 860}, device_scale_factor=1, color_scheme="light"
        )
        page = context.new_page()
        page.goto(f"{options.control}/login")
        page.fill("input[name=name]", "admin")
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        shoot(page, options.control, http)
        browser.close()


def shoot(page: Page, control: str, http: httpx.Client) -> None:
    """The moments worth a picture, in their order."""
    waiting = wait(lambda: http.get("approvals").json())[0]
    picture(page, f"{control}/approvals/{waiting['id']}", "approvals")
    word = {
        "proposal_id": waiting["id"],
        "word": "approve",
        "binding_digest": waiting["binding_digest"],
    }
    http.post("approvals", json=word).raise_for_status()

    def at(weight: float) -> dict[str, Any] | None:
        rollouts: list[dict[str, Any]] = http.get("rollouts").json()
        found = [each for each in rollouts if each["weight"] >= weight and each["state"] == "canary"]
        return found[0] if found else None

    rollout = wait(lambda: at(0.25))
    time.sleep(4)
    picture(page, f"{control}/rollouts/{rollout['id']}", "rollout")
    picture(page, f"{control}/", "overview")


def picture(page: Page, url: str, name: str) -> None:
    """One page, once its live parts have arrived."""
    page.goto(url, wait_until="load")
    page.wait_for_timeout(1500)
    page.screenshot(path=str(IMAGES / f"{name}.png"))
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
