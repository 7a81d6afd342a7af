/**
 * A button on RDDM Defocus Map that opens the host's mask editor with the estimated map in it.
 *
 * The node saves the photograph with the map as transparency; the mask editor takes exactly that, from a Load Image
 * node. Once the user has saved in the editor, what the map was connected to is connected to that node instead.
 */

import { app, resultsOf } from "./host.js";

/** @typedef {import("./host.js").SavedFile} SavedFile */
/** @typedef {import("./host.js").LGraphNode} LGraphNode */

const NODE = "RDDMDefocusMap";
/** Key of the saved pictures in the node's results. */
const RESULT = "rddm_paintable";
const BUTTON = "correct by hand";
const TITLE = "Corrected map";
/** Output of Load Image that is its mask. */
const MASK_SLOT = 1;
const GAP = 40;
/** Milliseconds between two looks at whether the editor has saved. */
const WATCH = 300;

/** @param {LGraphNode} node */
function addButton(node) {
  const widget = node.addWidget("button", BUTTON, "", () => {
    /** @type {SavedFile | undefined} */
    const paintable = resultsOf(node)?.[RESULT]?.[0];
    if (paintable) void correct(node, paintable);
    else tell("Run the workflow once: the map must be estimated before it can be corrected.");
  });
  widget.serialize = false;
  widget.options.serialize = false;
  widget.tooltip = "Open the estimated map in the mask editor. Saving there puts your version in its place.";
  node.setSize([Math.max(node.size[0], node.computeSize()[0]), Math.max(node.size[1], node.computeSize()[1])]);
}

/**
 * @param {LGraphNode} node
 * @param {SavedFile} file
 */
async function correct(node, file) {
  const loader = addLoader(node, file);
  if (!loader || !(await hasPicture(loader))) {
    if (loader) node.graph?.remove(loader);
    tell("The estimated map is no longer on the server. Run the workflow again.");
    return;
  }
  app.canvas.selectNode(loader);
  await app.extensionManager.command.execute("Comfy.MaskEditor.OpenMaskEditor");
}

/**
 * A Load Image node beside `node`, with the photograph and the estimated map.
 * @param {LGraphNode} node
 * @param {SavedFile} file
 */
function addLoader(node, file) {
  const { LiteGraph } = /** @type {{LiteGraph: import("./host.js").NodeFactory}} */ (/** @type {unknown} */ (window));
  const loader = LiteGraph.createNode("LoadImage", TITLE);
  const image = loader?.widgets?.find(({ name }) => name === "image");
  if (!loader || !image || !node.graph) return undefined;
  loader.pos = [node.pos[0], node.pos[1] + node.size[1] + 2 * GAP];
  node.graph.add(loader);
  const estimated = `${file.subfolder ? `${file.subfolder}/` : ""}${file.filename} [${file.type}]`;
  image.value = estimated;
  image.callback?.(estimated);
  // The mask editor calls nothing when it saves: it only sets the value. From then on the painted map counts.
  const timer = setInterval(() => {
    if (loader.graph && image.value === estimated) return;
    clearInterval(timer);
    if (loader.graph) moveLinks(node, loader);
  }, WATCH);
  return loader;
}

/**
 * Connect what the map of `node` goes to with the mask of `loader`.
 * @param {LGraphNode} node
 * @param {LGraphNode} loader
 */
function moveLinks(node, loader) {
  const slot = node.outputs.findIndex(({ type }) => type === "MASK");
  for (const id of [...(node.outputs[slot]?.links ?? [])]) {
    const link = node.graph?.getLink(id);
    const target = link && node.graph?.getNodeById(link.target_id);
    if (link && target) loader.connect(MASK_SLOT, target, link.target_slot);
  }
}

/**
 * Whether the node's picture has arrived; waits up to ten seconds.
 * @param {LGraphNode} node
 */
async function hasPicture(node) {
  for (let tries = 0; tries < 100; tries++) {
    if (node.imgs?.length) return true;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return false;
}

/** @param {string} detail */
function tell(detail) {
  app.extensionManager.toast.add({ severity: "info", summary: "RDDM Defocus Map", detail, life: 6000 });
}

app.registerExtension({
  name: "RDDM.PaintMap",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addButton(/** @type {LGraphNode} */ (node));
  },
});
