/** The slider of RDDM Compare: the view of `compare_view.js` as a DOM widget on the node. */

import { CompareView } from "./compare_view.js";
import {
  addStyle,
  afterCallback,
  app,
  everyFrame,
  fileUrl,
  locatorOf,
  passMiddleButton,
  passWheel,
  resultsOf,
  texts,
} from "./host.js";

/** @typedef {import("./host.js").SavedFile} SavedFile */
/** @typedef {import("./host.js").LGraphNode} LGraphNode */

const NODE = "RDDMCompare";
/** Key in the node's properties, where earlier releases kept all this. */
const PROPERTY = "rddm_compare";
const SIZE = /** @type {const} */ ([420, 460]);

/**
 * What is known of a node as long as the browser's tab is open, and no part of the workflow: there, every move of the
 * slider would be an edit, with a step of undo of its own and a prompt where one is queued on every change.
 * @typedef {object} Remembered
 * @property {SavedFile[]} [before] previews in the server's temporary folder
 * @property {SavedFile[]} [after]
 * @property {Partial<import("./compare_view.js").CompareState>} [view]
 */

/** Keys of the nodes that have run since the page was loaded. */
const ran = new Set();

/**
 * The results that a view shows.
 * @type {WeakMap<CompareView, {before: SavedFile[], after: SavedFile[]}>}
 */
const shown = new WeakMap();

/** @param {LGraphNode} node */
function addSlider(node) {
  const view = new CompareView({
    onChange: (state) => remember(node, { view: state }),
    // The host scales the graph, and with it this widget.
    screenScale: () => app.canvas.ds.scale * window.devicePixelRatio,
    text: texts(),
  });
  const widget = node.addDOMWidget("compare", "RDDM_COMPARE", view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 260,
  });
  widget.serialize = false; // of the workflow's widget values; the option is about the prompt
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);

  passWheel(view.element);
  passMiddleButton(view.element);
  const look = () => {
    showResults(node, view);
    view.refresh();
  };
  everyFrame(node, look, () => view.stop());
  afterCallback(node, "onAdded", () => view.start());
  afterCallback(node, "onConfigure", () => {
    if (node.graph) restore(node, view);
  });
}

/**
 * Show what the node's last run sent, unless it is shown already.
 * @param {LGraphNode} node
 * @param {CompareView} view
 */
function showResults(node, view) {
  const { rddm_before: before, rddm_after: after } = resultsOf(node) ?? {};
  if (!before || !after || (before === shown.get(view)?.before && after === shown.get(view)?.after)) return;
  shown.set(view, { before, after });
  ran.add(keyOf(node));
  remember(node, { before, after });
  show(view, before, after);
}

/**
 * After loading, undo and pasting.
 * @param {LGraphNode} node
 * @param {CompareView} view
 */
function restore(node, view) {
  const { before = [], after = [], view: state } = remembered(node);
  const saved = /** @type {Remembered | undefined} */ (node.properties[PROPERTY]);
  view.setState(state ?? saved?.view ?? {});
  // The host forgets results when the page is loaded again. Otherwise it knows better than what is remembered here.
  if (!ran.has(keyOf(node))) show(view, before, after);
}

/**
 * @param {LGraphNode} node
 * @param {Remembered} changes
 */
function remember(node, changes) {
  try {
    sessionStorage.setItem(keyOf(node), JSON.stringify({ ...remembered(node), ...changes }));
  } catch {
    // It is full: nothing depends on it.
  }
}

/**
 * @param {LGraphNode} node
 * @returns {Remembered}
 */
function remembered(node) {
  return JSON.parse(sessionStorage.getItem(keyOf(node)) ?? "{}");
}

/** @param {LGraphNode} node */
function keyOf(node) {
  return `rddm.compare/${node.graph?.rootGraph.id}/${locatorOf(node)}`;
}

/**
 * @param {CompareView} view
 * @param {SavedFile[]} before
 * @param {SavedFile[]} after
 */
function show(view, before, after) {
  view.setPictures(before.map(fileUrl), after.map(fileUrl));
}

app.registerExtension({
  name: "RDDM.Compare",
  setup: () => addStyle("compare.css"),
  nodeCreated(node) {
    if (node.comfyClass === NODE) addSlider(/** @type {LGraphNode} */ (node));
  },
});
