/**
 * A button on RDDM Defocus Map that opens the host's mask editor with the estimated map in it.
 *
 * The node saves the photograph with the map as transparency; the mask editor takes exactly that, from a Load Image
 * node. Once the user has saved in the editor, what the map was connected to is connected to that node instead, and to
 * the map again should that node be removed.
 */

import { afterCallback, app, fileUrl, isLive, resultsOf, texts } from "./host.js";

/** @typedef {import("./host.js").SavedFile} SavedFile */
/** @typedef {import("./host.js").LGraphNode} LGraphNode */
/** @typedef {import("./host.js").Subgraph} Subgraph */

const NODE = "RDDMDefocusMap";
const LOADER = "LoadImage";
/** Key of the saved pictures in the node's results. */
const RESULT = "rddm_paintable";
/** Key of how many pictures there were; the saved one is the first of them. */
const PICTURES = "rddm_pictures";
/** Of the button; what it says is in `texts.js`. */
const WIDGET = "correct by hand";
/**
 * Key in the properties of the Load Image node: ids of the node whose map it corrects, and its own, which a copy has not.
 * Earlier releases kept the first one alone.
 */
const CORRECTS = "rddm_corrects";
/** Key in the same: what the map was connected to, `Target[]`. */
const TARGETS = "rddm_targets";
/** Output of Load Image that is its mask. */
const MASK_SLOT = 1;
/** What a link inside a subgraph has as its target if it leads out of it. */
const OUTSIDE = "-20";
const GAP = 40;
/** Height that a Load Image node comes to with its picture. */
const LOADER_HEIGHT = 340;
/** The mask editor in the page, by the names that front ends of different years give it. */
const EDITOR = "[data-testid='mask-editor-root'], .maskEditor-dialog-root";
/** Milliseconds between two looks at whether the editor has saved or gone. */
const WATCH = 100;
/** How many of them the editor may take to open. */
const PATIENCE = 300;
/** How many the picture may take: over a slow line it never comes to the node, and the editor fetches its own. */
const PICTURE_PATIENCE = 100;

/**
 * Node, input, and the last point that the link was led through, if there was one.
 * @typedef {[string, number, (number | null)?]} Target
 */

/** @param {LGraphNode} node */
function addButton(node) {
  const widget = node.addWidget("button", WIDGET, "", () => void correct(node));
  widget.serialize = false;
  widget.options.serialize = false;
  widget.label = texts()("correct");
  widget.tooltip = texts()("correctTooltip");
  node.setSize([Math.max(node.size[0], node.computeSize()[0]), Math.max(node.size[1], node.computeSize()[1])]);
}

/**
 * Open the mask editor: with what was corrected before, otherwise with the estimated map.
 * @param {LGraphNode} node
 */
async function correct(node) {
  const text = texts();
  const corrected = loaderOf(node);
  if (corrected) {
    bringIntoView(corrected);
    if (!(await isOnServer(fileIn(imageOf(corrected)?.value)))) tell(text("correctedGone", corrected.title));
    else if (await settled(corrected)) await edit(node, corrected, holdUndo());
    return;
  }
  /** @type {SavedFile | undefined} */
  const paintable = resultsOf(node)?.[RESULT]?.[0];
  if (!paintable) {
    tell(text("runFirst"));
    return;
  }
  if (!(await isOnServer(paintable))) {
    tell(text("estimateGone"));
    return;
  }
  if (!isLive(node) || loaderOf(node)) return; // another workflow is open by now, or the button was pressed twice
  const release = holdUndo();
  let editing = false;
  try {
    const loader = addLoader(node, paintable);
    if (!loader || !(await settled(loader))) return;
    /** @type {number[]} */
    const counts = resultsOf(node)?.[PICTURES] ?? []; // one for each time that the node ran, for a list of pictures
    const pictures = counts.reduce((sum, count) => sum + count, 0);
    if (pictures > 1) tell(text("firstOfBatch", pictures));
    editing = true;
    await edit(node, loader, release, () => loader.graph?.remove(loader));
  } finally {
    if (!editing) release();
  }
}

/**
 * The Load Image node that was made for the map of `node`, if it is still there.
 * @param {LGraphNode} node
 */
function loaderOf(node) {
  // Not remembered by `node`, whose copies correct maps of their own.
  const found = node.graph?.nodes.find(({ id, properties }) => {
    const [corrects, own = id] = idsIn(properties[CORRECTS]);
    return corrects === String(node.id) && String(own) === String(id);
  });
  return /** @type {LGraphNode | undefined} */ (found);
}

