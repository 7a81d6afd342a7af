/** The figures of RDDM Image Quality, on the node. */

import { addStyle, afterCallback, app, everyFrame, passMiddleButton, passWheel, resultsOf, texts } from "./host.js";

/** @typedef {import("./host.js").LGraphNode} LGraphNode */

const NODE = "RDDMImageQuality";
const SIZE = /** @type {const} */ ([340, 220]);

/** @param {LGraphNode} node */
function addFigures(node) {
  const figures = document.createElement("output");
  figures.className = "rddm-figures";
  figures.tabIndex = 0; // to scroll through those of a batch
  figures.dataset.captureWheel = "true"; // by which Nodes 2.0 leaves the wheel to a focused element
  const widget = node.addDOMWidget("figures", "RDDM_FIGURES", figures, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 110,
  });
  widget.serialize = false; // of the workflow's widget values; the option is about the prompt
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  // A workflow that was saved before there were figures on the node has no room for them.
  afterCallback(node, "onConfigure", () => {
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  });
  passMiddleButton(figures);
  passWheel(figures, () => figures.scrollHeight > figures.clientHeight);
  everyFrame(node, () => {
    /** @type {string[]} */
    const measured = resultsOf(node)?.text ?? [texts()("measure")];
    const text = measured.join("\n");
    if (figures.textContent !== text) figures.textContent = text;
  });
}

app.registerExtension({
  name: "RDDM.ImageQuality",
  setup: () => addStyle("image_quality.css"),
  nodeCreated(node) {
    if (node.comfyClass === NODE) addFigures(/** @type {LGraphNode} */ (node));
  },
});
