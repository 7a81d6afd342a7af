"""The table of texts of the scripts, and that the front end's language chooses among them."""

from __future__ import annotations

import json

from chromium import FrontEnd

from .mock_host import PACK, ROOT

TEXTS = f"async () => (await import('/extensions/{PACK}/texts.js')).TEXTS"
WORKFLOW = ROOT / "example_workflows" / "2-four-stages.json"
LABEL = """() => app.graph.nodes.find(({ type }) => type === "RDDMDefocusMap").widgets
  .find(({ name }) => name === "correct by hand").label"""


def test_every_language_says_everything(front_end: FrontEnd) -> None:
    texts = front_end.page.evaluate(TEXTS)
    assert sorted(texts) == sorted(path.name for path in (ROOT / "locales").iterdir())
    english = texts.pop("en")
    for language, table in texts.items():
        assert list(table) == list(english), language
        for key, text in table.items():
            assert text.strip() and text != english[key], (language, key)
            assert text.count("{}") == english[key].count("{}"), (language, key)


def test_the_language_of_the_front_end_is_taken(front_end: FrontEnd) -> None:
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    labels = []
    for locale in ("ja", "fr", "en"):
        front_end.set("Comfy.Locale", locale)
        front_end.load(workflow)
        labels.append(front_end.page.evaluate(LABEL))
        stage = front_end.page.locator(".rddm-compare-stage")
        stage.wait_for(state="attached")
        labels.append(stage.get_attribute("aria-valuetext"))
    english = ["correct by hand", "50 % before, 50 % after"]
    assert labels == ["手で修正", "前 50 %、後 50 %", *english, *english]