/**
 * What lies under `CORRECTS`.
 * @param {unknown} value
 * @returns {string[]}
 */
function idsIn(value) {
  return [value].flat().map(String);
}

/**
 * Let what follows be one step of undo, or none if it comes to nothing, until the returned function is called.
 * @returns {() => void}
 */
function holdUndo() {
  // Of this workflow: another one may be open by then.
  const tracker = /** @type {any} */ (app.extensionManager).workflow?.activeWorkflow?.changeTracker;
  tracker?.beforeChange?.();
  let held = true;
  return () => {
    if (held) tracker?.afterChange?.();
    held = false;
  };
}

/**
 * Out of sight a node loads no picture.
 * @param {LGraphNode} node
 */
function bringIntoView(node) {
  const [left, top, width, height] = app.canvas.visible_area;
  const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + node.size[1] / 2];
  if (x < left || x > left + width || y < top || y > top + height) app.canvas.centerOnNode(node);
}

/**
 * Where below `node` there is room for a Load Image node of that width.
 * @param {LGraphNode} node
 * @param {number} width
 * @returns {[number, number]}
 */
function freePlace(node, width) {
  const [x] = node.pos;
  let y = node.pos[1] + node.size[1] + 2 * GAP;
  for (;;) {
    const inTheWay = node.graph?.nodes.find(
      ({ pos, size }) =>
        pos[0] < x + width + GAP && x < pos[0] + size[0] && pos[1] < y + LOADER_HEIGHT + GAP && y < pos[1] + size[1] + GAP,
    );
    if (!inTheWay) return [x, y];
    y = inTheWay.pos[1] + inTheWay.size[1] + 2 * GAP;
  }
}

/**
 * A Load Image node beside `node`, with the photograph and the estimated map.
 * @param {LGraphNode} node
 * @param {SavedFile} file
 */
function addLoader(node, file) {
  const { LiteGraph } = /** @type {{LiteGraph: import("./host.js").NodeFactory}} */ (/** @type {unknown} */ (window));
  const loader = LiteGraph.createNode(LOADER, texts()("correctedMap"));
  const image = loader && imageOf(loader);
  if (!loader || !image || !node.graph) return undefined;
  loader.pos = freePlace(node, loader.size[0]);
  node.graph.add(loader);
  loader.properties[CORRECTS] = [String(node.id), String(loader.id)];
  bringIntoView(loader);
  const estimated = `${file.subfolder ? `${file.subfolder}/` : ""}${file.filename} [${file.type}]`;
  image.value = estimated;
  image.callback?.(estimated);
  return loader;
}

/**
 * The widget that holds the name of the picture.
 * @param {LGraphNode} loader
 */
function imageOf(loader) {
  return loader.widgets?.find(({ name }) => name === "image");
}

/**
 * Open the mask editor with the picture of `loader`. Once it has saved, the painted map counts.
 * @param {LGraphNode} node
 * @param {LGraphNode} loader
 * @param {() => void} release called when it is over
 * @param {() => void} [cancelled] called before that if the editor has closed without having saved, or never opened
 */
async function edit(node, loader, release, cancelled) {
  const before = imageOf(loader)?.value;
  let opened = false;
  let looks = 0;
  // The mask editor calls nothing: it sets the value when it saves, and goes away.
  const timer = setInterval(() => {
    if (!isLive(loader)) {
      clearInterval(timer);
      release();
      return;
    }
    const isOpen = document.querySelector(EDITOR) !== null;
    const isSaved = imageOf(loader)?.value !== before;
    const isOver = isSaved || (!isOpen && (opened || ++looks > PATIENCE));
    opened ||= isOpen;
    if (!isOver) return;
    clearInterval(timer);
    if (isSaved) moveLinks(node, loader);
    else cancelled?.();
    release();
  }, WATCH);
  afterCallback(loader, "onRemoved", () => {
    clearInterval(timer);
    queueMicrotask(release); // still in the graph now
  });
  app.canvas.selectNode(loader);
  await app.extensionManager.command.execute("Comfy.MaskEditor.OpenMaskEditor");
  opened ||= document.querySelector(EDITOR) !== null;
}

/**
 * Connect what the map of `node` goes to with the mask of `loader`, which remembers it.
 * @param {LGraphNode} node
 * @param {LGraphNode} loader
 */
