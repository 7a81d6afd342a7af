/** The slider of RDDM Compare: the view of `compare_view.js` as a DOM widget, its state in the node's properties. */

import { CompareView } from "./compare_view.js";
import { afterCallback, app, fileUrl } from "./host.js";

/** @typedef {import("./host.js").SavedFile} SavedFile */
/** @typedef {import("./host.js").LGraphNode} LGraphNode */

const NODE = "RDDMCompare";
/** Key in the node's properties, which the host saves with the workflow and copies with the node. */
const PROPERTY = "rddm_compare";
const SIZE = /** @type {const} */ ([420, 460]);

/**
 * @typedef {object} SavedCompare
 * @property {SavedFile[]} [before] previews in the server's temporary folder
 * @property {SavedFile[]} [after]
 * @property {Partial<import("./compare_view.js").CompareState>} [view]
 */

/** @param {LGraphNode} node */
function addSlider(node) {
  const view = new CompareView({
    onChange: (state) => save(node, { view: state }),
    // The host scales the graph, and with it this widget.
    screenScale: () => app.canvas.ds.scale * window.devicePixelRatio,
  });
  const widget = node.addDOMWidget("compare", "RDDM_COMPARE", view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 260,
  });
  widget.serialize = false; // of the workflow's widget values; the option is about the prompt
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);

  view.element.addEventListener(
    "wheel",
    (event) => {
      // In the classic renderer the element lies over the canvas and would keep the wheel from it.
      if (view.element.closest(".dom-widget")) app.canvas.processMouseWheel(event);
    },
    { passive: false },
  );
  let frame = requestAnimationFrame(function watch() {
    view.refresh();
    frame = requestAnimationFrame(watch);
  });
  afterCallback(node, "onRemoved", () => {
    cancelAnimationFrame(frame);
    view.dispose();
  });
  afterCallback(node, "onConfigure", () => restore(node, view));
  afterCallback(node, "onExecuted", (output) => {
    const [before, after] = [output?.rddm_before ?? [], output?.rddm_after ?? []];
    for (const file of [...before, ...after]) sessionStorage.setItem(sessionKey(file), "");
    save(node, { before, after });
    show(view, before, after);
  });
}

/**
 * @param {LGraphNode} node
 * @param {SavedCompare} changes
 */
function save(node, changes) {
  node.properties[PROPERTY] = { ...saved(node), ...changes };
}

/**
 * @param {LGraphNode} node
 * @returns {SavedCompare}
 */
function saved(node) {
  return /** @type {SavedCompare} */ (node.properties[PROPERTY] ?? {});
}

/**
 * After loading, undo and pasting.
 * @param {LGraphNode} node
 * @param {CompareView} view
 */
function restore(node, view) {
  const { before = [], after = [], view: state = {} } = saved(node);
  view.setState(state);
  // Temporary files of another day or another machine are gone: only those seen in this session are asked for.
  const known = [...before, ...after].every((file) => sessionStorage.getItem(sessionKey(file)) !== null);
  if (known) show(view, before, after);
}

/**
 * @param {CompareView} view
 * @param {SavedFile[]} before
 * @param {SavedFile[]} after
 */
function show(view, before, after) {
  view.setPictures(before.map(fileUrl), after.map(fileUrl));
}

/** @param {SavedFile} file */
function sessionKey({ filename, subfolder }) {
  return `rddm.compare/${subfolder}/${filename}`;
}

app.registerExtension({
  name: "RDDM.Compare",
  setup() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./compare.css", import.meta.url).href;
    document.head.append(sheet);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addSlider(/** @type {LGraphNode} */ (node));
  },
});