function moveLinks(node, loader) {
  const { graph } = node;
  if (!graph) return;
  /** @type {Target[]} */
  const targets = [];
  for (const id of node.outputs[mapSlot(node)]?.links ?? []) {
    const link = graph.getLink(id);
    if (link) targets.push([String(link.target_id), link.target_slot, link.parentId ?? null]);
  }
  for (const target of targets) connect(graph, loader, MASK_SLOT, target);
  loader.properties[TARGETS] = [...targetsOf(loader), ...targets];
}

/**
 * Connect what the mask of the removed `loader` went to with the map of `node` again.
 * @param {NonNullable<LGraphNode["graph"]>} graph
 * @param {LGraphNode} node
 * @param {LGraphNode} loader
 */
function giveBack(graph, node, loader) {
  if (loaderOf(node)) return;
  for (const target of targetsOf(loader)) {
    const [id, slot] = target;
    const { outputs } = /** @type {Subgraph} */ (graph);
    const taken = id === OUTSIDE ? outputs[slot]?.linkIds.length : graph.getNodeById(id)?.inputs[slot]?.link != null;
    if (!taken) connect(graph, node, mapSlot(node), target);
  }
}

/**
 * @param {LGraphNode} loader
 * @returns {Target[]}
 */
function targetsOf(loader) {
  const remembered = /** @type {any} */ (loader.properties[TARGETS]);
  return Array.isArray(remembered) ? remembered : [];
}

/** @param {LGraphNode} node */
function mapSlot(node) {
  return node.outputs.findIndex(({ type }) => type === "MASK");
}

/**
 * Connect an output with an input of a node, if it is still there, or with an output of the subgraph, through the point
 * that the link led through.
 * @param {NonNullable<LGraphNode["graph"]>} graph
 * @param {LGraphNode} from
 * @param {number} output
 * @param {Target} target
 */
function connect(graph, from, output, [id, slot, point]) {
  const through = point != null && graph.reroutes.has(point) ? point : undefined;
  if (id === OUTSIDE) {
    /** @type {Subgraph} */ (graph).outputs[slot]?.connect(from.outputs[output], from, through);
    return;
  }
  const target = graph.getNodeById(id);
  if (target) from.connect(output, target, slot, through);
}

/**
 * Give the links back when a node that corrects a map is removed by itself.
 * @param {LGraphNode} loader
 */
function watchRemoval(loader) {
  afterCallback(loader, "onRemoved", () => {
    const { graph } = loader;
    const [corrects] = idsIn(loader.properties[CORRECTS]);
    const found = graph?.nodes.find(({ id }) => String(id) === corrects);
    const node = /** @type {LGraphNode | undefined} */ (found);
    if (!graph || node?.comfyClass !== NODE) return;
    // Called too when the whole graph goes, and the map with it.
    queueMicrotask(() => {
      if (!isLive(loader) && isLive(node)) giveBack(graph, node, loader);
    });
  });
}

/**
 * What Load Image has as the name of its picture: `folder/name.png [input]`.
 * @param {unknown} value
 * @returns {SavedFile}
 */
function fileIn(value) {
  const [, subfolder = "", filename = "", type = "input"] =
    /^(?:(.*)\/)?(.*?)(?: \[(input|output|temp)\])?$/s.exec(String(value ?? "")) ?? [];
  return { filename, subfolder, type };
}

/**
 * False only where the server says so, or is not there: something between may not let such a question pass.
 * @param {SavedFile} file
 */
async function isOnServer(file) {
  try {
    return (await fetch(fileUrl(file), { method: "HEAD" })).status !== 404;
  } catch {
    return false;
  }
}

/**
 * Wait for the node's picture. False if the node has gone meanwhile, true when it has it or will not get it any more.
 * @param {LGraphNode} node
 */
async function settled(node) {
  for (let tries = 0; tries < PICTURE_PATIENCE && isLive(node) && !node.imgs?.length; tries++) {
    await new Promise((resolve) => setTimeout(resolve, WATCH));
  }
  return isLive(node);
}

/** @param {string} detail */
function tell(detail) {
  app.extensionManager.toast.add({ severity: "info", summary: "RDDM", detail, life: 6000 });
}

app.registerExtension({
  name: "RDDM.PaintMap",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addButton(/** @type {LGraphNode} */ (node));
    if (node.comfyClass === LOADER) watchRemoval(/** @type {LGraphNode} */ (node));
  },
});
